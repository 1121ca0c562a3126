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
of old items move nothing and get none, unless old items move: then users come from positive rows with old items. A
drawn row is nobody's event: U(v) and the counts of interactions leave it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mwuf_dist.data.id_keys import id_keys, mixed
from mwuf_dist.data.readers.negatives import MAX_DRAWS
from mwuf_dist.data.schema import WEIGHT
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.served_log import Log, NewRows, is_known, taken, together


def add_negatives(
    rows: NewRows,
    items: np.ndarray,
    prepared: Prepared,
    user_ids: pa.Array,
    run_log: Log,
    per_positive: int,
    seed: int,
    old_items: bool = False,
) -> NewRows:
    """Returns the rows with their negatives behind them.

    Args:
        rows: positives.
        items: index in the run of each of `rows.item_ids` [I'], -1 of one never seen.
        prepared: of the run.
        user_ids: raw IDs of its users [U].
        run_log: interactions that the run was trained on, of its own new items (and of old ones, where they move).
        per_positive: so many for each.
        seed: of the run's own negatives (`data.logs.negatives_seed`).
        old_items: rows of old items get negatives too.
    """
    of_run = rows.log | {"item": items[rows.log["item"]]}
    is_old = (of_run["item"] >= 0) & (of_run["item"] < prepared.num_old_items)
    wanted = ~is_known(of_run, run_log) & (old_items | ~is_old)
    source = np.repeat(np.flatnonzero(wanted), per_positive)
    activity, liked = _of_run(prepared, of_run["item"][source])
    # Of users with new items, or of those with old ones.
    source = source[activity.sum(axis=1)[is_old[source].astype(int)] > 0]
    number = np.arange(len(source)) % per_positive
    if not len(source):
        return rows
    user_keys, kind = id_keys(user_ids), is_old[source].astype(int)
    of_source = taken(rows.log, source)
    own, item = of_source["user_key"], of_run["item"][source].astype(np.int64)
    first = own ^ mixed(np.full(1, seed, dtype=np.uint64))
    for part in (id_keys(rows.item_ids)[of_source["item"]], of_source["time"].view(np.uint64), number.view(np.uint64)):
        first = mixed(first) + part

    def refused(place: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        likes = np.isin(item[place] * len(user_keys) + candidate, liked) & (item[place] >= 0)
        return likes | (user_keys[candidate] == own[place])

    drawn = picked(first, kind, activity, refused)
    kept = drawn >= 0
    negatives = taken(of_source, kept) | {
        "user": drawn[kept].astype(np.int32),
        "user_key": user_keys[drawn[kept]],
        "label": np.zeros(int(kept.sum()), dtype=np.int8),
    }
    if WEIGHT in negatives:  # a drawn row is no behaviour
        negatives[WEIGHT] = np.ones(int(kept.sum()), dtype=np.float32)
    return dataclasses.replace(rows, log=together([rows.log, negatives]), has_drawn=True)


def picked(
    first: np.ndarray,
    kind: np.ndarray,
    weights: np.ndarray,
    refused: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Picks one of E for each of n rows, in proportion to weights, by a hash and again where it is refused.

    Args:
        first: hashes of the rows [n], uint64.
        kind: which of the weights counts for each [n].
        weights: whole numbers [kinds, E]; those of a kind that a row is of are not all 0.
        refused: from places of rows [m] and what is picked for them [m] to what may not be, bool [m].

    Returns:
        What is picked, -1 where `MAX_DRAWS` were refused [n].
    """
    ends = np.cumsum(weights, axis=1)
    totals = ends[:, -1]
    before = np.cumsum(totals) - totals
    cumulated = (ends + before[:, None]).reshape(-1)
    drawn = np.full(len(first), -1, dtype=np.int64)
    open_ = np.arange(len(first))
    for attempt in range(MAX_DRAWS):
        size = totals[kind[open_]].astype(np.uint64)
        pick = (mixed(mixed(first[open_]) + np.uint64(attempt)) % size).astype(np.int64)
        candidate = np.searchsorted(cumulated, before[kind[open_]] + pick, side="right") % weights.shape[1]
        is_refused = refused(open_, candidate)
        drawn[open_[~is_refused]] = candidate[~is_refused]
        open_ = open_[is_refused]
    return drawn


def _of_run(prepared: Prepared, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts positive rows of each user of the run with new and with old items [2, U]; with the pairs of these items.

    The latter are item * U + user of each positive row.
    """
    wanted = np.zeros(prepared.num_items + 1, dtype=bool)
    wanted[items] = True  # -1 is the last
    num_users = prepared.num_users
    activity, pairs = np.zeros((2, num_users), dtype=np.int64), [np.empty(0, dtype=np.int64)]
    for split in prepared.manifest["splits"]:
        for part in prepared.in_parts(split, ("user", "item", "label")):
            part = taken(part, part["label"] == 1)
            is_old = part["item"] < prepared.num_old_items
            activity += [np.bincount(part["user"][of], minlength=num_users) for of in (~is_old, is_old)]
            part = taken(part, wanted[part["item"]])
            pairs.append(part["item"].astype(np.int64) * num_users + part["user"])
    return activity, np.concatenate(pairs)
