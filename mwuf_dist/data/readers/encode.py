"""From raw values to embedding row indices: fields that are categorical, multi-valued or numeric.

Index 0 is "unknown or missing" everywhere. Vocabularies are in ascending order of their text, so that neither the order
of the rows nor the format of the files changes an index.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsField
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.vectors import encode_vectors
from mwuf_dist.data.schema import Field, list_column

_AROUND = " \t\r\n'\""
_BRACKETS = r"(?s)^\s*[\[({](.*)[\])}]\s*$"
_THOUSANDS = re.compile(r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$")
_DECIMAL_COMMA = re.compile(r"^[+-]?\d+(\.\d{3})*,\d+$")
_MONEY = re.compile(r"^([+-]?)\s*(?:[$€£¥₹%]|USD|EUR|GBP)?\s*([\d.,]+)\s*(?:[$€£¥₹%]|USD|EUR|GBP)?$")


def first_rows(entity: np.ndarray, present: np.ndarray, order: np.ndarray, num: int) -> np.ndarray:
    """Returns the first row of each entity that has a value, -1 where none has; int64 [num].

    Args:
        entity: entity of each row [R], -1 for none.
        present: whether the row has a value [R].
        order: the rows that count, from first to last.
        num: number of entities.
    """
    rows = order[(present & (entity >= 0))[order]][::-1]
    first = np.full(num, -1, dtype=np.int64)
    first[entity[rows]] = rows  # Of several rows the one assigned last stays, which is the first in order.
    return first


def values_of_table(
    field: LogsField, column: pa.ChunkedArray, entity: np.ndarray, num: int
) -> tuple[pa.ChunkedArray, np.ndarray, int]:
    """Returns where a side table, which may have several rows of an entity, holds a field's values.

    A multi-valued field has the values of all of an entity's rows, in the order of the table; of any other field the
    first row with a value counts.

    Args:
        field: what the config says of it.
        column: its raw column [R].
        entity: entity of each row [R], -1 for none.
        num: number of entities E.

    Returns:
        A column; the row of it that holds each entity's value, -1 for none [E]; how many entities have another value
        in a row that does not count.
    """
    present = column.is_valid().to_numpy()
    rows = first_rows(entity, present, np.arange(len(entity)), num)
    there = np.flatnonzero(present & (entity >= 0))
    if len(there) == int((rows >= 0).sum()) or field.kind == "vector":
        return column, rows, 0
    if field.kind != "multi_valued":
        index = codes(column)[0] if not pa.types.is_nested(column.type) else np.arange(len(column))
        return column, rows, len(np.unique(entity[there[index[there] != index[rows[entity[there]]]]]))
    there = there[np.argsort(entity[there], kind="stable")]
    lists = lists_of(column, there, field.separator)
    lengths = np.bincount(entity[there], pc.list_value_length(lists).to_numpy(zero_copy_only=False), num).astype(int)
    lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), lists.flatten())
    return pa.chunked_array([lists]), np.where(rows >= 0, np.arange(num), -1), 0


def lists_of(column: pa.ChunkedArray, rows: np.ndarray, separator: str) -> pa.Array:
    """Returns the lists that stand in rows of a column, -1 for none, written as text with a separator or as lists."""
    nested = pa.types.is_list(column.type)
    if not nested and not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    taken = column.take(pa.array(rows, mask=rows < 0)).combine_chunks()
    if isinstance(taken, pa.ChunkedArray):
        taken = pa.array([], column.type)
    return taken if nested else split(taken.cast(pa.string()), separator)


@dataclass(frozen=True)
class Encoded:
    """Holds the values of one field for all entities of its side.

    Attributes:
        field: with its size.
        values: column of the entity table [E].
        vocabulary: what indices from 1 on stand for, words or upper edges of buckets; None for a vector.
        num_infinite: entities whose number is infinite, which counts as unknown.
    """

    field: Field
    values: pa.Array
    vocabulary: pa.Array | None
    num_infinite: int = 0

    def notes(self, what: str, total: int) -> list[str]:
        """Says what was taken in a way that may surprise; `what` names the entities."""
        if not self.num_infinite:
            return []
        return [
            f"field {self.field.name!r}: {self.num_infinite:,} of {total:,} {what} have an infinite number, which "
            "counts as unknown"
        ]


def encode_field(
    field: LogsField,
    column: pa.ChunkedArray,
    rows: np.ndarray,
    refuse: Callable[[int, str], UserError],
    seen: np.ndarray | None = None,
) -> Encoded:
    """Values of one field for all entities of its side.

    Args:
        field: what the config says of it.
        column: the raw column [R].
        rows: the row that holds each entity's value, -1 for none [E].
        refuse: makes the error of a row of the column, from what is wrong with it.
        seen: whose values make the vocabulary or the buckets [E]; None: everyone's.

    Raises:
        UserError: a numeric field has a value that is no number, or a list stands in a field that takes one value.
    """
    if field.kind == "vector":
        made = encode_vectors(field.name, column, rows, refuse)
        return Encoded(Field(field.name, "vector", field.side, made.type.list_size), made, None)
    nested = pa.types.is_list(column.type)
    if nested and field.kind != "multi_valued":
        raise refuse(0, f"is a list, and field {field.name!r} is {field.kind}; set its kind to multi_valued")
    if field.kind == "multi_valued":
        words, values = _multi_valued(field, column, rows, seen)
        return Encoded(Field(field.name, "multi_valued", field.side, len(words) + 1), values, words)
    index, values = codes(column)
    of_entity = np.where(rows >= 0, index[rows], -1) if len(index) else np.full(len(rows), -1)
    encode = _numeric if field.kind == "numeric" else _categorical
    seen = np.ones(len(rows), dtype=bool) if seen is None else seen
    words, encoded, num_infinite = encode(
        field, values, of_entity, seen, lambda code, why: refuse(int(np.argmax(index == code)), why)
    )
    made = Field(field.name, "categorical", field.side, len(words) + 1)
    return Encoded(made, pa.array(encoded), words, num_infinite)


def _categorical(
    field: LogsField, values: pa.Array, code: np.ndarray, seen: np.ndarray, _: object
) -> tuple[pa.Array, np.ndarray, int]:
    """Returns an index per distinct value that at least `min_count` entities have."""
    counts = np.bincount(code[seen & (code >= 0)], minlength=len(values))
    index, words = _vocabulary(text_of(values), counts, field.min_count)
    return words, index[code], 0


def _vocabulary(values: pa.Array, counts: np.ndarray, min_count: int) -> tuple[np.ndarray, pa.Array]:
    """Index of each distinct value, 0 for rare ones and (at place -1) for none, int32 [V + 1]; words of 1 and above."""
    order = pc.array_sort_indices(values).to_numpy()
    order = order[counts[order] >= min_count]
    index = np.zeros(len(values) + 1, dtype=np.int32)
    index[order] = np.arange(1, len(order) + 1, dtype=np.int32)
    return index, values.take(pa.array(order)).cast(pa.string())


def _numeric(
    field: LogsField, values: pa.Array, code: np.ndarray, seen: np.ndarray, refuse: Callable[[int, str], UserError]
) -> tuple[pa.Array, np.ndarray, int]:
    """Returns an index per quantile bucket: bucket j has the values in (edge j - 1, edge j].

    The edges are the j/B quantiles (the lower of two neighbours) of the entities' values; equal edges count once, so
    that there may be fewer buckets. Up to B distinct values have one each. Infinite values are missing. What is above
    the last edge, which only an entity that was not seen can be, is in the last bucket.
    """
    if pa.types.is_string(values.type):
        number = to_float(values)
        bad = np.flatnonzero(np.isnan(number) & ~np.isin(np.arange(len(number)), _words_for_nan(values)))
        if len(bad):
            what = f"{values[int(bad[0])].as_py()!r} is no number, and field {field.name!r} is numeric"
            raise refuse(int(bad[0]), f"{what}; correct it, add it to data.logs.missing, or make the field categorical")
    elif pa.types.is_timestamp(values.type):
        raise refuse(0, f"is a time, and field {field.name!r} is numeric; give numbers, or make the field categorical")
    else:
        number = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    number = np.append(number, np.nan)[code]
    known = np.isfinite(number)
    distinct = np.unique(number[known & seen])
    edges = distinct
    if len(distinct) > field.buckets:
        shares = np.arange(1, field.buckets) / field.buckets
        edges = np.unique(np.append(np.quantile(number[known & seen], shares, method="lower"), distinct[-1]))
    index = np.zeros(len(number), dtype=np.int32)
    index[known] = np.minimum(1 + np.searchsorted(edges, number[known], side="left"), len(edges))
    return pa.array(edges, pa.float64()), index, int(np.isinf(number).sum())


def to_float(values: pa.Array) -> np.ndarray:
    """Texts as numbers, NaN where they are none; thousands (1,234.50), decimal commas and signs of money are read.

    A comma before three digits divides thousands, unless another value has a comma that cannot.
    """
    try:
        return values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        texts = values.to_pylist()
        bare = [money.group(2) if one and (money := _MONEY.match(one.strip())) else one for one in texts]
        is_decimal = any(one and _DECIMAL_COMMA.match(one) and not _THOUSANDS.match(one) for one in bare)
        return np.array([_float(one, is_decimal) for one in texts])


def _float(text: str | None, is_decimal: bool) -> float:
    if text is None or "_" in text:
        return np.nan
    with contextlib.suppress(ValueError):
        return float(text)
    if (money := _MONEY.match(text.strip())) is None:
        return np.nan
    number = f"{money.group(1)}{money.group(2)}"
    if is_decimal and _DECIMAL_COMMA.match(number):
        number = number.replace(".", "").replace(",", ".")
    elif _THOUSANDS.match(number):
        number = number.replace(",", "")
    try:
        return float(number)
    except ValueError:
        return np.nan


def _words_for_nan(values: pa.Array) -> np.ndarray:
    return np.flatnonzero([one.strip().lower().lstrip("+-") == "nan" for one in values.to_pylist()])


def split(texts: pa.Array, separator: str) -> pa.Array:
    """Lists that are written as text, without the brackets around them: a|b, ['a', 'b'], {a,b}, ('a', 'b').

    A separator in quotes stands between quoted values, which may hold it themselves: `','` of 'Smith, John', 'Doe', and
    `' '`, as NumPy writes 'Sci Fi' 'War', with line ends.
    """
    bare = pc.replace_substring_regex(texts, _BRACKETS, r"\1")
    if len(separator) == 3 and separator[0] == separator[-1] == "'":
        sign = r"\s+" if separator[1] == " " else rf"\s*{re.escape(separator[1])}\s*"
        return pc.split_pattern_regex(bare, rf"""['"]{sign}['"]""")
    return pc.split_pattern(bare, separator)


def words_of(values: pa.Array) -> pa.Array:
    """Values of lists without blanks and quotes around them."""
    return pc.utf8_trim(text_of(values), characters=_AROUND)


def _multi_valued(
    field: LogsField, column: pa.ChunkedArray, rows: np.ndarray, seen: np.ndarray | None
) -> tuple[pa.Array, pa.Array]:
    """Gives a list of distinct indices per entity in the order of the raw value, [0] where there is none."""
    taken = lists_of(column, rows, field.separator)
    lengths = pc.fill_null(pc.list_value_length(taken), 0).to_numpy(zero_copy_only=False)
    entity = np.repeat(np.arange(len(rows)), lengths)
    flat = taken.flatten()
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    words = words_of(flat)
    code, values = codes(pa.chunked_array([words]))
    code = code.copy()
    code[np.isin(code, np.flatnonzero(pc.equal(values, "").to_numpy(zero_copy_only=False)))] = -1
    # Each value of an entity once, at its first place.
    _, places = np.unique(entity * (len(values) + 1) + code, return_index=True)
    places = np.sort(places[code[places] >= 0])
    entity, code = entity[places], code[places]
    counted = code if seen is None else code[seen[entity]]
    index, kept_words = _vocabulary(values, np.bincount(counted, minlength=len(values)), field.min_count)
    kept = index[code] > 0
    entity, encoded = entity[kept], index[code][kept]
    lengths = np.bincount(entity, minlength=len(rows))
    empty = np.flatnonzero(lengths == 0)
    starts = np.cumsum(lengths) - lengths
    return kept_words, list_column(np.maximum(lengths, 1), np.insert(encoded, starts[empty], 0))


class OneValue:
    """Finds which fraction of entities have one value, column after column of the same rows.

    Args:
        entity: of each row [R], -1 for none.
    """

    def __init__(self, entity: np.ndarray) -> None:
        there = np.flatnonzero(entity >= 0)
        # NumPy sorts plain int64 with vector instructions, which is faster than an argsort.
        key = entity[there].astype(np.int64) << 32 | there
        key.sort()
        self._order, self._who = key & 0xFFFFFFFF, (key >> 32).astype(np.int32)

    def share(self, column: pa.ChunkedArray) -> float | None:
        """Returns the fraction of entities with several rows whose values [R], missing ones aside, are all the same.

        None where none has several: one row alone says nothing.
        """
        if pa.types.is_nested(column.type):
            lists = column.combine_chunks()
            lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
            column = pa.chunked_array([pc.binary_join(_without_gaps(lists), "\x1f")])
        who, what = self._who, codes(column)[0][self._order]
        known = what >= 0
        if not known.all():
            who, what = who[known], what[known]
        if len(who) < 2:
            return None
        same = who[1:] == who[:-1]
        several = _num_distinct(who[1:][same])
        return 1 - _num_distinct(who[1:][same & (what[1:] != what[:-1])]) / several if several else None


def _without_gaps(lists: pa.Array) -> pa.Array:
    """Gives lists of text with an empty one for each value that is missing in them: joined, they were missing whole."""
    flat = lists.flatten()
    if not flat.null_count:
        return lists
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    offsets = pa.array(np.append(0, ends), pa.int32(), mask=np.append(lists.is_null().to_numpy(False), False))
    return pa.ListArray.from_arrays(offsets, pc.fill_null(flat, ""))


def _num_distinct(ascending: np.ndarray) -> int:
    return int((ascending[1:] != ascending[:-1]).sum()) + 1 if len(ascending) else 0
