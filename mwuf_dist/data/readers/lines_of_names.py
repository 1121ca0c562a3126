"""Lines of column names that stand again within a file (`cat a.csv b.csv`), which are no rows."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.data.readers.arrow_types import BLANKS

_LEAST = 2  # columns that hold names; in a table of one column, that one
_AROUND = BLANKS + '"#'  # what may stand around a name: blanks, byte-order marks, quotes that are none, `#user_id`
_STRANGERS = 3  # One column of so many may hold what is no name of this file in a line of names of another.


@dataclass(frozen=True)
class LinesOfNames:
    """Holds rows of a table, ascending.

    Attributes:
        again: every column holds its own name, in whatever case, or nothing (where it has none, or is of numbers).
        in_another_order: every column holds a column's name, each another one.
        of_another_file: most hold their own name, and the others a word that is none here.
    """

    again: np.ndarray
    in_another_order: np.ndarray
    of_another_file: np.ndarray


def find(table: pa.Table) -> LinesOfNames:
    """Returns the rows of a file, as it was read, that are lines of names."""
    nothing = LinesOfNames(*[np.empty(0, np.int64)] * 3)
    names = dict(zip(table.column_names, _plain(pa.array(table.column_names)).to_pylist(), strict=True))
    columns = {name: _words(table[name]) for name in names}
    encoded = [name for name in names if pa.types.is_dictionary(columns[name].type)]
    least = min(_LEAST, max(1, len(encoded)))
    held = [name for name in encoded if _has_any(columns[name], names)]
    if len(held) < least:
        return nothing
    named = np.zeros(len(table), np.int16)
    for name in held:
        named += _holds(columns[name], list(names.values()))
    rows = np.flatnonzero(named >= least)
    if not len(rows):
        return nothing
    few = {name: _nothing_for_empty(_plain(columns[name].take(pa.array(rows)).combine_chunks())) for name in names}
    own = sum(_is(few[name], [names[name]]).astype(int) for name in names)
    named = sum(_is(one, list(names.values())).astype(int) for one in few.values())
    is_null = [one.is_null().to_numpy(zero_copy_only=False) for one in few.values()]
    words = sum((pc.match_substring_regex(one, r"\p{L}").fill_null(False).to_numpy(zero_copy_only=False)).astype(int)
                for one in few.values())  # fmt: skip
    filled = len(names) - sum(one.astype(int) for one in is_null)
    least = min(_LEAST, len(names))
    again = (own == filled) & (own >= least)
    permuted = np.asarray((named == filled) & (own < named) & (2 * named > len(names)))
    for place in np.flatnonzero(permuted).tolist():
        permuted[place] = _are_distinct(few, place)
    strangers = filled - own
    other = (named < filled) & (words == filled) & (own >= least) & (strangers * _STRANGERS <= filled)
    return LinesOfNames(rows[again], rows[permuted], rows[other & ~permuted])


def _words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns text as it is, bytes that are text, and nothing of other types, which hold no names."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and kind == column.type:
        with contextlib.suppress(pa.ArrowInvalid):  # bytes that are no text
            return column.cast(pa.string()).dictionary_encode()
    return pa.chunked_array([pa.nulls(len(column), pa.string())])


def _has_any(column: pa.ChunkedArray, names: dict[str, str]) -> bool:
    """Says whether a column may hold a name; most have no value as long as one, and need no lower case of all."""
    lengths = {length for name, bare in names.items() for length in range(len(bare.encode()), len(name.encode()) + 3)}
    for values in (chunk.dictionary for chunk in column.chunks):
        trimmed = pc.utf8_trim(values, characters=_AROUND)
        near = trimmed.filter(pc.is_in(pc.binary_length(trimmed).cast(pa.int64()), value_set=pa.array(lengths)))
        if len(near) and _is(_plain(near), list(names.values())).any():
            return True
    return False


def _plain(values: pa.Array) -> pa.Array:
    """Returns words as names are compared: `User ID`, `userId` and `"user_id"` are one."""
    text = values.cast(pa.string()) if not pa.types.is_string(values.type) else values
    return pc.replace_substring_regex(pc.utf8_lower(pc.utf8_trim(text, characters=_AROUND)), r"[\s_.\-]+", "")


def _nothing_for_empty(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _is(values: pa.Array, names: list[str]) -> np.ndarray:
    return pc.is_in(values, value_set=pa.array(names, values.type)).to_numpy(zero_copy_only=False)


def _holds(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    """Says which rows of a dictionary-encoded column hold a name."""
    found = [np.empty(0, bool)]
    for chunk in column.chunks:
        index = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found.append(np.append(_is(_plain(chunk.dictionary), names), False)[index])
    return np.concatenate(found)


def _are_distinct(columns: dict[str, pa.Array], row: int) -> bool:
    there = [value for one in columns.values() if (value := one[row].as_py()) is not None]
    return len(set(there)) == len(there)
