"""The old items that share most field values with an item: the graph of GME."""

from __future__ import annotations

import numpy as np

from mwuf_dist.embeddings.features import FeatureStore

# Of a value that more old items have, this many stand for them: sharing it says little, and the cost stays linear.
_LARGEST_POSTING = 1024
# Items looked up at once: at most some ten million pairs.
_CHUNK_ITEMS = 512


def neighbours(items: FeatureStore, num_old: int, num: int) -> np.ndarray:
    """Returns for every item, the `num` old items that share most values with it, best first; never the item itself.

    A value is one of one field (one title token, one genre); unknown is none. Among old items with equally many, those
    come first with which it shares the rarer values, then those of smaller index. It runs over lists of the old items
    by value, never over all pairs, on each rank alone: fields lie whole on every rank.

    Args:
        items: fields of all items, old items first.
        num_old: number of old items.
        num: neighbours wanted.

    Returns:
        [num_items, num] int32; -1 where fewer old items share a value with it.
    """
    item, value = items.values_of_all()
    old = item < num_old
    by_value = np.argsort(value[old], kind="stable")
    holders = item[old][by_value]  # old items, grouped by value
    size = np.bincount(value[old], minlength=int(value.max(initial=0)) + 1)
    start = np.cumsum(size) - size
    out = np.full((items.num_rows, num), -1, np.int32)
    bounds = np.searchsorted(item, np.arange(items.num_rows + 1))
    for first in range(0, items.num_rows, _CHUNK_ITEMS):
        last = min(first + _CHUNK_ITEMS, items.num_rows)
        chunk = slice(bounds[first], bounds[last])
        pairs = _pairs(item[chunk], value[chunk], holders, start, size)
        _best(out, *pairs, first=first, num_old=num_old)
    return out


def _pairs(
    item: np.ndarray, value: np.ndarray, holders: np.ndarray, start: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (item, old item, weight) of every value that the two share [p]."""
    length = np.minimum(size[value], _LARGEST_POSTING)
    which = np.repeat(np.arange(len(value)), length)
    place = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)
    # Evenly over a list that is too long.
    place = place * size[value][which] // length[which]
    # One for each shared value; the rest of all of them together stays below one and breaks ties.
    weight = 1 + 1 / (64 * (1 + size[value]))
    return item[which], holders[start[value][which] + place], weight[which]


def _best(out: np.ndarray, item: np.ndarray, old: np.ndarray, weight: np.ndarray, *, first: int, num_old: int) -> None:
    """Writes the best old items of some items, from `first` on, into their rows of `out`."""
    other = item != old
    key, inverse = np.unique((item[other] - first) * num_old + old[other], return_inverse=True)
    score = np.bincount(inverse, weight[other], minlength=len(key))
    item, old = np.divmod(key, num_old)
    order = np.lexsort((old, -score, item))
    item, old = item[order], old[order]
    place = np.arange(len(item)) - np.searchsorted(item, item)
    best = place < out.shape[1]
    out[first + item[best], place[best]] = old[best]
