"""`--profile` leaves a trace of each stage that a viewer of Chrome's trace format opens, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mwuf_dist.launch import local
from mwuf_dist.training.profile import StageProfiler
from tests.tiny import tiny

CONFIG = {"pretrain": {"epochs": 1}, "warm_up": {"epochs": 1}}
STAGES = ("pretrain", "meta_train", "warm_up-a", "warm_up-b", "warm_up-c")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("profile")
    local.train(tiny(**CONFIG), folder / "plain")
    local.train(tiny(**CONFIG | {"runtime": {"progress": "off", "profile": True}}), folder / "traced")
    return folder / "plain", folder / "traced"


def test_each_stage_has_a_trace_of_its_fourth_to_eighth_step(runs: tuple[Path, Path]) -> None:
    folder = runs[1] / "profile"
    assert {path.stem for path in folder.iterdir()} == {*STAGES, "evaluate"}
    for stage in STAGES:
        events = json.loads((folder / f"{stage}.json").read_text())["traceEvents"]
        # What a viewer needs of an event: what, where, when and how long.
        named = [event for event in events if event.get("ph") == "X"]
        assert all({"name", "pid", "tid", "ts", "dur"} <= event.keys() for event in named)
        name = stage.replace("-", " ")
        steps = {event["name"] for event in named if event["name"].startswith(f"{name}, step")}
        assert steps == {f"{name}, step {number}" for number in (4, 5, 6, 7, 8)}
        assert any(event["name"].startswith("aten::") for event in named)
    scored = json.loads((folder / "evaluate.json").read_text())["traceEvents"]
    assert sum(event["name"] == "evaluate" for event in scored if event.get("ph") == "X") == 1


def test_a_traced_run_is_the_same_run(runs: tuple[Path, Path]) -> None:
    plain, traced = (json.loads((folder / "results.json").read_text())["phases"] for folder in runs)
    assert plain == traced
    assert not (runs[0] / "profile").exists()


@pytest.mark.parametrize("num_steps", [0, 2, 3, 5, 8, 20])
def test_every_batch_is_handed_on_once_however_short_the_stage(tmp_path: Path, num_steps: int) -> None:
    import torch

    profiler = StageProfiler(tmp_path / "traces", torch.device("cpu"))
    batches = [object() for _ in range(num_steps)]
    assert list(profiler.steps("pretrain", batches)) == batches  # type: ignore[arg-type]
    assert (tmp_path / "traces" / "pretrain.json").exists() == (num_steps >= 3)
    assert list(profiler.steps("pretrain", batches)) == batches  # type: ignore[arg-type]
