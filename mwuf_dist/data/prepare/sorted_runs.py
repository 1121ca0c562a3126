"""Rows on disk between two steps of `prepare`: Arrow files that are written whole and read in part, without a copy.

A *run* is such a file whose rows are sorted by something. A step that wants the rows of many runs in one order takes
the same range of every run and sorts what it has taken: the way of every external sort.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

Columns = dict[str, np.ndarray]  # name -> array [R]
Range = tuple[str, int, int]  # of a run: its path, first row, row after the last


def write(path: Path, columns: Columns) -> None:
    """Writes a run beside and renames it: whoever is killed leaves none, and who writes it again replaces it."""
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    batch = pa.record_batch([pa.array(column) for column in columns.values()], names=list(columns))
    with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    beside.rename(path)


def read(path: Path | str) -> Columns:
    """Returns the columns of a run, as views of the file."""
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    return {name: batch[name].to_numpy() for name in batch.schema.names}


def take(ranges: Sequence[Range]) -> Columns:
    """Returns the rows of ranges of runs, one after another."""
    parts = [(read(path), first, stop) for path, first, stop in ranges]
    return {name: np.concatenate([columns[name][a:b] for columns, a, b in parts]) for name in parts[0][0]}


def ranges_of(paths: Sequence[Path], key: str, first: int, stop: int) -> list[Range]:
    """Says where the rows with `first` <= key < `stop` lie in runs that are sorted by it."""
    out = []
    for path in paths:
        begin, end = np.searchsorted(read(path)[key], np.array([first, stop])).tolist()
        out.append((str(path), begin, end))
    return out


def cut(runs: Sequence[Columns], rank: int) -> list[int]:
    """Says where to cut runs that are sorted by (time, row), so that before the cuts lie the first `rank` rows of all.

    Args:
        runs: with `time` and, no two alike, `row`.
        rank: at most the number of rows.
    """

    def places(arrays: Sequence[np.ndarray], value: int, side: Literal["left", "right"]) -> list[int]:
        return [int(np.searchsorted(array, value, side)) for array in arrays]

    if rank == 0:
        return [0] * len(runs)
    times = [run["time"] for run in runs]
    time = _smallest([array for array in times if len(array)], lambda t: sum(places(times, t, "right")) >= rank)
    before = places(times, time, "left")
    ties = [run["row"][a:b] for run, a, b in zip(runs, before, places(times, time, "right"), strict=True)]
    missing = rank - sum(before)
    if not missing:
        return before
    row = _smallest([array for array in ties if len(array)], lambda r: sum(places(ties, r, "right")) >= missing)
    return [place + more for place, more in zip(before, places(ties, row, "right"), strict=True)]


def _smallest(arrays: Sequence[np.ndarray], enough: Callable[[int], bool]) -> int:
    """Returns the smallest whole number between the ends of sorted arrays that is enough, as every larger one is."""
    low, high = min(int(array[0]) for array in arrays), max(int(array[-1]) for array in arrays)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
