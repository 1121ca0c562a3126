"""Rows of label 0 for data of positives only.

The rule: each positive row (user, item, time) is followed by n rows of the same item and time with another user, drawn
in proportion to the users' numbers of positive rows among those who never have a positive row with this item. So each
item is met n + 1 times as often, over the same span of time (an item has no rows before its first), its share of
positives is 1 / (n + 1) like every other's, and an active user is no sign of a positive: only who likes what remains
to be learned. N and K count these rows too. A user is drawn again up to 20 times; where all 20 like the item (nearly
everyone does), the row is left out.
"""

from __future__ import annotations

import numpy as np

MAX_DRAWS = 20


def add_negatives(
    user: np.ndarray, item: np.ndarray, num_items: int, per_positive: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the rows.

    Args:
        user: user of each positive row [R].
        item: its item [R].
        num_items: number of items.
        per_positive: n.
        seed: of the draw.

    Returns:
        For each row of the result the positive row that it comes from [M], its user [M] and its label [M]; a positive
        row stands before its negatives.
    """
    generator = np.random.default_rng(seed)
    liked = np.unique(user.astype(np.int64) * num_items + item)
    source = np.repeat(np.arange(len(user)), per_positive)
    drawn = np.full(len(source), -1, dtype=np.int64)
    open_ = np.arange(len(source))
    for _ in range(MAX_DRAWS):
        # The user of a row drawn uniformly is a user drawn by activity.
        candidate = user[generator.integers(0, len(user), len(open_))].astype(np.int64)
        key = candidate * num_items + item[source[open_]]
        place = np.minimum(np.searchsorted(liked, key), len(liked) - 1)
        likes = liked[place] == key
        drawn[open_[~likes]] = candidate[~likes]
        open_ = open_[likes]
        if not len(open_):
            break
    source, drawn = source[drawn >= 0], drawn[drawn >= 0]
    row = np.concatenate([np.arange(len(user)), source])
    order = np.argsort(row, kind="stable")
    label = np.concatenate([np.ones(len(user), dtype=np.int8), np.zeros(len(source), dtype=np.int8)])
    return row[order], np.concatenate([user, drawn])[order].astype(np.int32), label[order]
