"""What a run writes beside its results: losses that share no axis, scores, the curve by clicks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwuf_dist.config import PHASES
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.evaluation.plots import _loss_curves
from mwuf_dist.launch import local
from mwuf_dist.training.results import NEXT_SETS, counted_within_item
from tests.tiny import tiny
from tests.waiting import wait_until

CONFIG = tiny(
    pretrain={"epochs": 2, "batch_size": 256},
    meta_train={"epochs": 2, "batch_size": 128},
    method={"name": "mwuf", "initialisation": "metaemb"},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("left") / "run"
    return folder, local.train(CONFIG, folder)


def test_runs_of_one_process_leave_no_threads_behind_that_add_up(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    config = tiny(pretrain={"epochs": 1, "batch_size": 1024})
    local.pretrain(config, tmp_path / "first")
    before, runs = num_threads(), 8
    for one in range(runs):
        local.pretrain(config, tmp_path / str(one))
    # Fewer than one a run: a pool of a library starts one more now and then, where all of its threads are busy.
    wait_until(lambda: num_threads() < before + runs // 2, lambda: f"{before}, then {num_threads()}", longest_s=30.0)


def test_no_line_of_the_loss_plot_doubles_back(run: tuple[Path, dict[str, Any]]) -> None:
    records = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    curves = _loss_curves(records)
    assert curves.keys() == {"pretrain", "meta_train", "warm_up"}
    assert curves["meta_train"].keys() == {"episodes", "algorithm 1"}
    for lines in curves.values():
        for points in lines.values():
            assert len(points) > 1 or len(lines) == 3
            assert all(one[0] < other[0] for one, other in pairwise(points))


def test_the_scores_of_every_phase_and_set_are_kept_and_give_its_auc(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    prepared = prepare(CONFIG.data)
    for phase, next_set in zip(PHASES, NEXT_SETS, strict=True):
        for scoring, split in (("next", next_set), ("test", "test")):
            scores = np.load(folder / "scores" / f"{phase}-{split}.npy")
            assert scores.dtype == np.float32
            labels = prepared.columns(split, ("label",))["label"]
            assert auc(scores, labels) == results["phases"][phase][f"auc_{scoring}"]
    assert len(list((folder / "scores").iterdir())) == 7


def test_the_curve_by_clicks_is_the_auc_of_the_rows_at_each_place_of_their_items(
    run: tuple[Path, dict[str, Any]],
) -> None:
    folder, results = run
    prepared, k = prepare(CONFIG.data), CONFIG.data.warm_rows
    for number, (phase, split) in enumerate(zip(PHASES, NEXT_SETS, strict=True)):
        columns = prepared.columns(split, ("item", "label"))
        scores = np.load(folder / "scores" / f"{phase}-{split}.npy")
        seen: dict[int, int] = {}
        clicks = []
        for item in columns["item"].tolist():
            clicks.append(number * k + seen.get(item, 0))
            seen[item] = seen.get(item, 0) + 1
        buckets = results["phases"][phase]["auc_by_clicks"]
        assert [(one["from"], one["to"]) for one in buckets] == (
            [(number * k + part * k // 4, number * k + (part + 1) * k // 4) for part in range(4)]
            if number < 3
            else [(3 * k, None)]
        )
        assert sum(one["rows"] for one in buckets) == len(scores)
        for one in buckets:
            inside = [one["from"] <= place < (one["to"] or 1 << 30) for place in clicks]
            assert one["auc"] == pytest.approx(auc(scores[inside], columns["label"][inside]))


def test_counted_within_item_counts_earlier_rows_that_count() -> None:
    item = np.array([5, 2, 5, 5, 2, 0])
    assert counted_within_item(item, np.ones(6, dtype=bool)).tolist() == [0, 0, 1, 2, 1, 0]
    assert counted_within_item(item, np.array([1, 0, 0, 1, 1, 1], dtype=bool)).tolist() == [0, 0, 1, 1, 0, 0]
    assert counted_within_item(np.array([], dtype=np.int32), np.array([], dtype=bool)).tolist() == []
