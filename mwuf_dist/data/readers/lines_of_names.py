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
    own, other, fits = np.zeros(len(table), np.int16), np.zeros(len(table), np.int16), np.ones(len(table), bool)
    encoded = [name for name in names if pa.types.is_dictionary(table[name].type)]
    for name in encoded:
        is_own, is_other = _holds(table[name], names, name)
        own += is_own
        other += is_other
        fits &= is_own | table[name].is_null().to_numpy()
    least = min(_LEAST, max(1, len(encoded)))
    rows = np.flatnonzero(((own >= least) & fits) | (other >= least))
    for name in names.keys() - set(encoded) if len(rows) else ():
        few = table[name].take(pa.array(rows)).cast(pa.string())
        is_own, is_other = _holds(few, names, name)
        own[rows] += is_own
        other[rows] += is_other
        fits[rows] &= is_own | few.is_null().to_numpy()
    least = min(_LEAST, len(names))
    return rows[fits[rows] & (own[rows] >= least)], rows[other[rows] >= _LEAST]


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(plain) or pa.types.is_large_string(plain)


def _holds(column: pa.ChunkedArray, names: dict[str, str], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Says which rows of a column hold its own name, and which another column's."""
    found = []
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(values))
        own = pc.equal(lower, names[name]).fill_null(False).to_numpy(zero_copy_only=False)
        others = pc.is_in(lower, value_set=pa.array(list(names.values()), lower.type)).to_numpy(zero_copy_only=False)
        both = own, others & ~own
        if pa.types.is_dictionary(chunk.type):
            index = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            both = tuple(np.append(one, False)[index] for one in both)
        found.append(both)
    if not found:
        return np.empty(0, bool), np.empty(0, bool)
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]
