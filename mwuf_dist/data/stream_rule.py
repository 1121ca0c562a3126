"""The split of the stream protocol: by time alone, as a system that goes on every day would have it.

Day 0 begins so many days after the day of the first row. An item with a row before day 0 is old and `pretrain` holds
the rows of that time, all of them of old items. Every other item is new from its first row on; `test` holds its rows
until it is `max_age_days` old. The warm sets are empty, and rows of old items from day 0 on are in no set.
Users who have a row before day 0 come first, and only they have an ID of their own among the fields. Vocabularies,
buckets and thresholds are those of users and items with rows before day 0: a later value is unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mwuf_dist.data.schema import RAW_ID, Entities, Field, list_column


@dataclass(frozen=True)
class StreamRule:
    """The keys of section `data.stream` that decide the split.

    Attributes:
        day: length of a day, in the unit of the rows' times.
        pretrain_days: days before day 0.
        max_age_days: from this age on an item is no longer scored.
        num_days: days from day 0 on; 0: all.
    """

    day: int
    pretrain_days: int
    max_age_days: int
    num_days: int

    def day_0(self, first_time: int) -> int:
        """Says when day 0 begins, of a log whose first row is of this time."""
        return (first_time // self.day + self.pretrain_days) * self.day

    def is_scored(self, time: np.ndarray, born: np.ndarray, day_0: int) -> np.ndarray:
        """Says which rows [R] of these times, of items born then [R], are of new items that are young enough."""
        young = (born >= day_0) & (time - born < self.max_age_days * self.day)
        return young & (time < day_0 + self.num_days * self.day) if self.num_days else young


@dataclass(frozen=True)
class Seen:
    """Which users [U] and items [I] have rows before day 0."""

    users: np.ndarray
    items: np.ndarray


def past_only(entities: Entities, seen: Seen, fewest: Mapping[str, int]) -> Entities:
    """Makes every vocabulary anew of what was seen: other values are unknown.

    Args:
        entities: users and items, in vocabularies of all of them.
        seen: who makes the vocabularies.
        fewest: field -> entities that a value must have; 1 where a field is not named.
    """
    columns: dict[str, dict[str, pa.Array]] = {"user": {}, "item": {}}
    fields = []
    for field in entities.fields:
        table, mask = (entities.users, seen.users) if field.side == "user" else (entities.items, seen.items)
        made, columns[field.side][field.name] = _past_column(
            field, table[field.name].combine_chunks(), mask, fewest.get(field.name, 1)
        )
        fields.append(made)
    users = pa.table({RAW_ID: entities.users[RAW_ID], **columns["user"]})
    items = pa.table({RAW_ID: entities.items[RAW_ID], **columns["item"]})
    return Entities(users, items, tuple(fields))


def _past_column(field: Field, column: pa.Array, seen: np.ndarray, fewest: int) -> tuple[Field, pa.Array]:
    if field.kind == "vector":
        return field, column
    is_list = field.kind == "multi_valued"
    lengths = np.diff(column.offsets.to_numpy()) if is_list else np.ones(len(column), dtype=np.int64)
    values = (column.flatten() if is_list else column).to_numpy()
    entity = np.repeat(np.arange(len(column)), lengths)
    counts = np.bincount(values[seen[entity]], minlength=field.size)
    counts[0] = 0
    kept = np.flatnonzero(counts >= fewest)
    if field.ordinal and len(kept):  # neighbours stay neighbours
        kept = np.arange(kept[0], kept[-1] + 1)
    index = np.zeros(field.size, dtype=np.int32)
    index[kept] = np.arange(1, len(kept) + 1)
    made = dataclasses.replace(field, size=len(kept) + 1)
    values = index[values]
    if not is_list:
        return made, pa.array(values)
    entity, values = entity[values > 0], values[values > 0]
    lengths = np.bincount(entity, minlength=len(column))
    empty = np.flatnonzero(lengths == 0)
    starts = np.cumsum(lengths) - lengths
    return made, list_column(np.maximum(lengths, 1), np.insert(values, starts[empty], 0))
