"""Probes: small models that see only what should tell nothing about the label.

Four of them, each a logistic regression on a few features in quantile bins: the time of a row, how active its user
is, how popular its item is, and the user's history without the item. Where one of them tells positives from
negatives, part of every AUC on that set may be that and not the item: rows of label 0 were drawn at other times or
for other users, say, or a history holds what has not happened. In a log with labels of its own some of it may be real
(people who rate much rate harder); the reader of a report should know it all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mwuf_dist.config import Config, Events
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.studies.trivial import trivial_rows

PROBES = ("time", "user activity", "item popularity", "history without the item")
_MOST_ROWS = 40_000  # of a set: a random half of the users, and so on, so that all rows of a user stay together
_BINS = 16  # of a feature
_RIDGE = 1.0
_NEWTON_STEPS = 8
_LAST_EVENTS = 20


def probe(prepared: Prepared, events: Events) -> dict[str, dict[str, float | None]]:
    """Returns AUC of each probe on each set; None where a set has one class only.

    A probe is fitted on half of the users of a set and tried on the other half, both ways; the mean of the two.

    Args:
        prepared: the data set.
        events: of `data.events`: what histories hold.
    """
    found: dict[str, dict[str, float | None]] = {name: {} for name in PROBES}
    earlier = _Counts(prepared)
    for index, split in enumerate(SPLITS):
        rows = _Rows(prepared, split)
        features = {
            "time": [rows.time],
            "user activity": earlier.of_users(rows),
            "item popularity": earlier.of_items(rows),
            "history without the item": _history(prepared, events, split, max(0, index - 1), rows),
        }
        for name, columns in features.items():
            found[name][split] = _tried(columns, rows.label, rows.half)
        earlier.add(split)
    return found


class _Rows:
    """Some rows of a set: all rows of some users.

    Attributes:
        place: of each in the set [n].
        user, item, label, time: of each [n].
        half: which half of the users theirs is in, bool [n].
    """

    def __init__(self, prepared: Prepared, split: str) -> None:
        columns = prepared.columns(split, ("user", "item", "label", "time"))
        order = np.random.default_rng(11).permutation(prepared.num_users)
        rank = order[columns["user"]]
        counts = np.bincount(rank, minlength=prepared.num_users)
        last = int(np.searchsorted(np.cumsum(counts), _MOST_ROWS))
        self.place = np.flatnonzero(rank <= last)
        self.user, self.item, self.label, self.time = (columns[name][self.place] for name in columns)
        self.half = rank[self.place] % 2 == 0
        self.counted_of_user, self.counted_of_item = (
            np.bincount(columns[side][prepared.is_counted(columns["label"])], minlength=num)
            for side, num in (("user", prepared.num_users), ("item", prepared.num_items))
        )


class _Counts:
    """Rows and positives of users and items in the sets so far."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._of = {
            side: np.zeros((2, num)) for side, num in (("user", prepared.num_users), ("item", prepared.num_items))
        }

    def add(self, split: str) -> None:
        """Counts a set that is finished."""
        columns = self._prepared.columns(split, ("user", "item", "label"))
        for side, counts in self._of.items():
            counts[0] += np.bincount(columns[side], minlength=counts.shape[1])
            counts[1] += np.bincount(columns[side][columns["label"] == 1], minlength=counts.shape[1])

    def of_users(self, rows: _Rows) -> list[np.ndarray]:
        """Says how active the user is: rows so far and in this set.

        Where negatives are drawn, the fraction of positives.

        In a log with labels of its own that fraction is the user's taste, which is no fault.
        """
        counts, positives = self._of["user"][:, rows.user]
        activity = [counts, rows.counted_of_user[rows.user]]
        return [*activity, positives / np.maximum(counts, 1)] if self._prepared.negatives_per_positive else activity

    def of_items(self, rows: _Rows) -> list[np.ndarray]:
        """Says how popular the item is: rows that count so far and in this set."""
        counts, positives = self._of["item"][:, rows.item]
        so_far = positives if self._prepared.negatives_per_positive else counts
        return [so_far, rows.counted_of_item[rows.item]]


def _history(prepared: Prepared, events: Events, split: str, num_finished: int, rows: _Rows) -> list[np.ndarray]:
    """Counts what a row looks back at: events, those and the positive ones of the last 20; with the gap."""
    cpu = torch.device("cpu")
    histories = Histories(prepared, num_finished, _LAST_EVENTS, cpu, events=events)
    before = histories.before(split, 0, prepared.num_rows(split))[rows.place]
    users = torch.from_numpy(rows.user).long()
    last = histories.of(users, torch.from_numpy(before).long(), in_pretrain=False)
    sums = torch.cat([torch.zeros(1), torch.cumsum(last.labels, 0)])
    positives = sums[last.offsets[1:]] - sums[last.offsets[:-1]]
    # Since the event before, of any set; where there is none, since the first row of all.
    times, place = histories.load("times"), histories.load("offsets")[rows.user] + before - 1
    since = rows.time - np.where(before > 0, times[np.maximum(place, 0)], rows.time.min(initial=0))
    return [before, last.lengths.numpy(), positives.numpy(), since]


def without_sitting(prepared: Prepared, gap_s: float) -> dict[str, float]:
    """Gives fraction of the rows of each set before which the user has no event that is older by more than the gap."""
    histories = Histories(prepared, len(SPLITS) - 2, 0, torch.device("cpu"), "all", "all", max(gap_s, 0.0))
    found = {}
    for split in SPLITS:
        moments = histories.before(split, 0, prepared.num_rows(split))
        found[split] = round(float((moments >> 32 == 0).mean()), 4) if len(moments) else 0.0
    return found


def _tried(columns: list[np.ndarray], label: np.ndarray, half: np.ndarray) -> float | None:
    """Returns the mean of the AUCs on each half of a model of the other half."""
    found = []
    for own in (half, ~half):
        if min(len(np.unique(label[own])), len(np.unique(label[~own]))) < 2:
            return None
        edges = [_edges(column[own]) for column in columns]
        weights = _fit(_one_hot(columns, edges, own), label[own])
        found.append(auc(_one_hot(columns, edges, ~own) @ weights, label[~own]))
    return float(np.mean(found))


def _edges(column: np.ndarray) -> np.ndarray:
    return np.unique(np.quantile(column, np.linspace(0, 1, _BINS + 1)[1:-1], method="lower"))


def _one_hot(columns: list[np.ndarray], edges: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Returns a column of ones and one for each bin of each feature [n, 1 + bins]."""
    parts = [np.ones((int(rows.sum()), 1))]
    for column, bounds in zip(columns, edges, strict=True):
        # A value at a bound is in the bin below it, so that a feature with few values has a bin for each.
        parts.append(np.eye(len(bounds) + 1)[np.searchsorted(bounds, column[rows], side="left")])
    return np.concatenate(parts, axis=1)


def _fit(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns weights [m] of the logistic regression with a small ridge, by Newton's method."""
    weights, penalty = np.zeros(x.shape[1]), _RIDGE * np.eye(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - label) + _RIDGE * weights
        weights = weights - np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalty, gradient)
    return weights


def without_training(prepared: Prepared, config: Config) -> dict[str, Any]:
    """Says of the data before any method: `trivial`, `probes` and `sittings`, as JSON can hold it."""
    found: dict[str, Any] = {"trivial": trivial_rows(prepared), "probes": {}, "sittings": {}}
    gap_s = getattr(config.backbone, "recent_gap_s", -1.0) if getattr(config.backbone, "recent", ()) else -1.0
    if "histories/times.npy" not in prepared.manifest["histories"]:
        return found
    for name, sets in probe(prepared, config.data.events).items():
        found["probes"][name] = {split: None if value is None else round(value, 4) for split, value in sets.items()}
    if gap_s >= 0:
        found["sittings"] = {"gap_s": gap_s, "rows": without_sitting(prepared, gap_s)}
    return found
