"""The split of rows in memory, made of the two functions that `prepare` applies piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwuf_dist.data.split import NO_SPLIT, SPLITS, SplitRule, item_roles, order_by, splits_of_new_rows


@dataclass(frozen=True)
class Split:
    """Items in their new order, old ones first, and the rows of each split by (time, place)."""

    item_order: np.ndarray
    num_old_items: int
    rows: dict[str, np.ndarray]

    @property
    def num_new_items(self) -> int:
        return len(self.item_order) - self.num_old_items


def split_rows(item: np.ndarray, time: np.ndarray, num_items: int, rule: SplitRule) -> Split:
    since = rule.new_since
    launched = None if since is None else np.bincount(item[time < since], minlength=num_items)
    roles = item_roles(np.bincount(item, minlength=num_items), rule, launched)
    index = roles.new_index[item]
    split = np.where((index >= 0) & (index < roles.num_old_items), SPLITS.index("pretrain"), NO_SPLIT)
    new = np.flatnonzero(index >= roles.num_old_items)
    split[new] = splits_of_new_rows(index[new], time[new], rule)
    rows = {name: np.flatnonzero(split == number) for number, name in enumerate(SPLITS)}
    ordered = {name: found[order_by(time[found])] for name, found in rows.items()}
    return Split(roles.item_order, roles.num_old_items, ordered)
