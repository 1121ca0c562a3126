"""Ranks agree on how they compute before the first step."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mwuf_dist.config import build, merge
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.runtime.loops import agreed
from tests.faults.ranks import VALUES, forked


@pytest.mark.parametrize(("ours", "one_lacks", "expected"), [(True, 0, True), (True, 1, False), (False, 1, False)])
def test_no_rank_uses_loops_that_another_lacks(
    ours: bool, one_lacks: int, expected: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """With them ranks ask for distinct rows, without them TorchRec exchanges them: a run had waited for its timeout."""
    monkeypatch.setattr(Runtime, "max", lambda self, value: max(value, one_lacks))
    assert agreed(Runtime(0, 2, torch.device("cpu"), False), ours) == expected
    assert (len(recwarn) == 1) == (ours and not expected)


# Networks with BatchNorm and loops of their own, which send other things to the ranks than torch's operators.
@pytest.mark.parametrize("backbone", ["dcn", "afn"])
def test_a_rank_without_loops_changes_no_result(backbone: str, tmp_path: Path) -> None:
    values = merge(
        VALUES,
        {
            "backbone": {"name": backbone, "batch_norm": True},
            "pretrain": {"epochs": 1},
            "checkpoint": {"every_s": 0.0},
            "runtime": {"timeout_s": 20},
        },
    )
    for without in ({0, 1}, {1}):
        folder = tmp_path / str(len(without))
        with forked(_run, (values, folder, without), tmp_path / "said", 2) as launch:
            assert launch.wait() == [0, 0], launch.said()
    both, one = (json.loads((tmp_path / name / "results.json").read_text())["phases"] for name in "21")
    assert one == both


def _run(values: dict[str, Any], folder: Path, without: set[int]) -> None:
    from mwuf_dist.training.run import run

    if int(os.environ["RANK"]) in without:
        os.environ["MWUF_NATIVE"] = "0"
    config = build(values)
    with start(config) as runtime:
        run(config, folder, runtime)
