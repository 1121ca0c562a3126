"""The rule that makes old and new items and their splits: pure functions on arrays.

An old item has more than N rows, a new item between 3K and N, the others are dropped. `pretrain` holds all rows of old
items; `warm_a`, `warm_b` and `warm_c` the first, second and third K rows by time of each new item, `test` the rest.
Rows of one second are ordered by their position in the raw file. Of data of positives only N and K count
positives, and a row of label 0 that is drawn for one is in the set of that one.

With a launch date the place of N takes time: an item with a row before it is old, one without is new if it has 3K rows.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.stream_rule import StreamRule

SPLITS = ("pretrain", "warm_a", "warm_b", "warm_c", "test")
NO_SPLIT = -1  # of a row, beside the indices of SPLITS

# In a table from raw items to new ones: items that are neither old nor new.
DROPPED = -1  # too few rows
LEFT_OUT = -2  # really new items while old ones play new


@dataclass(frozen=True)
class SplitRule:
    """The keys of section `data` that decide the split.

    Attributes:
        old_above: N.
        warm_rows: K.
        old_items_as_new: keep only old items; a random fifth of them, cut to their first N rows, plays new. Choices
            made on this split never see a row of a really new item.
        old_items_as_new_seed: which fifth.
        stream: the rule of the stream protocol, which takes the place of all of these.
        new_since: the launch date, in the unit of the rows' times; None where N decides.
    """

    old_above: int
    warm_rows: int
    old_items_as_new: bool = False
    old_items_as_new_seed: int = 0
    stream: StreamRule | None = None
    new_since: int | None = None

    @staticmethod
    def of(config: DataConfig) -> SplitRule:
        """Returns the rule of a config."""
        if config.protocol == "stream":
            if config.new_since:
                raise UserError(
                    "data.new_since goes with data.protocol = 'paper': under 'stream' an item is new that comes after "
                    "data.stream.pretrain_days"
                )
            return SplitRule(config.old_above, config.warm_rows, stream=_stream_rule(config))
        # Which fifth plays new decides nothing where none does: one folder serves every such seed.
        seed = config.old_items_as_new_seed if config.old_items_as_new else 0
        since = _launch_date(config)
        return SplitRule(config.old_above, config.warm_rows, config.old_items_as_new, seed, new_since=since)


def _ticks_per_s(config: DataConfig) -> int:
    return 1_000_000 if config.name == "logs" else 1


def _launch_date(config: DataConfig) -> int | None:
    if not config.new_since:
        return None
    if config.name == "logs" and not config.logs.time:
        raise UserError("data.new_since is a time, and this log has none: name the column with data.logs.time")
    try:
        seconds = float(config.new_since)
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(config.new_since)
        except ValueError:
            raise UserError(
                f"data.new_since = {config.new_since!r} is neither a date like '2020-09-01' or '2020-09-01T12:00:00' "
                "nor a number of seconds"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    if not abs(seconds) < 1e12:
        raise UserError(f"data.new_since = {config.new_since!r} is no number of seconds since 1970")
    return round(seconds * _ticks_per_s(config))


def _stream_rule(config: DataConfig) -> StreamRule:
    if config.old_items_as_new:
        raise UserError(
            "data.old_items_as_new does not go with data.protocol = 'stream': settings are chosen on old items played "
            "as new under data.protocol = 'paper'"
        )
    stream = config.stream
    day = round(stream.day_s * _ticks_per_s(config))
    if day < 1:
        raise UserError(f"data.stream.day_s = {stream.day_s}: the times of this log are whole seconds")
    return StreamRule(day, stream.pretrain_days, stream.max_age_days, stream.num_days)


@dataclass(frozen=True)
class Roles:
    """Which items are old and new.

    Attributes:
        item_order: raw items [num_old_items + num_new_items], old ones first, each group ascending.
        num_old_items: how many of them are old.
        new_index: position of each raw item in that order, or DROPPED or LEFT_OUT, int32 [raw items].
        new_item_rows: raw rows of each new item, int64 [num_new_items].
    """

    item_order: np.ndarray
    num_old_items: int
    new_index: np.ndarray
    new_item_rows: np.ndarray

    @property
    def num_new_items(self) -> int:
        """Number of new items."""
        return len(self.item_order) - self.num_old_items


def item_roles(counts: np.ndarray, rule: SplitRule, before: np.ndarray | None = None) -> Roles:
    """Applies the rule to items.

    Args:
        counts: number of rows of each raw item.
        rule: the thresholds.
        before: how many of them are before `rule.new_since`, where there is one.

    Raises:
        UserError: the thresholds contradict each other, or no item is old, or none is new, or `test` is empty.
    """
    smallest_new = 3 * rule.warm_rows
    if rule.old_above < smallest_new and (before is None or rule.old_items_as_new):
        raise UserError(
            f"data.old_above = {rule.old_above} is below 3 * data.warm_rows = {smallest_new}, so that no item can be "
            "new: raise data.old_above or lower data.warm_rows"
        )
    is_old = counts > rule.old_above if before is None else before > 0
    is_new = (counts >= smallest_new) & ~is_old
    new_index = np.where(counts < smallest_new, DROPPED, LEFT_OUT).astype(np.int32)
    left = counts
    if rule.old_items_as_new:
        is_old, is_new = _old_ones_play_new(is_old, counts >= smallest_new, rule)
        left = np.where(is_old, counts, np.where(is_new, np.minimum(counts, rule.old_above), 0))
    if before is None:
        _refuse_empty_groups(left, is_old, is_new, rule)
    elif not is_old.any() or not is_new.any():
        raise UserError(_none_by_date(counts, before, is_old, rule))
    old, new = np.flatnonzero(is_old), np.flatnonzero(is_new)
    if left[new].max() == smallest_new:
        raise UserError(
            f"each of the {len(new)} new items has exactly 3 * data.warm_rows = {smallest_new} rows, so that `test` is "
            "empty: lower data.warm_rows"
        )
    item_order = np.concatenate([old, new])
    new_index[item_order] = np.arange(len(item_order), dtype=np.int32)
    return Roles(item_order, len(old), new_index, counts[new])


def stream_roles(counts: np.ndarray, before: np.ndarray) -> Roles:
    """Returns the roles of items by the stream protocol. None may be new, where a model is trained for a late day.

    Args:
        counts: number of rows of each raw item.
        before: how many of them are before day 0.

    Raises:
        UserError: no item is old.
    """
    old, new = np.flatnonzero(before), np.flatnonzero((counts > 0) & (before == 0))
    if not len(old):
        raise UserError("no item has a row before day 0, so that none is old: raise data.stream.pretrain_days")
    item_order = np.concatenate([old, new])
    new_index = np.full(len(counts), DROPPED, dtype=np.int32)
    new_index[item_order] = np.arange(len(item_order), dtype=np.int32)
    return Roles(item_order, len(old), new_index, counts[new])


def sets_by_place(before: np.ndarray, rule: SplitRule) -> np.ndarray:
    """Returns the set of rows of new items before which so many rows of the item stand that count [R].

    Returns:
        Index into SPLITS, or NO_SPLIT for rows that are cut off while old items play new.
    """
    found = np.minimum(before // rule.warm_rows + 1, SPLITS.index("test"))
    return np.where(before >= rule.old_above, NO_SPLIT, found) if rule.old_items_as_new else found


def splits_of_new_rows(item: np.ndarray, time: np.ndarray, rule: SplitRule, day_0: int = 0) -> np.ndarray:
    """Returns the split of rows of new items: of each item here all rows are, in raw file order.

    Args:
        item: the item of each row [R].
        time: its time [R].
        rule: the thresholds.
        day_0: of the stream protocol.

    Returns:
        Index into SPLITS, or NO_SPLIT for rows that are cut off while old items play new; int8 [R].
    """
    order = order_by(item, time)
    sorted_item = item[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = sorted_item[1:] != sorted_item[:-1]
    starts = np.flatnonzero(is_first)
    lengths = np.diff(starts, append=len(order))
    out = np.empty(len(order), dtype=np.int8)
    if rule.stream is not None:
        scored = rule.stream.is_scored(time[order], np.repeat(time[order][starts], lengths), day_0)
        out[order] = np.where(scored, SPLITS.index("test"), NO_SPLIT)
        return out
    before = np.arange(len(order)) - np.repeat(starts, lengths)
    out[order] = sets_by_place(before, rule)
    return out


def order_by(*keys: np.ndarray) -> np.ndarray:
    """Returns the stable order of rows by integers, of which the first decides most [R]."""
    num_rows = len(keys[0])
    if not num_rows:
        return np.zeros(0, dtype=np.int64)
    lows = [int(key.min()) for key in keys]
    widths = [(int(key.max()) - low).bit_length() for key, low in zip(keys, lows, strict=True)]
    bits = num_rows.bit_length()
    if sum(widths) + bits > 63:
        if len(keys) == 1:
            return np.argsort(keys[0], kind="stable")
        order = order_by(*keys[1:])
        return order[order_by(keys[0][order])]
    # One sort of keys and position together, which numpy vectorises; a stable argsort it does not.
    packed = np.zeros(num_rows, dtype=np.int64)
    for key, low, width in zip(keys, lows, widths, strict=True):
        packed = (packed << width) | (key.astype(np.int64, copy=False) - low)
    packed = (packed << bits) | np.arange(num_rows)
    packed.sort()
    return packed & ((1 << bits) - 1)


def _old_ones_play_new(is_old: np.ndarray, enough: np.ndarray, rule: SplitRule) -> tuple[np.ndarray, np.ndarray]:
    """Gives masks of the items that stay old and of those that play new, cut to N rows each; the really new ones go."""
    old = np.flatnonzero(is_old & enough)
    plays_new = np.zeros(len(is_old), dtype=bool)
    generator = np.random.default_rng(rule.old_items_as_new_seed)
    plays_new[generator.permutation(old)[: round(len(old) / 5)]] = True
    return is_old & ~plays_new, plays_new


def _none_by_date(counts: np.ndarray, before: np.ndarray, is_old: np.ndarray, rule: SplitRule) -> str:
    later = counts[before == 0]
    missing, what = ("new", "An earlier") if is_old.any() else ("old", "A later")
    return (
        f"no item is {missing}: of {len(counts)} items, {int((before > 0).sum())} have a row before data.new_since "
        f"(old), {int((later >= 3 * rule.warm_rows).sum())} have none and at least 3 * data.warm_rows = "
        f"{3 * rule.warm_rows} rows (new); the most rows of an item first seen since then are "
        f"{int(later.max(initial=0))}. {what} "
        f"data.new_since{' or a lower data.warm_rows' if missing == 'new' else ''} is needed"
    )


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
