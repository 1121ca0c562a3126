"""The pieces of work of `prepare`. Each reads and writes files of a scratch folder and holds a few million rows.

    read_piece         raw rows as they come                                  -> chunks, and the IDs that are in them
    new_item_rows      a chunk: its rows of new items, by item                -> a run of each chunk
    split_new_items    some new items of all those runs: the splits of rows   -> a run of each group of items, by row
    rows_by_user       a chunk: the rows that are in a split or an event, by user
    histories          some users of all those runs: their events, and how many are before each row of a split
                                                                              -> runs of each split, by (time, row)
    shard              a range of all runs of a split                         -> a Parquet file

What is written does not depend on how rows were cut into chunks and entities into groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.data import schema, shards
from mwuf_dist.data.prepare import sorted_runs
from mwuf_dist.data.prepare.sorted_runs import Columns, Range
from mwuf_dist.data.schema import INTERACTION_TYPES, SET, row_types
from mwuf_dist.data.split import DROPPED, LEFT_OUT, SPLITS, SplitRule, order_by, splits_of_new_rows

PRETRAIN, TEST = SPLITS.index("pretrain"), SPLITS.index("test")
_EVENT_OF_DROPPED = len(SPLITS)  # beside the indices of SPLITS: an event that is in no split
_LEFT_OUT = -1  # neither
_DENSE_IDS = 1 << 24  # IDs below this are looked up in a table, however few they are.


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of the raw file.

    Attributes:
        name: of its files.
        start: position of its first row in the raw file.
        num_rows: number of rows.
    """

    name: str
    start: int
    num_rows: int

    @property
    def places(self) -> tuple[int, int]:
        """Position of its first row and of the row after its last."""
        return self.start, self.start + self.num_rows


def read_piece(
    read: Callable[[Any], Iterator[Columns]], piece: Any, scratch: Path, number: int, positives_count: bool
) -> list[tuple[str, int]]:
    """Writes the rows of a piece of the raw data, and how many of each item N and K count: all, or the positives.

    Returns:
        (name, number of rows) of each chunk.
    """
    chunks: list[tuple[str, int]] = []
    blocks: list[Columns] = []

    def finish() -> None:
        name = f"{number:06d}-{len(chunks):06d}"
        columns = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
        sorted_runs.write(scratch / f"chunk-{name}", columns)
        for side in ("user", "item"):
            counted = columns[side]
            if side == "item" and positives_count:
                counted = counted[columns["label"] == 1]
            ids, num_rows = np.unique(counted, return_counts=True)
            sorted_runs.write(scratch / f"{side}s-{name}", {"ids": ids.astype(np.int64), "rows": num_rows})
        chunks.append((name, len(columns["item"])))
        blocks.clear()

    for block in read(piece):
        blocks.append(block)
        if sum(len(one["item"]) for one in blocks) >= schema.PIECE_ROWS:
            finish()
    if blocks:
        finish()
    return chunks


def first_time(scratch: Path, chunk: Chunk) -> int:
    """Returns the earliest time of a chunk's rows."""
    return int(sorted_runs.read(scratch / f"chunk-{chunk.name}")["time"].min())


def rows_before(
    scratch: Path, chunk: Chunk, moment: int, positives_count: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds of a chunk's rows before a time the users, the items, and how many rows (or positives) each item has."""
    columns = sorted_runs.read(scratch / f"chunk-{chunk.name}")
    is_before = columns["time"] < moment
    if positives_count:
        is_before &= columns["label"] == 1
    items, num_rows = np.unique(columns["item"][is_before], return_counts=True)
    return np.unique(columns["user"][is_before]).astype(np.int64), items.astype(np.int64), num_rows


def write_table(path: Path, ids: np.ndarray, values: np.ndarray) -> None:
    """Writes a table for `look_up`: the value of each ID; IDs ascend."""
    if not len(ids) or (ids[0] >= 0 and ids[-1] < max(_DENSE_IDS, 4 * len(ids))):
        dense = np.zeros(int(ids[-1]) + 1 if len(ids) else 0, dtype=values.dtype)
        dense[ids] = values
        sorted_runs.write(path, {"values": dense})
    else:
        sorted_runs.write(path, {"ids": ids, "values": values})


def look_up(path: Path, ids: np.ndarray) -> np.ndarray:
    """Returns the value of each of these IDs, which are all in the table."""
    table = sorted_runs.read(path)
    return table["values"][np.searchsorted(table["ids"], ids) if "ids" in table else ids]


def new_item_rows(scratch: Path, chunk: Chunk, num_old_items: int) -> None:
    """Writes a chunk's rows of new items, by (item, time, row)."""
    columns = sorted_runs.read(scratch / f"chunk-{chunk.name}")
    index = look_up(scratch / "item-table", columns["item"])
    rows = np.flatnonzero(index >= num_old_items)
    item, time = index[rows], columns["time"][rows]
    order = order_by(item, time)
    run = {"item": item[order], "time": time[order], "row": rows[order] + chunk.start}
    if SET in columns:
        run[SET] = columns[SET][rows][order]
    sorted_runs.write(scratch / f"new-{chunk.name}", run)


def split_new_items(
    scratch: Path, chunks: Sequence[Chunk], number: int, first: int, stop: int, rule: SplitRule, day_0: int
) -> None:
    """Writes the split of each row of some new items, by row."""
    rows = sorted_runs.take(
        sorted_runs.ranges_of([scratch / f"new-{chunk.name}" for chunk in chunks], "item", first, stop)
    )
    # Where rows of label 0 are drawn, the source has said in which set they are.
    split = rows[SET] if SET in rows else splits_of_new_rows(rows["item"], rows["time"], rule, day_0)
    order = order_by(rows["row"])
    sorted_runs.write(scratch / f"split-{number}", {"row": rows["row"][order], "split": split[order]})


def rows_by_user(
    scratch: Path, chunk: Chunk, num_old_items: int, num_items: int, num_groups: int, day_0: int | None
) -> tuple[int, int]:
    """Writes a chunk's rows that are in a split or an event of a dropped item, by (user, row).

    Returns:
        Number and positives of the rows of items that are left out while old ones play new.
    """
    columns = dict(sorted_runs.read(scratch / f"chunk-{chunk.name}"))
    item = look_up(scratch / "item-table", columns["item"])
    split = np.full(len(item), _LEFT_OUT, dtype=np.int8)
    is_old = (item >= 0) & (item < num_old_items)
    split[is_old if day_0 is None else is_old & (columns["time"] < day_0)] = PRETRAIN
    split[item == DROPPED] = _EVENT_OF_DROPPED
    for number in range(num_groups):
        path, first, stop = sorted_runs.ranges_of([scratch / f"split-{number}"], "row", *chunk.places)[0]
        of_new = sorted_runs.read(path)
        split[of_new["row"][first:stop] - chunk.start] = of_new["split"][first:stop]
    really_new = item == LEFT_OUT
    rows = np.flatnonzero(split != _LEFT_OUT)
    user = look_up(scratch / "user-table", columns.pop("user")[rows])
    order = order_by(user)
    rows = rows[order]
    columns["item"] = np.where(item < 0, np.int32(num_items), item)
    run = {"user": user[order]} | {name: column[rows] for name, column in columns.items()}
    sorted_runs.write(scratch / f"user-{chunk.name}", run | {"row": rows + chunk.start, "split": split[rows]})
    return int(really_new.sum()), int(columns["label"][really_new].sum(dtype=np.int64))


def histories(scratch: Path, chunks: Sequence[Chunk], number: int, first: int, stop: int, only_positives: bool) -> None:
    """Writes the events of users `first` to `stop`, and their rows of each split, by (time, row).

    `only_positives`: rows of label 0 are drawn, and no events. As each stands before its positive, both have the same
    events before them.
    """
    columns = sorted_runs.take(
        sorted_runs.ranges_of([scratch / f"user-{chunk.name}" for chunk in chunks], "user", first, stop)
    )
    order = order_by(columns["user"], columns["time"])
    columns = {name: column[order] for name, column in columns.items()}
    split, user = columns.pop("split"), columns["user"] - first
    is_event = split != TEST
    if only_positives:
        is_event &= columns["label"] == 1
    counts = np.bincount(user[is_event], minlength=stop - first)
    before = np.cumsum(is_event) - is_event - (np.cumsum(counts) - counts)[user]
    columns["before"] = before.astype(np.int32)
    phase = np.where(split == _EVENT_OF_DROPPED, np.int8(PRETRAIN), split)
    events = {"items": columns["item"], "labels": columns["label"], "phases": phase, "times": columns["time"]}
    sorted_runs.write(scratch / f"events-{number}", {name: column[is_event] for name, column in events.items()})
    sorted_runs.write(scratch / f"counts-{number}", {"counts": counts})
    for index, name in enumerate(SPLITS):
        rows = np.flatnonzero(split == index)
        rows = rows[order_by(columns["time"][rows], columns["row"][rows])]
        sorted_runs.write(scratch / f"{name}-{number}", {key: column[rows] for key, column in columns.items()})


def shard(
    scratch: Path, folder: Path, split: str, part: int, ranges: Sequence[Range], group_rows: int
) -> dict[str, Any]:
    """Writes a file of a split; its entry in the manifest, and its positives."""
    columns = sorted_runs.take(ranges)
    order = order_by(columns["time"], columns["row"])
    sorted_runs.write(scratch / f"before-{split}-{part}", {"before": columns.pop("before")[order]})
    sorted_columns = {
        name: columns[name][order] for name in (*INTERACTION_TYPES, *row_types(columns), "row") if name in columns
    }
    entry = shards.write_file(folder, f"{split}/part-{part:05d}.parquet", sorted_columns, group_rows, scratch)
    return entry | {"positives": int(columns["label"].sum(dtype=np.int64))}
