"""Intervals of the differences of a comparison, from the scores that its runs have left."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.config import PHASES
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation import stream_report
from mwuf_dist.evaluation.comparison import SCORINGS, VERSUS, conclude, row_label
from mwuf_dist.evaluation.significance import bootstrap_difference, difference_by_item, placements
from mwuf_dist.studies.records import Cell
from mwuf_dist.training.results import NEXT_SETS
from mwuf_dist.training.stages.stream import ages_and_clicks


def add_intervals(comparison: dict[str, Any], finished: Sequence[tuple[Cell, Path]], prepared: Prepared) -> None:
    """Puts the bootstrap over items and seeds in place of the t-test, where scores of all seeds of both rows are here.

    Cells of `--records` have none: with two seeds trained here and three from elsewhere the t-test over five says more.

    Args:
        comparison: of `build_comparison`.
        finished: cells, each with the folder of its run.
        prepared: their data.
    """
    folders: dict[str, dict[int, Path]] = {}
    for cell, folder in finished:
        label = row_label(cell["backbone"], cell["method"], cell.get("variant", ""))
        if (folder / "scores").is_dir():
            folders.setdefault(label, {})[cell["seed"]] = folder
    columns = {split: prepared.columns(split, ("item", "label")) for split in NEXT_SETS}

    @functools.cache
    def placed(folder: Path, phase: str, split: str) -> np.ndarray:
        return placements(np.load(folder / "scores" / f"{phase}-{split}.npy"), columns[split]["label"])

    @functools.cache
    def test(label: str, other: str, phase: str, split: str) -> dict[str, Any] | None:
        common = sorted(folders.get(label, {}).keys() & folders.get(other, {}).keys())
        labels, items = columns[split]["label"], columns[split]["item"]
        if not common or len(np.unique(labels)) < 2:
            return None
        ours, theirs = ([placed(folders[row][seed], phase, split) for seed in common] for row in (label, other))
        found = bootstrap_difference(ours, theirs, labels, items)
        return {"p_value": found["p_value"], "interval": [found["low"], found["high"]], "num_seeds": len(common)}

    for row in comparison["rows"]:
        for number, phase in enumerate(PHASES):
            for scoring in SCORINGS:
                split = NEXT_SETS[number] if scoring == "next" else "test"
                for kind in VERSUS:
                    versus = row["phases"][phase][f"versus_{kind}_{scoring}"]
                    found = versus and test(row["label"], versus["row"], phase, split)
                    if found and found["num_seeds"] == versus["num_seeds"]:
                        versus |= found
    conclude(comparison)


def fold_difference(ours: Path, theirs: Path, prepared: Prepared) -> tuple[float, np.ndarray]:
    """Returns the mean AUC of a run over phases and scorings minus that of another, and what each new item adds to it.

    Args:
        ours: folder of the run.
        theirs: of the other, of the same data.
        prepared: their data.
    """
    differences, influences = [], []
    for number, phase in enumerate(PHASES):
        for split in (NEXT_SETS[number], "test"):
            columns = prepared.columns(split, ("item", "label"))
            label, index = columns["label"], columns["item"].astype(np.int64) - prepared.num_old_items
            if len(np.unique(label)) < 2:
                continue
            mine, other = (
                placements(np.load(folder / "scores" / f"{phase}-{split}.npy"), label) for folder in (ours, theirs)
            )
            difference, influence = difference_by_item(mine, other, label, index, prepared.num_new_items)
            differences.append(difference)
            influences.append(influence)
    return float(np.mean(differences)), np.mean(influences, axis=0)


def add_stream_intervals(comparison: dict[str, Any], finished: Sequence[tuple[Cell, Path]], prepared: Prepared) -> None:
    """Does the same for a comparison of the stream protocol: `stream_report.add_intervals`."""
    scores: dict[str, dict[int, Path]] = {}
    for cell, folder in finished:
        label = row_label(cell["backbone"], cell["method"], cell.get("variant", ""))
        scores.setdefault(label, {})[cell["seed"]] = folder / "scores" / "stream-test.npy"
    log = prepared.columns("test", ("item", "label", "time"))
    _, clicks = ages_and_clicks(prepared, log)
    stream_report.add_intervals(comparison, scores, log["label"], log["item"], clicks)
