"""Sets that hold one class only, whose AUC is not defined: which they are, and which N and K give each set both.

Said before training, so that nobody waits for figures that cannot come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mwuf_dist.config import DataConfig
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS, SplitRule, order_by

_WARM_ROWS_TRIED, _OLD_ABOVE_TRIED = 40, 24
_FURTHEST = 8.0  # N and K that are so many times as large, or as small, are no answer


@dataclass(frozen=True)
class LabelledRows:
    """Holds what decides the classes of each set, for any N and K.

    Attributes:
        counts: rows of each item [I].
        positives: positive rows of each item [I].
        item: item of each positive row [P].
        before: rows of its item before each of them [P].
    """

    counts: np.ndarray
    positives: np.ndarray
    item: np.ndarray
    before: np.ndarray

    @staticmethod
    def of(item: np.ndarray, time: np.ndarray, label: np.ndarray) -> LabelledRows:
        """Makes those of all rows [R], in the order of the raw file."""
        order = order_by(item, time)
        counts = np.bincount(item)
        before = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        positive = np.flatnonzero(label[order] == 1)
        of_positive = item[order][positive]
        return LabelledRows(
            counts, np.bincount(of_positive, minlength=len(counts)), of_positive, before[positive].astype(np.int64)
        )

    def classes(self, old_above: int, warm_rows: int) -> dict[str, tuple[int, int]]:
        """Returns rows and positives of each set by these N and K."""
        is_old = self.counts > old_above
        is_new = (self.counts >= 3 * warm_rows) & ~is_old
        of_new = self.before[is_new[self.item]]
        positives = np.bincount(np.minimum(of_new // warm_rows, 3), minlength=4).tolist()
        num_new, num_rows = int(is_new.sum()), int(self.counts[is_new].sum())
        rows = [num_new * warm_rows] * 3 + [num_rows - 3 * num_new * warm_rows]
        found = [(int(self.counts[is_old].sum()), int(self.positives[is_old].sum()))]
        return dict(zip(SPLITS, [*found, *zip(rows, positives, strict=True)], strict=True))

    def num_new(self, old_above: int, warm_rows: int) -> int:
        """Counts new items by these N and K."""
        return int(((self.counts >= 3 * warm_rows) & (self.counts <= old_above)).sum())

    def better(self, old_above: int, warm_rows: int, fewest_items: int = 1) -> tuple[int, int] | None:
        """Returns the N and K nearest to these with which each set has both classes; None where there are none near.

        `fewest_items`: old ones, and new ones, that there have to be.
        """
        for one_above, one_rows in _near(old_above, warm_rows):
            num_old = int((self.counts > one_above).sum())
            if min(num_old, self.num_new(one_above, one_rows)) < fewest_items:
                continue
            if has_both(self.classes(one_above, one_rows)):
                return one_above, one_rows
        return None


def has_both(classes: dict[str, tuple[int, int]]) -> bool:
    """Says whether each set has a positive and a negative."""
    return all(0 < positives < rows for rows, positives in classes.values())


def _near(old_above: int, warm_rows: int) -> Iterator[tuple[int, int]]:
    """Returns pairs of N and K, the nearest first: of two as near that with the same N."""

    def around(value: int, num: int) -> np.ndarray:
        return np.unique(np.geomspace(max(1, value / _FURTHEST), value * _FURTHEST, num).round().astype(np.int64))

    wanted = np.array([old_above, warm_rows])
    pairs = [
        (abs(np.log(np.array([n, k]) / wanted)), (int(n), int(k)))
        for n in {old_above, *around(old_above, _OLD_ABOVE_TRIED).tolist()}
        for k in {warm_rows, *around(warm_rows, _WARM_ROWS_TRIED).tolist()}
        if n >= 3 * k
    ]
    # Another N makes old items new, which changes the study more than another K does.
    return (pair for _, pair in sorted(pairs, key=lambda one: (2 * one[0][0] + one[0][1], one[1])))


def data_notes(prepared: Prepared, config: DataConfig) -> list[str]:
    """Says what to know of prepared data before training: what was not used, and sets with one class."""
    return [*prepared.notes, *one_class_notes(prepared, SplitRule.of(config))]


def one_class_notes(prepared: Prepared, rule: SplitRule) -> list[str]:
    """Returns sentences on the sets with one class, and on what would give them both; none where each set has both.

    Args:
        prepared: the data.
        rule: by which they were split.
    """
    sets = prepared.manifest["splits"]
    # By days there are no warm phases: rows of new items are scored, then learnt from, in one set.
    scored = SPLITS if rule.stream is None else ("pretrain", "test")
    classes = {name: (sets[name]["rows"], sets[name]["positives"]) for name in scored}
    if has_both(classes):
        return []
    lacking = [
        f"{name} has no {'positive' if not positives else 'negative'} among {rows:,} rows"
        for name, (rows, positives) in classes.items()
        if not 0 < positives < rows
    ]
    all_sets = ", ".join(f"{name} {positives:,} of {rows:,}" for name, (rows, positives) in classes.items())
    said = f"AUC is not defined, and is shown as –, where a set has one class: {'; '.join(lacking)}."
    said += f" Positives: {all_sets}."
    if (
        prepared.negatives_per_positive
        or rule.old_items_as_new
        or rule.new_since is not None
        or rule.stream is not None
    ):
        return [said]
    # Items under 3K rows are not at hand; a smaller K makes new ones of some of them, which takes no class away.
    better = rows_of(prepared).better(rule.old_above, rule.warm_rows)
    return [said, _advice(better, rule)]


def _advice(better: tuple[int, int] | None, rule: SplitRule) -> str:
    if better is None:
        return (
            f"No data.old_above and data.warm_rows near {rule.old_above} and {rule.warm_rows} give each set both "
            "classes: more rows of the scarcer class are needed."
        )
    old_above, warm_rows = better
    keys = [f"data.warm_rows = {warm_rows}"] if warm_rows != rule.warm_rows else []
    keys += [f"data.old_above = {old_above}"] if old_above != rule.old_above else []
    return f"With {' and '.join(keys)} each set has both classes."


def rows_of(prepared: Prepared) -> LabelledRows:
    """Makes those of the rows of old and new items."""
    parts = [prepared.columns(split, ("item", "time", "label", "row")) for split in SPLITS]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = order_by(columns["row"])
    return LabelledRows.of(*(columns[name][order] for name in ("item", "time", "label")))
