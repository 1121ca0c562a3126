"""What needs no training: the rows that a method must beat to be worth anything.

* `constant`: the mean label of what has been seen.
* `item popularity so far`: positives of the item before the row's time, a counter that a live system has. It counts
  rows of the set being scored too, as they come, so it knows more than a method between two phases.
* `user mean + item mean`: the fraction of positives of the user and of the item in finished sets, each drawn towards
  the constant as if by 5 more rows of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mwuf_dist.config import PHASES
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.metrics import auc, log_loss
from mwuf_dist.training.results import NEXT_SETS

TRIVIAL = ("item popularity so far", "user mean + item mean", "constant")
_SMOOTHING_ROWS = 5.0


def trivial_rows(prepared: Prepared) -> list[dict[str, Any]]:
    """Returns `label` of each and, by phase, `auc_next`, `auc_test`, `logloss_next`, `logloss_test`; None for none."""
    columns = {split: prepared.columns(split, ("user", "item", "label", "time")) for split in NEXT_SETS}
    popularity = _popularity(columns)
    sums = _Sums(prepared)
    sums.add(prepared.columns("pretrain", ("user", "item", "label")))
    rows: list[dict[str, Any]] = [{"label": name, "phases": {phase: {} for phase in PHASES}} for name in TRIVIAL]
    for phase, name in enumerate(PHASES):
        if phase:
            sums.add(columns[NEXT_SETS[phase - 1]])
        for scoring, split in (("next", NEXT_SETS[phase]), ("test", "test")):
            of_set = columns[split]
            means = sums.means(of_set)
            constant = np.full(len(means), _logit(sums.constant))
            for row, logits in zip(rows, (popularity[split], _logit(means), constant), strict=True):
                found = auc(logits, of_set["label"]) if len(logits) else np.nan
                row["phases"][name][f"auc_{scoring}"] = None if np.isnan(found) else float(found)
                is_probability = row["label"] != TRIVIAL[0] and len(logits)
                loss = log_loss(logits, of_set["label"]) if is_probability else None
                row["phases"][name][f"logloss_{scoring}"] = loss
    return rows


class _Sums:
    """Rows and positives of users and items over finished sets."""

    def __init__(self, prepared: Prepared) -> None:
        self._of = {
            side: np.zeros((2, num)) for side, num in (("user", prepared.num_users), ("item", prepared.num_items))
        }

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Counts a finished set."""
        for side, sums in self._of.items():
            sums[0] += np.bincount(columns[side], minlength=sums.shape[1])
            sums[1] += np.bincount(columns[side], columns["label"], minlength=sums.shape[1])

    @property
    def constant(self) -> float:
        """Fraction of positives so far."""
        rows, positives = self._of["user"].sum(1)
        return float(positives / rows)

    def means(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the user mean + item mean - constant of some rows [n]."""
        found = -self.constant
        for side, sums in self._of.items():
            rows, positives = sums[:, columns[side]]
            found = found + (positives + _SMOOTHING_ROWS * self.constant) / (rows + _SMOOTHING_ROWS)
        return np.asarray(found)


def _logit(p: Any) -> Any:
    p = np.clip(p, 0.005, 0.995)
    return np.log(p) - np.log1p(-p)


def _popularity(columns: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns positives of its item that are earlier than each row, by set [n]."""
    item, time, label = (np.concatenate([one[name] for one in columns.values()]) for name in ("item", "time", "label"))
    moments = np.unique(time)
    key = item.astype(np.int64) * (len(moments) + 1)
    positives = np.sort((key + np.searchsorted(moments, time))[label == 1])
    out = {}
    for split, one in columns.items():
        first = one["item"].astype(np.int64) * (len(moments) + 1)
        now = first + np.searchsorted(moments, one["time"])
        out[split] = (np.searchsorted(positives, now) - np.searchsorted(positives, first)).astype(np.float64)
    return out
