"""One rank per GPU with NCCL. Unproven: these tests have not run yet, for want of a machine with GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mwuf_dist.config import build, merge, to_toml
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from tests.tiny import TINY, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.dist]


def test_a_rank_takes_the_gpu_and_nccl() -> None:
    with start(tiny(runtime={"device": "cuda"})) as runtime:
        assert runtime.device == torch.device("cuda", 0)
        assert dist.get_backend() == "nccl"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_gpu_ranks_give_the_auc_of_the_cpu(ranks: int, sharding: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    values = merge(TINY, {"pretrain": {"epochs": 3, "learning_rate": 5e-3}, "embedding": {"sharding": sharding}})
    cpu = local.train(build(merge(values, {"runtime": {"device": "cpu"}})), tmp_path / "cpu")
    path, folder = tmp_path / "gpu.toml", tmp_path / "gpu"
    path.write_text(to_toml(build(merge(values, {"runtime": {"device": "cuda"}}))))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, "-m", "mwuf_dist", "run", str(path), "--output", str(folder)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "results.json").read_text())
    assert found["world_size"] == ranks and found["device"].startswith("cuda")
    for phase, metrics in cpu["phases"].items():
        assert found["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=2e-3)
