"""The files of histories: the events of each user in (time, position) order, and how many of them are before each row.

    histories/offsets.npy       int64 [U + 1]; the events of user u are offsets[u] to offsets[u + 1] - 1
    histories/items.npy         int32 [E]; item, `num_items` for any item that was dropped
    histories/labels.npy        int8 [E]
    histories/phases.npy        int8 [E]; warm sets that must be finished before the event may be seen: 0 for rows of
                                `pretrain` and of dropped items, 1, 2, 3 for rows of warm_a, warm_b, warm_c
    histories/times.npy         int64 [E]; in the unit of the rows (`Prepared.ticks_per_s`)
    histories/before-SPLIT.npy  int32 [rows]; for each row of a split, how many events of its user are strictly earlier

A row of `test` is no event, so it is in nobody's history; nor is any row that the split leaves out while old items play
new.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.data.prepare import sorted_runs
from mwuf_dist.data.shards import entry

FOLDER = "histories"


def join(scratch: Path, folder: Path, groups: range, splits: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Joins what the steps of prepare_steps.py have written.

    Args:
        scratch: where it lies.
        folder: the prepared folder.
        groups: numbers of the groups of users.
        splits: name -> what the manifest says of it.

    Returns:
        Path of each file in the folder -> {"bytes": its size, "crc32": of its content}, for the manifest.
    """
    (folder / FOLDER).mkdir()
    counts = np.concatenate([sorted_runs.read(scratch / f"counts-{number}")["counts"] for number in groups])
    path = folder / FOLDER / "offsets.npy"
    np.save(path, np.concatenate([[0], np.cumsum(counts)]))
    files = {f"{FOLDER}/{path.name}": entry(path)}
    events = [scratch / f"events-{number}" for number in groups]
    parts = {name: (events, name) for name in ("items", "labels", "phases", "times")}
    for split, about in splits.items():
        paths = [scratch / f"before-{split}-{part}" for part in range(len(about["files"]))]
        parts[f"before-{split}"] = paths, "before"
    for name, (paths, column) in parts.items():
        path = folder / FOLDER / f"{name}.npy"
        files[f"{FOLDER}/{path.name}"] = _concatenate(paths, column, path)
    return files


def _concatenate(paths: Sequence[Path], column: str, path: Path) -> dict[str, int]:
    """Writes a column of some runs as one .npy, which need not fit into memory; its entry in the manifest."""
    parts = [sorted_runs.read(part)[column] for part in paths] or [np.empty(0, dtype=np.int32)]
    shape = (sum(len(part) for part in parts),)
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            part.tofile(file)
    return entry(path)
