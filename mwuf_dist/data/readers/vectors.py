"""Reads columns of vectors: a list of as many numbers for every item."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.readers.arrow_types import as_vectors, is_vectors
from mwuf_dist.data.remote import local_path
from mwuf_dist.data.schema import RAW_ID, Entities, Field
from mwuf_dist.data.vectors import column_of

_ID_NAMES = ("item_id", RAW_ID, "item")


def encode_vectors(
    name: str, column: pa.ChunkedArray, rows: np.ndarray, refuse: Callable[[int, str], UserError], size: int = 0
) -> pa.Array:
    """Returns the vectors of entities, null for one that has none [E].

    Args:
        name: of the field.
        column: list<float32> [R].
        rows: the row that holds each entity's vector, -1 for none [E].
        refuse: makes the error of a row of the column, from what is wrong with it.
        size: numbers of a vector; 0: as many as the first has.

    Raises:
        UserError: a vector has another length, or a number that is missing or not finite.
    """
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy(zero_copy_only=False)
    used = rows[rows >= 0]
    if not len(used):
        if size:
            return column_of(np.zeros((len(rows), size)), np.zeros(len(rows), dtype=bool))
        raise UserError(f"field {name!r}: no item has a vector; is it the right column, and are the IDs alike?")
    wanted, first = (size, -1) if size else (int(lengths[used[0]]), int(used[0]))
    if (bad := used[lengths[used] != wanted]).size or wanted == 0:
        row = int(bad[0]) if bad.size else first
        others = f"the data set has {wanted}" if size else f"row {first} has {wanted}"
        raise refuse(row, f"is a vector of {lengths[row]} numbers, and {others}: give each item one of the same length")
    taken = whole.take(pa.array(used))
    values = taken.flatten().to_numpy(zero_copy_only=False).reshape(len(used), wanted)
    if (bad := np.flatnonzero(~np.isfinite(values).all(1))).size:
        raise refuse(
            int(used[bad[0]]),
            f"has a number that is missing or not finite ({bad.size:,} vectors have): leave the whole vector out "
            "(null), and the item gets the mean of the others",
        )
    out = np.zeros((len(rows), wanted), dtype=np.float32)
    out[rows >= 0] = values
    return column_of(out, rows >= 0)


def proposed(files: Sequence[Path], unread: Mapping[str, str]) -> dict[str, int]:
    """Finds among columns that nothing else reads those whose lists have one length: their names, and the length."""
    found = {}
    for name in unread:
        columns = [pq.read_table(path, columns=[name])[name] for path in files]
        if not all(is_vectors(column.type) for column in columns):
            continue
        sizes = {
            size.as_py() for column in columns for size in pc.unique(pc.list_value_length(column)) if size.is_valid
        }
        if len(sizes) == 1 and (size := sizes.pop()):
            found[name] = size
    return found


def with_file(path: str, entities: Entities, id_column: str = "") -> Entities:
    """Adds the vectors of a file (`data.item_vectors`) to the items.

    Args:
        path: Parquet.
        entities: users and items.
        id_column: name of the IDs beside those that are always known.

    Raises:
        UserError: the file has no IDs or no vectors, or a field of the same name is there.
    """
    found = local_path(path, "data.item_vectors")
    try:
        table = pq.read_table(found)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise UserError(f"data.item_vectors = {path!r}: cannot be read ({error}); name a Parquet file") from None
    name = next((one for one in (id_column, *_ID_NAMES) if one in table.column_names), None)
    columns = [one for one in table.column_names if is_vectors(table[one].type) and one != name]
    if name is None or not columns:
        lacks = "IDs (item_id)" if name is None else "lists of numbers"
        raise UserError(f"{path}: no column of {lacks}; its columns: {', '.join(table.column_names)[:300]}")
    if taken := {field.name for field in entities.fields} & set(columns):
        raise UserError(f"{path}: the items have a field {sorted(taken)[0]!r} already: rename the column")
    known = entities.items[RAW_ID].combine_chunks()
    known = known if isinstance(known, pa.Array) else pa.concat_arrays(known.chunks)
    entity = raw_ids.find_rows(table[name], known, raw_ids.form_of(known))
    if not (entity >= 0).any():
        raise UserError(
            f"{path}: none of its {table.num_rows} items is in the data (there an ID is like {known[0].as_py()!r}, "
            f"here like {table[name][0].as_py()!r}); is it the right file?"
        )
    items, fields = entities.items, list(entities.fields)
    for one in columns:
        column = as_vectors(table[one])
        first = np.flatnonzero((entity >= 0) & column.is_valid().to_numpy())[::-1]
        rows = np.full(items.num_rows, -1, dtype=np.int64)
        rows[entity[first]] = first  # of several rows of an item the first
        made = encode_vectors(
            one, column, rows, lambda row, why: UserError(f"{path}: row {row} (counted from 0): {why}")
        )
        items = items.append_column(one, made)
        fields.append(Field(one, "vector", "item", made.type.list_size))
    return Entities(entities.users, items, tuple(fields))
