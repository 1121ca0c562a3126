"""Interactions since a run ended, as columns: the same row is told in any file, and rows have one order.

Two rows are the same interaction if they agree in user, item, time and label (whatever file they stand in). The order
of an item's interactions is by time, then by a hash of the user's raw ID, then by label: rows of several files have no
common position in a file, and an order that any of them had would make the result depend on how they were cut.

Where the run's rows have fields of their own or weights, these are columns too, under the names that they have in the
prepared data (`Prepared.row_columns`); of rows that agree in all else the one with the smallest of them counts.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.data.schema import WEIGHT
from mwuf_dist.training.item_rule.rule import item_groups

LOG_COLUMNS = {"item": np.int32, "user": np.int32, "user_key": np.uint64, "time": np.int64, "label": np.int8}

Log = dict[str, np.ndarray]


@dataclass(frozen=True)
class NewRows:
    """New interactions as they stand in the files, IDs made plain.

    Attributes:
        item_ids: distinct raw IDs, ascending [I'].
        log: columns `LOG_COLUMNS`; `item` is a position in `item_ids`, `user` the index of a user or -1, never seen.
        num_unseen_users: number of distinct users whom the run has never seen.
        num_read: rows of the files, those that are left out too.
        notes: what was not used, and what may surprise, a sentence each.
        has_drawn: rows of label 0 are drawn ones, which were not in the files and are counted nowhere.
        unseen_users: raw IDs of the users whom the run has never seen; None for none.
    """

    item_ids: pa.Array
    log: Log
    num_unseen_users: int
    num_read: int = 0
    notes: tuple[str, ...] = ()
    has_drawn: bool = False
    unseen_users: pa.Array | None = None

    @property
    def num_rows(self) -> int:
        """Rows that count, drawn ones too."""
        return len(self.log["item"])

    def num_counted(self, log: Log) -> int:
        """Says how many rows of a part of the log stood in the files."""
        return int(log["label"].sum(dtype=np.int64)) if self.has_drawn else len(log["item"])


def find(ids: pa.Array, known: pa.Array) -> np.ndarray:
    """Returns the position of each of `ids` [n] among known ones, -1 where it is none of them; int32 [n]."""
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    return pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32)


def distinct(*ids: pa.Array) -> pa.Array:
    """Returns the distinct ones of raw IDs of one type, ascending."""
    found = pc.unique(pa.concat_arrays(ids))
    return found.take(pc.array_sort_indices(found))


def in_order(log: Log) -> np.ndarray:
    """Returns the rows of a log by (item, time, user, label), the first of equal ones only; int64 [n']."""
    beside = [log[name] for name in log if name not in LOG_COLUMNS]
    order = np.lexsort([*beside, log["label"], log["user_key"], log["time"], log["item"]])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for name in ("item", "time", "user_key", "label"):
        values = log[name][order]
        same &= values[1:] == values[:-1]
    return order[np.concatenate([np.ones(min(len(order), 1), dtype=bool), ~same])]


def is_known(log: Log, known: Log) -> np.ndarray:
    """Says which rows of a log [n] stand in another, bool; both name items alike."""
    if not len(known["item"]) or not len(log["item"]):
        return np.zeros(len(log["item"]), dtype=bool)
    both = {name: np.concatenate([known[name], log[name]]) for name in ("item", "time", "user_key", "label")}
    order = np.lexsort([both["label"], both["user_key"], both["time"], both["item"]])  # stable: known ones come first
    same = np.ones(len(order) - 1, dtype=bool)
    for values in both.values():
        same &= values[order][1:] == values[order][:-1]
    run = np.cumsum(np.concatenate([[True], ~same])) - 1  # which group of equal rows
    first_known = np.zeros(run[-1] + 1, dtype=bool)
    first_known[run[order < len(known["item"])]] = True
    out = np.empty(len(order), dtype=bool)
    out[order] = first_known[run]
    return out[len(known["item"]) :]


def empty_log(row_columns: Sequence[str] = ()) -> Log:
    """Returns a log without rows, with the columns that the run's rows have beside."""
    kinds = LOG_COLUMNS | {name: np.float32 if name == WEIGHT else np.int32 for name in row_columns}
    return {name: np.empty(0, dtype=kind) for name, kind in kinds.items()}


def together(logs: list[Log]) -> Log:
    """Returns several logs of the same columns one after another."""
    return {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}


def own_values(log: Log) -> np.ndarray | None:
    """Returns fields of the rows themselves [n, Fr], int32; None where they have none."""
    fields = [values for name, values in log.items() if name not in LOG_COLUMNS and name != WEIGHT]
    return np.stack(fields, axis=1) if fields else None


def ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns all of first[i] ... first[i] + counts[i] - 1, one after another."""
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))


def of_items(log: Log, items: np.ndarray) -> tuple[Log, np.ndarray]:
    """Returns the rows of some items [n], ascending, item after item in their order, and how many each has [n]."""
    log = taken(log, np.isin(log["item"], items))
    log = taken(log, np.argsort(log["item"], kind="stable"))
    return log, np.diff(np.searchsorted(log["item"], np.append(items, np.iinfo(np.int32).max)))


def in_groups(log: Log, counts: np.ndarray, num_rows: int) -> Iterator[tuple[np.ndarray, Log]]:
    """Yields items cut into groups as by `item_groups`, by position, with the rows of each group.

    Args:
        log: rows of n items, item after item.
        counts: how many each has [n].
        num_rows: of a group, about.
    """
    ends = np.cumsum(counts)
    for group in item_groups(counts, num_rows):
        yield group, taken(log, np.arange(int(ends[group[0]] - counts[group[0]]), int(ends[group[-1]])))


def taken(log: Log, rows: np.ndarray) -> Log:
    """Returns some rows of a log, by position or mask."""
    return {name: values[rows] for name, values in log.items()}
