"""Rows of label 0 for new interactions that are positives only, as the run's own logs were.

The rule follows that of `prepare` (`data/readers/negatives.py`) as far as a row and the run alone can, so that the
state does not depend on how rows were cut into files, on their order, or on the number of ranks. There, a new item
meets for each of its positives n users of positive rows with other new items, at their times, who never like it. Here
the j-th negative of a positive row (user, item, time) is the user whom a hash of (user, item, time, seed, j) picks
among the run's users in proportion to their positive rows with new items in the run's sets: the same users in the same
proportions; only their times are the row's own, as the job reads no time but for the order of an item's rows. A user
is picked again, up to 20 times, who is the row's own or has a positive row with the item in the run's sets. Unlike
`prepare`, the rule does not know what comes later: who is drawn today may click tomorrow, and was a negative at the
time all the same. Positive rows that the run has been trained on have their negatives there and get no others; those
of old items move nothing and get none. A drawn row is nobody's event: U(v) and the counts of interactions leave it
out.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from mwuf_dist.data.id_keys import id_keys, mixed
from mwuf_dist.data.readers.negatives import MAX_DRAWS
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.served_log import Log, NewRows, is_known, taken, together

# Rows of the run read at once.
_READ_ROWS = 1 << 22


def add_negatives(
    rows: NewRows, items: np.ndarray, prepared: Prepared, user_ids: pa.Array, run_log: Log, per_positive: int, seed: int
) -> NewRows:
    """The rows with their negatives behind them.

    Args:
        rows: positives.
        items: index in the run of each of `rows.item_ids` [I'], -1 of one never seen.
        prepared: of the run.
        user_ids: raw IDs of its users [U].
        run_log: interactions that the run was trained on, of its own new items.
        per_positive: so many for each.
        seed: of the run's own negatives (`data.logs.negatives_seed`).
    """
    of_run = rows.log | {"item": items[rows.log["item"]]}
    is_old = (of_run["item"] >= 0) & (of_run["item"] < prepared.num_old_items)
    source = np.repeat(np.flatnonzero(~is_old & ~is_known(of_run, run_log)), per_positive)
    number = np.arange(len(source)) % per_positive
    activity, liked = _of_run(prepared, of_run["item"][source])
    if not len(source) or not activity.any():
        return rows
    user_keys, cumulated = id_keys(user_ids), np.cumsum(activity)
    of_source = taken(rows.log, source)
    own, item = of_source["user_key"], of_run["item"][source].astype(np.int64)
    first = own ^ mixed(np.full(1, seed, dtype=np.uint64))
    for part in (id_keys(rows.item_ids)[of_source["item"]], of_source["time"].view(np.uint64), number.view(np.uint64)):
        first = mixed(first) + part
    drawn = np.full(len(source), -1, dtype=np.int64)
    open_ = np.arange(len(source))
    for attempt in range(MAX_DRAWS):
        pick = (mixed(mixed(first[open_]) + np.uint64(attempt)) % np.uint64(cumulated[-1])).astype(np.int64)
        candidate = np.searchsorted(cumulated, pick, side="right")
        refused = user_keys[candidate] == own[open_]
        refused |= np.isin(item[open_] * len(activity) + candidate, liked) & (item[open_] >= 0)
        drawn[open_[~refused]] = candidate[~refused]
        open_ = open_[refused]
    kept = drawn >= 0
    negatives = taken(of_source, kept) | {
        "user": drawn[kept].astype(np.int32),
        "user_key": user_keys[drawn[kept]],
        "label": np.zeros(int(kept.sum()), dtype=np.int8),
    }
    return dataclasses.replace(rows, log=together([rows.log, negatives]), has_drawn=True)


def _of_run(prepared: Prepared, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positive rows with new items of each user of the run [U], pairs item * U + user of positives of these items)."""
    wanted = np.zeros(prepared.num_items + 1, dtype=bool)
    wanted[items] = True  # -1 is the last
    activity, pairs = np.zeros(prepared.num_users, dtype=np.int64), [np.empty(0, dtype=np.int64)]
    for split in prepared.manifest["splits"]:
        num_rows = prepared.num_rows(split)
        for first in range(0, num_rows, _READ_ROWS):
            part = prepared.read_rows(split, first, min(first + _READ_ROWS, num_rows), ("user", "item", "label"))
            part = taken(part, part["label"] == 1)
            of_new = part["user"][part["item"] >= prepared.num_old_items]
            activity += np.bincount(of_new, minlength=len(activity))
            part = taken(part, wanted[part["item"]])
            pairs.append(part["item"].astype(np.int64) * len(activity) + part["user"])
    return activity, np.concatenate(pairs)
