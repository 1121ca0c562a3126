"""From raw values to embedding row indices: IDs, and fields that are categorical, multi-valued or numeric.

Index 0 is "unknown or missing" everywhere. Vocabularies are in ascending order of their text, so that neither the order
of the rows nor the format of the files changes an index.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsField
from mwuf_dist.data.schema import Field, list_column

_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # "007" is another ID than "7", so text that has it stays text.
_AROUND = " \t\r\n[]'\""


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Dictionary codes of a column.

    Args:
        column: any flat type [R].

    Returns:
        Index of each row's value in the distinct values, -1 where it is missing, int32 [R]; the distinct values.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no rows at all
        whole = pa.array([], column.type)
    if whole.dictionary.null_count:
        whole = pa.chunked_array([whole]).cast(column.type.value_type).dictionary_encode().combine_chunks()
    return whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), whole.dictionary


def encode_ids(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """IDs in ascending order and the place of each row's ID among them.

    IDs that are all integers without leading zeros are int64, whether the file has them as text or as numbers.

    Args:
        column: IDs [R], text or numbers.

    Returns:
        Place of each row's ID, -1 where it is missing, int32 [R]; the IDs, int64 or string [E].
    """
    index, values = codes(column)
    if pa.types.is_floating(values.type):
        values = pc.cast(values, pa.int64()) if _all_integral(values) else values.cast(pa.string())
    elif pa.types.is_string(values.type) and pc.all(pc.match_substring_regex(values, _CANONICAL_INTEGER)).as_py():
        values = values.cast(pa.int64())
    elif not pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    used = np.zeros(len(values) + 1, dtype=bool)
    used[index] = True  # -1, the last place, collects the missing ones.
    order = pc.array_sort_indices(values).to_numpy()
    order = order[used[order]]
    rank = np.full(len(values) + 1, -1, dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[index], values.take(pa.array(order))


def _all_integral(values: pa.Array) -> bool:
    numbers = values.to_numpy(zero_copy_only=False)
    return bool((np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)).all())


def find_ids(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """Place of each row's ID among known ones, -1 where it is missing or unknown; int32 [R].

    Args:
        column: IDs of a side table [R].
        ids: the known ones [E].
    """
    index, own = encode_ids(column)
    if own.type != ids.type:
        own, ids = own.cast(pa.string()), ids.cast(pa.string())
    place = pc.fill_null(pc.index_in(own, value_set=ids), -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return np.append(place, np.int32(-1))[index]


def first_rows(entity: np.ndarray, present: np.ndarray, order: np.ndarray, num: int) -> np.ndarray:
    """The first row of each entity that has a value, -1 where none has; int64 [num].

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


def encode_field(
    field: LogsField, column: pa.ChunkedArray, rows: np.ndarray, refuse: Callable[[int, str], UserError]
) -> tuple[Field, pa.Array]:
    """Values of one field for all entities of its side.

    Args:
        field: what the config says of it.
        column: the raw column [R].
        rows: the row that holds each entity's value, -1 for none [E].
        refuse: makes the error of a row of the column, from what is wrong with it.

    Returns:
        The field with its size; its column of the entity table.

    Raises:
        UserError: a numeric field has a value that is no number, or a list stands in a field that takes one value.
    """
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if nested and field.kind != "multi_valued":
        raise refuse(0, f"is a list, and field {field.name!r} is {field.kind}; set its kind to multi_valued")
    if field.kind == "multi_valued":
        size, values = _multi_valued(field, column, rows, nested)
        return Field(field.name, "multi_valued", field.side, size), values
    index, values = codes(column)
    of_entity = np.where(rows >= 0, index[rows], -1) if len(index) else np.full(len(rows), -1)
    encode = _numeric if field.kind == "numeric" else _categorical
    size, encoded = encode(field, values, of_entity, lambda code, why: refuse(int(np.argmax(index == code)), why))
    return Field(field.name, "categorical", field.side, size), pa.array(encoded)


def _categorical(field: LogsField, values: pa.Array, code: np.ndarray, _: object) -> tuple[int, np.ndarray]:
    """An index per distinct value that at least `min_count` entities have."""
    counts = np.bincount(code[code >= 0], minlength=len(values))
    index, size = _vocabulary(text_of(values), counts, field.min_count)
    return size, index[code]


def _vocabulary(values: pa.Array, counts: np.ndarray, min_count: int) -> tuple[np.ndarray, int]:
    """Index of each distinct value, 0 for rare ones and (at place -1) for none, int32 [V + 1]; number of indices."""
    order = pc.array_sort_indices(values).to_numpy()
    order = order[counts[order] >= min_count]
    index = np.zeros(len(values) + 1, dtype=np.int32)
    index[order] = np.arange(1, len(order) + 1, dtype=np.int32)
    return index, len(order) + 1


def text_of(values: pa.Array) -> pa.Array:
    """Values as text, whole numbers without a point."""
    if pa.types.is_floating(values.type) and len(values) and _all_integral(values):
        values = values.cast(pa.int64())  # 3.0 of a column with gaps is 3, as in the same column without them.
    return values.cast(pa.string())


def _numeric(
    field: LogsField, values: pa.Array, code: np.ndarray, refuse: Callable[[int, str], UserError]
) -> tuple[int, np.ndarray]:
    """An index per quantile bucket: bucket j has the values in (edge j - 1, edge j].

    The edges are the j/B quantiles (the lower of two neighbours) of the entities' values; equal edges count once, so
    that there may be fewer buckets. Up to B distinct values have one each. Infinite values are missing.
    """
    if pa.types.is_string(values.type):
        number = to_float(values)
        bad = np.flatnonzero(np.isnan(number) & ~np.isin(np.arange(len(number)), _words_for_nan(values)))
        if len(bad):
            what = f"{values[int(bad[0])].as_py()!r} is no number, and field {field.name!r} is numeric"
            raise refuse(int(bad[0]), f"{what}; correct it, add it to data.logs.missing, or make the field categorical")
    else:
        number = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    number = np.append(number, np.nan)[code]
    known = np.isfinite(number)
    distinct = np.unique(number[known])
    edges = distinct
    if len(distinct) > field.buckets:
        shares = np.arange(1, field.buckets) / field.buckets
        edges = np.unique(np.append(np.quantile(number[known], shares, method="lower"), distinct[-1]))
    index = np.zeros(len(number), dtype=np.int32)
    index[known] = 1 + np.searchsorted(edges, number[known], side="left")
    return len(edges) + 1, index


def to_float(values: pa.Array) -> np.ndarray:
    """Texts as numbers, NaN where they are none; float64."""
    try:
        return values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return np.array([_float(one) for one in values.to_pylist()])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _words_for_nan(values: pa.Array) -> np.ndarray:
    return np.flatnonzero([one.strip().lower().lstrip("+-") == "nan" for one in values.to_pylist()])


def _multi_valued(field: LogsField, column: pa.ChunkedArray, rows: np.ndarray, nested: bool) -> tuple[int, pa.Array]:
    """A list of distinct indices per entity in the order of the raw value, [0] where there is none."""
    if not nested and not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    taken = column.take(pa.array(rows, mask=rows < 0)).combine_chunks()
    if isinstance(taken, pa.ChunkedArray):
        taken = pa.array([], column.type)
    if not nested:
        taken = pc.split_pattern(taken.cast(pa.string()), field.separator)
    lengths = pc.fill_null(pc.list_value_length(taken), 0).to_numpy(zero_copy_only=False)
    entity = np.repeat(np.arange(len(rows)), lengths)
    flat = taken.flatten()
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    words = pc.utf8_trim(text_of(flat), characters=_AROUND)
    code, values = codes(pa.chunked_array([words]))
    code[np.isin(code, np.flatnonzero(pc.equal(values, "").to_numpy(zero_copy_only=False)))] = -1
    # Each value of an entity once, at its first place.
    _, places = np.unique(entity * (len(values) + 1) + code, return_index=True)
    places = np.sort(places[code[places] >= 0])
    entity, code = entity[places], code[places]
    index, size = _vocabulary(values, np.bincount(code, minlength=len(values)), field.min_count)
    kept = index[code] > 0
    entity, encoded = entity[kept], index[code][kept]
    lengths = np.bincount(entity, minlength=len(rows))
    empty = np.flatnonzero(lengths == 0)
    starts = np.cumsum(lengths) - lengths
    return size, list_column(np.maximum(lengths, 1), np.insert(encoded, starts[empty], 0))
