"""A whole run gives the same bits on any number of threads, and takes those that it may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mwuf_kernels import native, set_num_threads

from mwuf_dist.config import Config, build
from mwuf_dist.runtime import start
from mwuf_dist.runtime import threads as of_runtime
from mwuf_dist.training.run import run
from tests.tiny import tiny


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_a_run_gives_the_same_bits_on_any_number_of_threads(tmp_path: Path) -> None:
    outcomes = []
    for threads in (1, 2, 3, 8):
        # Batches so large that threads are woken for them, with everything that has a loop of its own.
        config = tiny(
            pretrain={"batch_size": 4096},
            meta_train={"batch_size": 4096},
            warm_up={"batch_size": 2048},
            backbone={"hidden": [64, 32], "dropout": 0.2},
            method={"name": "mwuf"},
            runtime={"threads": threads},
        )
        with start(config) as runtime:
            results = run(config, tmp_path / str(threads), runtime)
        scores = {path.name: path.read_bytes() for path in sorted((tmp_path / str(threads) / "scores").iterdir())}
        losses = [json.loads(line) for line in (tmp_path / str(threads) / "metrics.jsonl").read_text().splitlines()]
        outcomes.append((results["phases"], scores, losses))
    set_num_threads(1)
    assert len(outcomes[0][1]) == 7 and any("loss" in record for record in outcomes[0][2])
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"pod/cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "800000 100000", "pod/cpu.max": "max 100000"}, 8),
        ({"pod/cpu.max": "50000 100000"}, 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu,cpuacct/pod/cpu.cfs_quota_us": "-1", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_the_usable_cores_are_those_of_the_affinity_and_of_every_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("4:cpu,cpuacct:/pod\n3:memory:/pod\n0::/pod\n")
    for name, content in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    monkeypatch.setattr(of_runtime, "_MINE", mine)
    monkeypatch.setattr(of_runtime, "_CGROUPS", tmp_path / "mounted")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert of_runtime.usable_cores() == cores


@pytest.mark.parametrize(("ranks", "bound", "threads"), [(1, "", 8), (3, "", 2), (1, "3", 3), (1, "99", 8), (9, "", 1)])
def test_a_host_shares_its_cores_out_to_its_ranks(
    monkeypatch: pytest.MonkeyPatch, ranks: int, bound: str, threads: int
) -> None:
    monkeypatch.setattr(of_runtime, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", bound)
    assert of_runtime.default_threads(ranks) == threads


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_the_config_names_the_threads_of_the_loops_and_torch_keeps_one() -> None:
    config: Config = build({"runtime": {"threads": 3}})
    with start(config) as runtime:
        found = native.library()
        assert found is not None and (runtime.threads, found.mwuf_threads(), torch.get_num_threads()) == (3, 3, 1)
    set_num_threads(1)
