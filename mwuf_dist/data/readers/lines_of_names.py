"""Lines of column names that stand again within a file (`cat a.csv b.csv`), which are no rows."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

_LEAST = 2  # columns that hold names; in a table of one column, that one


def find(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows in which columns hold their own names, and rows in which they hold each other's, in whatever case.

    In the former every column holds its own name or nothing, as a column without a name does.

    Args:
        table: the columns of one file as they were read.
    """
    nothing = np.empty(0, np.int64)
    names = {name: name.strip().lower() for name in table.column_names}
    kinds = [table[name].type for name in names]
    if not all(_is_text(kind) for kind in kinds if not pa.types.is_null(kind)):
        return nothing, nothing  # A line of names would have made text of every column.
    encoded = [name for name in names if pa.types.is_dictionary(table[name].type)]
    held = [name for name in encoded if _has_any(table[name], names)]
    if len(held) < min(_LEAST, max(1, len(encoded))):
        return nothing, nothing
    own, other = np.zeros(len(table), np.int16), np.zeros(len(table), np.int16)
    for name in held:
        is_own, is_other = _holds(table[name], names, name)
        own += is_own
        other += is_other
    rows = np.flatnonzero(own + other >= min(_LEAST, max(1, len(encoded))))
    own, other, fits = own[rows], other[rows], np.ones(len(rows), bool)
    for name in names:
        few = table[name].take(pa.array(rows)).cast(pa.string())
        is_own, is_other = _holds(few, names, name)
        own += is_own & (name not in held)
        other += is_other & (name not in held)
        fits &= is_own | few.is_null().to_numpy()
    return rows[fits & (own >= min(_LEAST, len(names)))], rows[other >= _LEAST]


def _has_any(column: pa.ChunkedArray, names: dict[str, str]) -> bool:
    """Says whether a column may hold a name; most have no value as long as one, and need no lower case of all."""
    lengths = pa.array({len(name.encode()) + blanks for name in names.values() for blanks in range(3)}, pa.int32())
    for values in (chunk.dictionary for chunk in column.chunks):
        near = values.filter(pc.is_in(pc.binary_length(values).cast(pa.int32()), value_set=lengths))
        if len(near) and pc.any(pc.is_in(_plain(near), value_set=_names_as(near.type, names))).as_py():
            return True
    return False


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(plain) or pa.types.is_large_string(plain)


def _plain(values: pa.Array) -> pa.Array:
    return pc.utf8_lower(pc.utf8_trim_whitespace(values))


def _names_as(kind: pa.DataType, names: dict[str, str]) -> pa.Array:
    return pa.array(list(names.values()), kind)


def _holds(column: pa.ChunkedArray, names: dict[str, str], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Says which rows of a column hold its own name, and which another column's."""
    found = []
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        lower = _plain(values)
        own = pc.equal(lower, names[name]).fill_null(False).to_numpy(zero_copy_only=False)
        others = pc.is_in(lower, value_set=_names_as(lower.type, names)).to_numpy(zero_copy_only=False)
        both = own, others & ~own
        if pa.types.is_dictionary(chunk.type):
            index = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            both = tuple(np.append(one, False)[index] for one in both)
        found.append(both)
    if not found:
        return np.empty(0, bool), np.empty(0, bool)
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]
