"""SIGKILL at any place of a run: the run that goes on is the run that nothing has happened to."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import merge
from tests.bounds import SAME_AUC, SAME_TABLES
from tests.faults.ranks import (
    META_TRAIN_STEP,
    POINT,
    PRETRAIN_STEP,
    READ_BACK,
    RESULTS,
    SAVE,
    SCORE,
    VALUES,
    WARM_UP_STEP,
    WRITE_SPLIT,
    Fault,
    ends,
    finished,
    launched,
)
from tests.training.test_resume import Outcome, assert_same, outcome

pytestmark = pytest.mark.dist

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    done: dict[int, Outcome] = {}

    def of(ranks: int) -> Outcome:
        if ranks not in done:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            finished(folder, ranks)
            done[ranks] = outcome(folder)
        return done[ranks]

    return of


def test_a_process_killed_in_every_stage_and_in_saves_ends_with_the_same_bits(undisturbed: Any, tmp_path: Path) -> None:
    places = [
        Fault(WRITE_SPLIT, 2),
        Fault(PRETRAIN_STEP, 5),
        Fault(READ_BACK, 4),
        Fault(META_TRAIN_STEP, 7),
        Fault(POINT, 3),
        Fault(WARM_UP_STEP, 2),
        Fault(SCORE, 1),
        Fault(RESULTS),
    ]
    for place in places:
        assert ends(tmp_path / "run", 1, [place], cache=tmp_path / "cache") == [KILLED], place
    assert "goes on from warm_up-4-0-00000000" in finished(tmp_path / "run", cache=tmp_path / "cache")
    assert_same(outcome(tmp_path / "run"), undisturbed(1))
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert not [name for name in left if name.startswith(".")], "what the killed saves have left is removed"


def test_any_of_two_ranks_killed_anywhere_ends_with_the_same_bits(undisturbed: Any, tmp_path: Path) -> None:
    places = [
        Fault(PRETRAIN_STEP, 9, rank=1),
        Fault(SAVE, 2, rank=0),
        Fault(META_TRAIN_STEP, 7, rank=0),
        Fault(READ_BACK, 1, rank=1),
        Fault(WARM_UP_STEP, 2),
    ]
    for place in places:
        assert KILLED in ends(tmp_path / "run", 2, [place]), place
    finished(tmp_path / "run", 2)
    assert_same(outcome(tmp_path / "run"), undisturbed(2))


def test_a_rank_killed_in_the_middle_of_a_save_in_the_background_ends_with_the_same_bits(
    undisturbed: Any, tmp_path: Path
) -> None:
    values = merge(VALUES, {"checkpoint": {"background_from_mb": 0}})
    for place in [Fault(READ_BACK, 1, rank=1), Fault(SAVE, 2, rank=0), Fault(POINT, 4, rank=0)]:
        assert KILLED in ends(tmp_path / "run", 2, [place], values=values), place
    finished(tmp_path / "run", 2, values=values)
    assert_same(outcome(tmp_path / "run"), undisturbed(2))


@pytest.mark.parametrize(
    ("before", "after", "step"), [(2, 1, PRETRAIN_STEP), (1, 2, PRETRAIN_STEP), (2, 1, META_TRAIN_STEP)]
)
def test_a_run_goes_on_at_another_world_size_to_the_same_tables(
    before: int, after: int, step: str, undisturbed: Any, tmp_path: Path
) -> None:
    """With dropout: the masks of the steps that are left are those of a run that was left alone."""
    assert KILLED in ends(tmp_path / "run", before, [Fault(step, 8, rank=0)])
    finished(tmp_path / "run", after)
    results, tensors, _ = outcome(tmp_path / "run")
    expected_results, expected_tensors, _ = undisturbed(after)
    assert results["samples"] == expected_results["samples"]
    for phase, metrics in expected_results["phases"].items():
        assert results["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=SAME_AUC)
    for name, expected in expected_tensors.items():
        assert (tensors[name] - expected).abs().max() <= SAME_TABLES * max(1.0, float(expected.abs().max())), name


SHARDED = {"embedding": {"sharding": "row_wise"}, "backbone": {"name": "din", "hidden": [8], "dropout": 0.2}}


@pytest.mark.parametrize(
    ("at", "sections"), [(PRETRAIN_STEP, {}), (PRETRAIN_STEP, SHARDED), (META_TRAIN_STEP, SHARDED)]
)
def test_a_rank_that_is_killed_is_named_by_the_others(at: str, sections: dict[str, Any], tmp_path: Path) -> None:
    with launched(tmp_path / "run", 2, [Fault(at, 4, rank=1)], merge(VALUES, sections)) as launch:
        assert launch.wait(peers_too=False) == [1, KILLED]
        assert "mwuf: rank 0 stops, because rank 1 does not answer: it has died or hangs" in launch.said(0)
        assert "Traceback" not in launch.said(0)
