"""Rows of a log that say what an earlier one has said, or its opposite."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from mwuf_dist.data.id_keys import mixed
from mwuf_dist.data.readers.gate import Rows


@dataclass(frozen=True)
class Repeated:
    """Says which rows repeat an earlier one, and how many contradict one.

    Attributes:
        again: of the rows that count, those that say what an earlier one has said, bool [R'].
        rule: `data.logs.repeated_rows`.
        num_opposed: how often one user, item and time has both labels, where the rule tells labels apart.
        opposed: such a row, by its position in the table; -1 where there is none.
    """

    again: np.ndarray
    rule: str
    num_opposed: int = 0
    opposed: int = -1

    def notes(self, log: Rows, advice: str = "") -> list[str]:
        """Says both; `advice` ends the sentence on what does not count."""
        num, said = int(self.again.sum()), []
        if num:
            alike = "user and item" if self.rule == "first_of_pair" else "user, item, time and label"
            said.append(f"{num:,} of {len(self.again):,} rows repeat an earlier one ({alike}) and do not count{advice}")
        return [*said, *self.of_opposed(log)]

    def of_opposed(self, log: Rows) -> list[str]:
        """Says how many rows contradict one."""
        if not self.num_opposed:
            return []
        user, item = (
            ids_of[int(of_row[self.opposed])].as_py()
            for ids_of, of_row in ((log.user_ids, log.user), (log.item_ids, log.item))
        )
        return [
            f"{self.num_opposed:,} times one user, item and time stands with label 0 and with label 1 (as user "
            f"{user!r} and item {item!r}): both rows count; keep one of them if it is one event"
        ]


def repeated(log: Rows, rule: str) -> Repeated:
    """Finds the rows that count but say what a row before them has said, by `data.logs.repeated_rows`."""
    rows = log.kept
    out = np.zeros(len(rows), dtype=bool)
    if rule == "keep":
        return Repeated(out, rule)
    pair = log.user[rows].astype(np.int64) * len(log.item_ids) + log.item[rows]
    time, label = log.time[rows], log.label[rows]
    told_apart = [pair] if rule == "first_of_pair" else [time, pair]
    # Most rows are the only ones with their hash: the others are few to sort by all keys.
    maybe = _with_equals(functools.reduce(lambda value, key: mixed(value) ^ key.astype(np.uint64), told_apart,
                                          np.zeros(len(rows), np.uint64)))  # fmt: skip
    keys = [time, pair] if rule == "first_of_pair" else [label, time, pair]
    order = maybe[np.lexsort([key[maybe] for key in keys])]  # Stable: of equal rows the first in the files comes first.
    same = np.ones(max(len(maybe) - 1, 0), dtype=bool)
    for key in told_apart:
        same &= key[order][1:] == key[order][:-1]
    is_other_label = label[order][1:] != label[order][:-1] if rule == "drop" else np.zeros(len(same), dtype=bool)
    out[order[1:][same & ~is_other_label]] = True
    opposed = np.sort(order[1:][same & is_other_label])  # Labels ascend within equal keys: one row of each pair.
    return Repeated(out, rule, len(opposed), int(rows[opposed[0]]) if len(opposed) else -1)


def _with_equals(hashes: np.ndarray) -> np.ndarray:
    """Places of hashes [R] that are there several times, ascending."""
    ascending = np.sort(hashes)
    again = ascending[1:][ascending[1:] == ascending[:-1]]
    return np.flatnonzero(np.isin(hashes, again)) if len(again) else np.empty(0, np.int64)
