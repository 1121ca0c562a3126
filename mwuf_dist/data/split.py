"""The rule that makes old and new items and their splits: pure functions on arrays.

An old item has more than N rows, a new item between 3K and N, the others are dropped. `pretrain` holds all rows of old
items; `warm_a`, `warm_b` and `warm_c` the first, second and third K rows by time of each new item, `test` the rest.
Rows of one second are ordered by their place in the raw file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwuf_dist.config import UserError

SPLITS = ("pretrain", "warm_a", "warm_b", "warm_c", "test")


@dataclass(frozen=True)
class SplitRule:
    """The keys of section `data` that decide the split.

    Attributes:
        old_above: N.
        warm_rows: K.
        old_items_as_new: keep only old items; a random fifth of them, cut to their first N rows, plays new. Choices
            made on this split never see a row of a really new item.
        old_items_as_new_seed: which fifth.
    """

    old_above: int
    warm_rows: int
    old_items_as_new: bool = False
    old_items_as_new_seed: int = 0


@dataclass(frozen=True)
class Split:
    """Which items are old and new, and the rows of each split.

    Attributes:
        item_order: raw item rows [num_old_items + num_new_items], old ones first, each group ascending.
        num_old_items: how many of them are old.
        rows: split name -> indices into the interactions, ascending by (time, place in the raw file).
    """

    item_order: np.ndarray
    num_old_items: int
    rows: dict[str, np.ndarray]

    @property
    def num_new_items(self) -> int:
        """Number of new items."""
        return len(self.item_order) - self.num_old_items


def split_rows(item: np.ndarray, time: np.ndarray, num_items: int, rule: SplitRule) -> Split:
    """Applies the rule.

    Args:
        item: the item of each row [R], in raw file order.
        time: its time [R].
        num_items: number of raw items.
        rule: the thresholds.

    Raises:
        UserError: the thresholds contradict each other, or no item is old, or none is new, or `test` is empty.
    """
    smallest_new = 3 * rule.warm_rows
    if rule.old_above < smallest_new:
        raise UserError(
            f"data.old_above = {rule.old_above} is below 3 * data.warm_rows = {smallest_new}, so that no item can be "
            "new: raise data.old_above or lower data.warm_rows"
        )
    counts = np.bincount(item, minlength=num_items)
    is_old = counts > rule.old_above
    is_new = (counts >= smallest_new) & ~is_old
    if rule.old_items_as_new:
        is_old, is_new = _old_ones_play_new(is_old, rule)
        counts = np.where(is_old, counts, np.where(is_new, np.minimum(counts, rule.old_above), 0))
    _refuse_empty_groups(counts, is_old, is_new, rule)
    # Only rows that stay are sorted: most rows of a log may be those of dropped items.
    rows = {"pretrain": _by_time(np.flatnonzero(is_old[item]), time)}
    of_new = _by_time(np.flatnonzero(is_new[item]), time)
    rank = _rank_within_item(item[of_new], num_items)
    for index, name in enumerate(SPLITS[1:]):
        first = index * rule.warm_rows
        end = first + rule.warm_rows if name != "test" else rule.old_above
        rows[name] = of_new[(rank >= first) & (rank < end)]
    old, new = np.flatnonzero(is_old), np.flatnonzero(is_new)
    if not len(rows["test"]):
        raise UserError(
            f"each of the {len(new)} new items has exactly 3 * data.warm_rows = {smallest_new} rows, so that `test` is "
            "empty: lower data.warm_rows"
        )
    return Split(np.concatenate([old, new]), len(old), rows)


def _by_time(rows: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Rows, given ascending, by (time, place) [R']."""
    time = time[rows]
    if not len(rows) or (time[1:] >= time[:-1]).all():
        return rows
    first, last = int(time.min()), int(time.max())
    bits = len(rows).bit_length()
    if (last - first).bit_length() + bits > 63:
        return rows[np.argsort(time, kind="stable")]
    # One sort of time and place together, which numpy vectorises; a stable argsort it does not.
    key = ((time - first) << bits) | np.arange(len(rows))
    key.sort()
    return rows[key & ((1 << bits) - 1)]


def _rank_within_item(item: np.ndarray, num_items: int) -> np.ndarray:
    """How many earlier rows [R] have the same item."""
    by_item = np.argsort(item, kind="stable")
    counts = np.bincount(item, minlength=num_items)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(item), dtype=np.int64)
    rank[by_item] = np.arange(len(item)) - np.repeat(starts, counts)
    return rank


def _old_ones_play_new(is_old: np.ndarray, rule: SplitRule) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the items that stay old and of those that play new, cut to N rows each; the really new ones go."""
    old = np.flatnonzero(is_old)
    plays_new = np.zeros(len(is_old), dtype=bool)
    generator = np.random.default_rng(rule.old_items_as_new_seed)
    plays_new[generator.permutation(old)[: round(len(old) / 5)]] = True
    return is_old & ~plays_new, plays_new


def _refuse_empty_groups(counts: np.ndarray, is_old: np.ndarray, is_new: np.ndarray, rule: SplitRule) -> None:
    if is_old.any() and is_new.any():
        return
    missing = "new" if is_old.any() else "old"
    too_few = int((counts < 3 * rule.warm_rows).sum())
    raise UserError(
        f"no item is {missing}: of {len(counts)} items, {int(is_old.sum())} have more than data.old_above = "
        f"{rule.old_above} rows (old), {int(is_new.sum())} between 3 * data.warm_rows = {3 * rule.warm_rows} and that "
        f"(new), {too_few} fewer (dropped); the most rows of an item are {int(counts.max(initial=0))}. "
        f"{'Raise' if missing == 'new' else 'Lower'} data.old_above or lower data.warm_rows"
    )
