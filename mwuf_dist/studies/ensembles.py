"""Ensembles of seeds: the mean logit of several finished runs of one row, as a row of its own.

Nothing is trained for them: they are made of the scores that the runs have left. What they cost is what their members
have cost together, and that is what their stages say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.config import PHASES, merge
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.comparison import row_label
from mwuf_dist.studies.records import Cell, Records, RowKey, row_key
from mwuf_dist.training.results import NEXT_SETS, phase_metrics


def ensemble_row(row: RowKey, size: int) -> RowKey:
    """Returns the row of the ensembles of a row: its variant says so."""
    dataset, backbone, method, variant = row
    return dataset, backbone, method, ", ".join(filter(None, [variant, f"mean of {size} seeds"]))


def with_ensembles(
    finished: Sequence[tuple[Cell, Path]], audits: Sequence[dict[str, Any]], size: int, prepared: Prepared
) -> Records:
    """Returns records of finished runs, and behind those of each row its ensembles.

    Of a row's seeds in their order `size` at a time make an ensemble; what is left over makes none. It counts as a cell
    of its first member's seed. Where no score of the members moves in a leak audit, no mean of them does.

    Args:
        finished: cells, each with the folder of its run.
        audits: of their rows.
        size: number of runs of an ensemble.
        prepared: their data.
    """
    rows: dict[RowKey, list[tuple[Cell, Path]]] = {}
    for cell, folder in finished:
        rows.setdefault(row_key(cell), []).append((cell, folder))
    records = Records([], list(audits))
    for row, members in rows.items():
        members.sort(key=lambda member: member[0]["seed"])
        records.cells += [cell for cell, _ in members]
        for start in range(0, len(members) - size + 1, size):
            cells, folders = zip(*members[start : start + size], strict=True)
            records.cells.append(_cell(cells, folders, prepared))
        own = {"row": row_label(*ensemble_row(row, size)[1:]), "num_scores": 0, "num_labels": 0}
        records.audits += [audit | own for audit in audits if audit["row"] == row_label(*row[1:])]
    return records


def _cell(members: Sequence[Cell], folders: Sequence[Path], prepared: Prepared) -> Cell:
    first = members[0]
    variant = ensemble_row(row_key(first), len(members))[-1]
    warm_rows = first["config"]["data"]["warm_rows"]
    return first | {
        "variant": variant,
        "config": merge(first["config"], {"method": {"variant": variant}}),
        "phases": {
            name: phase_metrics(prepared, phase, warm_rows, _mean_logits(folders, phase))
            for phase, name in enumerate(PHASES)
        },
        "stages": {stage: _sum([member["stages"].get(stage) for member in members]) for stage in first["stages"]},
        "scores": {},
    }


def _mean_logits(folders: Sequence[Path], phase: int) -> dict[str, np.ndarray | None]:
    """Returns mean logits of the sets that a phase is scored on [n], float64."""
    names = {split: f"{PHASES[phase]}-{split}.npy" for split in (NEXT_SETS[phase], "test")}
    return {
        split: np.mean([np.load(folder / "scores" / name).astype(np.float64) for folder in folders], axis=0)
        for split, name in names.items()
    }


def _sum(stages: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    # A member that found its data prepared has no stage `prepare`.
    samples, seconds = (sum(stage[key] for stage in stages if stage) for key in ("samples", "seconds"))
    return {"samples": samples, "seconds": seconds, "samples_per_s": samples / seconds if seconds else 0.0}
