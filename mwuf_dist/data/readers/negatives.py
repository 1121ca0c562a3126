"""Rows of label 0 for data of positives only.

The rule: each positive row (user, item, time) that is in a set (`pretrain`, `warm_a`, ..., `test`) is preceded by n
rows of the same user, the same time and the same set with other items, and each item stands in n such rows of a set for
each of its own positives there. N and K count positives. An item that is drawn

* existed then: it has a positive row before, or at the same time;
* has positives in the same set, so that it is old for an old one, and new for a new one;
* is none that the user ever has a positive row with, and is drawn once for a positive.

The items of a set are dealt out to its rows in an order that is shuffled within a window of time, and what breaks the
rule is exchanged with a random neighbour until nothing does. Under the stream protocol a day is a set, and what the
user likes on a later day is not looked at. So user, time, history and the popularity of the item
tell nothing about the label, in every set, and neither does the class. Where no exchange helps (nearly everyone likes
the item, or a user nearly all items) another item of the set is drawn freely, and where there is none the row is left
out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mwuf_dist.data.split import NO_SPLIT, SPLITS, SplitRule, item_roles, sets_by_place
from mwuf_dist.data.stream_rule import StreamRule

MAX_DRAWS = 20  # for a row that no exchange has helped
_WINDOW_ROWS = 1024  # Positive rows of a set on either side: as near in time as a sitting of hundreds of rows allows.
_TEST = SPLITS.index("test")
_EXCHANGES = 24  # rounds within the window; after them it is doubled in each round until it is the whole set.


def add_negatives(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, num_items: int, rule: SplitRule, per_positive: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws the rows.

    Args:
        user: user of each positive row [R], in the order of the file.
        item: its item [R].
        time: its time [R].
        num_items: number of items.
        rule: which rows are in which set.
        per_positive: n.
        seed: of the draw.

    Returns:
        For each row of the result the positive row that it comes from [M], its item [M], its label [M] and its set, an
        index into SPLITS or NO_SPLIT [M]; a positive row stands behind its negatives.
    """
    order = np.argsort(time, kind="stable")
    log = _Log.of(user[order].astype(np.int64), item[order].astype(np.int64), time[order], num_items, rule)
    source, drawn = [], []
    sets = np.unique(log.row_set)
    for index in sets[sets != NO_SPLIT].tolist():
        rows = np.flatnonzero(log.row_set == index)
        if rule.stream is not None:  # what the user will like on a later day is not known
            last = int(log.time[rows[-1]])
            log = replace(log, known_until=last - last % rule.stream.day + rule.stream.day)
        found = _deal(log, rows, per_positive, np.random.default_rng([seed, index, 7]))
        source.append(order[np.repeat(rows, per_positive)[found.reshape(-1) >= 0]])
        drawn.append(found[found >= 0])
    num = len(user)
    row = np.concatenate([*source, np.arange(num)])
    items = np.concatenate([*drawn, item])
    label = np.repeat(np.array([0, 1], dtype=np.int8), [len(row) - num, num])
    place = np.argsort(row, kind="stable")
    of_positive = np.empty(num, dtype=np.int8)
    # A day of the stream is a set by itself here, and all of them are `test`.
    of_positive[order] = log.row_set if rule.stream is None else np.where(log.row_set > 0, _TEST, log.row_set)
    return row[place], items[place].astype(np.int32), label[place], of_positive[row[place]]


@dataclass(frozen=True)
class _Log:
    """Positive rows by time, and what says whether an item may be drawn for one of them.

    Attributes:
        user, item, time: of each row [R].
        row_set: index into SPLITS, NO_SPLIT of none [R].
        first: time of each item's first row [I].
        pairs: user * I + item of each pair, ascending.
        pair_times: time of each pair's first row.
        known_until: pairs from this time on are not known.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    row_set: np.ndarray
    first: np.ndarray
    pairs: np.ndarray
    pair_times: np.ndarray
    known_until: int = np.iinfo(np.int64).max

    @staticmethod
    def of(user: np.ndarray, item: np.ndarray, time: np.ndarray, num_items: int, rule: SplitRule) -> _Log:
        """Returns the log of rows in order of time."""
        first = np.full(num_items, np.iinfo(np.int64).max)
        np.minimum.at(first, item, time)
        pairs, places = np.unique(user * num_items + item, return_index=True)
        row_set = _sets(item, time, num_items, rule) if rule.stream is None else _days(first[item], time, rule.stream)
        return _Log(user, item, time, row_set, first, pairs, time[places])

    def fits(self, row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Says whether items [n] may be drawn for rows [n] of their own set."""
        pair = self.user[row] * len(self.first) + item
        place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        liked = (self.pairs[place] == pair) & (self.pair_times[place] < self.known_until)
        return (self.first[item] <= self.time[row]) & ~liked


def _sets(item: np.ndarray, time: np.ndarray, num_items: int, rule: SplitRule) -> np.ndarray:
    """Returns the set of each row [R] in order of time: index into SPLITS, or NO_SPLIT."""
    counts = np.bincount(item, minlength=num_items)
    since = rule.new_since
    launched = None if since is None else np.bincount(item[time < since], minlength=num_items)
    roles = item_roles(counts, rule, launched)
    by_item = np.argsort(item, kind="stable")
    starts = np.cumsum(counts) - counts
    before = np.empty(len(item), dtype=np.int64)
    before[by_item] = np.arange(len(item)) - np.repeat(starts, counts)
    index = roles.new_index[item]
    row_set = np.where(index < roles.num_old_items, SPLITS.index("pretrain"), sets_by_place(before, rule))
    row_set[index < 0] = NO_SPLIT
    return row_set


def _days(born: np.ndarray, time: np.ndarray, rule: StreamRule) -> np.ndarray:
    """Returns 0 for rows before day 0; 1 + the day of rows that are scored; NO_SPLIT for others [R]."""
    day_0 = rule.day_0(int(time.min(initial=0)))
    days = np.where(rule.is_scored(time, born, day_0), 1 + (time - day_0) // rule.day, NO_SPLIT)
    return np.where(time < day_0, 0, days)


def _deal(log: _Log, rows: np.ndarray, per_positive: int, generator: np.random.Generator) -> np.ndarray:
    """Returns the items drawn for the rows of a set [R', n], -1 where there is none."""
    num = len(rows)
    # Each copy of the items in an order of its own, none further away than two windows.
    near = np.stack(
        [np.argsort(np.arange(num) + generator.uniform(-1, 1, num) * _WINDOW_ROWS) for _ in range(per_positive)], axis=1
    )
    items = log.item[rows][near]
    bad = ~log.fits(np.repeat(rows, per_positive), items.reshape(-1)).reshape(items.shape)
    bad |= _repeats(items)
    window = _WINDOW_ROWS
    for attempt in range(_EXCHANGES + 40):
        slots = generator.permutation(np.flatnonzero(bad))
        if not len(slots) or (window >= 2 * num and attempt > _EXCHANGES + 12):
            break
        _exchange(log, rows, items, bad, slots, window, generator)
        if attempt >= _EXCHANGES:
            window *= 2
    _draw_freely(log, rows, items, bad, generator)
    items[bad] = -1
    return items


def _exchange(
    log: _Log,
    rows: np.ndarray,
    items: np.ndarray,
    bad: np.ndarray,
    slots: np.ndarray,
    window: int,
    generator: np.random.Generator,
) -> None:
    """Exchanges the items of bad slots with those of random neighbours where that mends them and breaks nothing."""
    num, width = items.shape
    ours, column = slots // width, slots % width
    theirs = np.clip(ours + generator.integers(-window, window + 1, len(slots)), 0, num - 1)
    other = generator.integers(0, width, len(slots))
    # A row takes part in one exchange at a time.
    first = np.full(num, len(slots), dtype=np.int64)
    np.minimum.at(first, ours, np.arange(len(slots)))
    np.minimum.at(first, theirs, np.arange(len(slots)))
    free = (first[ours] == np.arange(len(slots))) & (first[theirs] == first[ours]) & (ours != theirs)
    ours, column, theirs, other = ours[free], column[free], theirs[free], other[free]
    given, taken = items[ours, column], items[theirs, other]
    mends = log.fits(rows[ours], taken) & ~(items[ours] == taken[:, None]).any(1)
    keeps = log.fits(rows[theirs], given) & ~(items[theirs] == given[:, None]).any(1)
    done = mends & (keeps | bad[theirs, other])
    ours, column, theirs, other = ours[done], column[done], theirs[done], other[done]
    items[ours, column], items[theirs, other] = taken[done], given[done]
    bad[ours, column], bad[theirs, other] = False, ~keeps[done]


def _draw_freely(
    log: _Log, rows: np.ndarray, items: np.ndarray, bad: np.ndarray, generator: np.random.Generator
) -> None:
    """Fills the slots that are left with the items of random rows of the set, nearer ones first."""
    num, width = items.shape
    window = min(_WINDOW_ROWS, num)
    for _ in range(MAX_DRAWS):
        slots = np.flatnonzero(bad)
        if not len(slots):
            return
        slots = slots[np.unique(slots // width, return_index=True)[1]]  # one of a row at a time
        ours, column = slots // width, slots % width
        near = np.clip(ours + generator.integers(-window, window + 1, len(slots)), 0, num - 1)
        taken = log.item[rows[near]]
        good = log.fits(rows[ours], taken) & ~(items[ours] == taken[:, None]).any(1)
        items[ours[good], column[good]], bad[ours[good], column[good]] = taken[good], False
        window = min(2 * window, num)


def _repeats(items: np.ndarray) -> np.ndarray:
    """Says which slots [R', n] hold what an earlier slot of their row holds."""
    found = np.zeros(items.shape, dtype=bool)
    for column in range(1, items.shape[1]):
        found[:, column] = (items[:, :column] == items[:, column : column + 1]).any(1)
    return found
