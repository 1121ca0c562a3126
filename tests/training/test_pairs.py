"""Every method on every backbone: each stage takes its steps, and what is frozen stays bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mwuf_dist.backbones import BACKBONES
from mwuf_dist.config import UserError
from mwuf_dist.methods import METHODS
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.checkpoint.save import Checkpointer, module_state
from mwuf_dist.training.run import Run
from tests.tiny import tiny

# What makes no sense, and a word of the message that says so.
REFUSED = {("afn", "dropoutnet"): "no gradient", ("afn", "map"): "no gradient"} | {
    (backbone, "map"): "linear in the item embedding"
    for backbone in ("dcn", "dcn_v2", "deepfm", "din", "dlrm", "gru4rec", "pnn", "wide_deep")
}


def frozen_values(job: Run) -> dict[str, torch.Tensor]:
    tables = job.model.pretrained_tables
    values = {f"{t.name}.{name}": shard.weight.clone() for t in tables for name in t.specs for shard in t.shards(name)}
    return values | {key: value.clone() for key, value in module_state("backbone", job.model.backbone).items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_pair_runs_through_all_stages_and_moves_nothing_frozen(
    tmp_path: Path, backbone: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method != "mwuf" and backbone != "fm":  # the states of both are saved apart: each method and backbone once
        monkeypatch.setattr(Checkpointer, "save", lambda *_: None)
    config = tiny(
        backbone={"name": backbone} | ({"log_neurons": 8} if backbone == "afn" else {}),
        method={"name": method},
        pretrain={"epochs": 1, "batch_size": 4096},
        meta_train={"batch_size": 4096},
        warm_up={"epochs": 1, "batch_size": 1024},
    )
    with start(config) as runtime:
        prepared = run_module._prepare(config, runtime)
        (tmp_path / "run").mkdir()
        if (backbone, method) in REFUSED:
            with pytest.raises(UserError, match=REFUSED[backbone, method]):
                Run(config, tmp_path / "run", runtime, prepared)
            return
        job = Run(config, tmp_path / "run", runtime, prepared)
        start_values = frozen_values(job)
        job.pretrain(None)
        before = frozen_values(job)
        assert any(not torch.equal(before[name], value) for name, value in start_values.items())
        first = {name: value.clone() for name, value in job.method.state_dict().items()}
        job.meta_train()
        trained = job.method.meta_trained or job.method.episode_trained
        assert trained == any(not torch.equal(first[name], value) for name, value in job.method.state_dict().items())
        learned = {name: value.clone() for name, value in job.method.state_dict().items()}
        job.warm_up_and_evaluate()
        job.session.recorder.close()
        for name, value in (before | learned).items():
            assert torch.equal(value, (frozen_values(job) | job.method.state_dict())[name]), f"{name} has moved"
        assert list(job.session.meta.phases) == ["cold", "warm-a", "warm-b", "warm-c"]
