"""Any Arrow column as one of few types: text, int64, double, bool, timestamp[us] or a list of text.

The same table gives the same columns whether it stands in CSV or in Parquet, and whoever wrote the Parquet: decimals
and uint64 are exact, binary that is text is text, and a list is a list however Arrow nests it.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

BLANKS = " \t\r\n\x0b\x0c\xa0\ufeff\u200b\u3000"
_EXACT = 2.0**53
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # No text has such a character.


class UnreadTypeError(Exception):
    """A column has a type that no feature, ID, time or label has; the message says which."""


def is_list(kind: pa.DataType) -> bool:
    """Says whether it is a list of any of Arrow's kinds."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(one(kind) for one in kinds) or str(kind).startswith(("list_view", "large_list_view"))


def is_vectors(kind: pa.DataType) -> bool:
    """Says whether a column of this type may hold vectors: lists of numbers."""
    return is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def as_vectors(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column of lists of numbers as list<float32>."""
    chunks = [chunk.cast(pa.list_(chunk.type.value_type)).cast(pa.list_(pa.float32())) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.list_(pa.float32()))


def simple(column: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Returns a column with one of the few types; text, integers and floats dictionary-encoded.

    Args:
        column: of any type [R].
        missing: texts that mean missing; blanks around text are taken off before.

    Raises:
        UnreadTypeError: a struct, a map, a vector, a time of day: nothing that is read.
    """
    column = _stored(column)
    kind = column.type
    if is_list(kind):
        return _list(column, missing)
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_timestamp(plain) or pa.types.is_date(plain):
        return _instants(column.cast(plain))
    if pa.types.is_boolean(plain):
        return column.cast(plain)
    encoded = _one_dictionary(column)
    values = _simple_values(encoded.dictionary, missing)
    if values.equals(encoded.dictionary):  # the usual case: nothing to make plain
        return pa.chunked_array([pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), values)])
    return pa.chunked_array([_recoded(encoded.indices, values)])


def _stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Finds what an extension type (uuid, json) is made of."""
    kind = column.type
    if not isinstance(kind, pa.BaseExtensionType):
        return column
    stored = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    if kind.extension_name != "arrow.uuid":
        return stored
    texts = [None if one is None else str(uuid.UUID(bytes=one)) for one in stored.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _one_dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_dictionary(column.type):
        try:
            column = column.dictionary_encode()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise UnreadTypeError(f"{column.type}") from None
    column = column.unify_dictionaries()
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no rows at all
        whole = whole.chunk(0) if whole.num_chunks else pa.DictionaryArray.from_arrays(
            pa.array([], pa.int32()), pa.array([], column.type.value_type)
        )  # fmt: skip
    return _used(whole)


def _used(encoded: pa.DictionaryArray) -> pa.DictionaryArray:
    """Leaves out of a dictionary what no row has: a category of pandas may have none."""
    indices = encoded.indices.drop_null().to_numpy()
    is_used = np.bincount(indices, minlength=len(encoded.dictionary)) > 0
    if is_used.all():
        return encoded
    places = pa.array(np.cumsum(is_used) - 1, pa.int32())
    return pa.DictionaryArray.from_arrays(places.take(encoded.indices), encoded.dictionary.filter(pa.array(is_used)))


def _simple_values(values: pa.Array, missing: Sequence[str]) -> pa.Array:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _text(values, missing)
    if pa.types.is_integer(kind):
        return _without_numbers(_integers(values), missing)
    if pa.types.is_decimal(kind):
        try:
            whole = _integers(values.cast(pa.decimal256(76, 0)) if kind.scale > 0 else values)
            return _without_numbers(whole, missing)
        except pa.ArrowInvalid:  # it has fractions
            return _without_numbers(values.cast(pa.float64()), missing)
    if pa.types.is_floating(kind):
        if not pa.types.is_float64(kind):  # 4.1, and not 4.099999904632568
            values = values.cast(pa.float32()).cast(pa.string())
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)  # pandas writes a gap among numbers as NaN.
        return _without_numbers(values, missing)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _text(_binary(values, missing), missing)
    if pa.types.is_null(kind):
        return values.cast(pa.string())
    raise UnreadTypeError(str(kind))


def _text(values: pa.Array, missing: Sequence[str]) -> pa.Array:
    """Texts without blanks around them, null where they mean missing."""
    values = pc.utf8_trim(values.cast(pa.string()), characters=BLANKS)
    if pc.any(pc.starts_with(values, '="')).as_py():  # how text with digits is kept from a spreadsheet
        values = pc.replace_substring_regex(values, r'^="(.*)"$', r"\1")
    return pc.if_else(pc.is_in(values, value_set=pa.array(list(missing), pa.string())), None, values)


def numbers_in(missing: Sequence[str]) -> list[float]:
    """Returns the numbers among what means missing: -1, say; whole ones as int."""
    found = []
    for word in missing:
        with contextlib.suppress(ValueError):
            found.append(int(word) if word.lstrip("+-").isdecimal() else float(word))
    return [one for one in found if np.isfinite(one)]


def _without_numbers(values: pa.Array, missing: Sequence[str]) -> pa.Array:
    """Numbers, or the digits of large ones, null where they mean missing, as they do in text."""
    if not (numbers := numbers_in(missing)):
        return values
    if pa.types.is_string(values.type):
        return _text(values, missing)
    is_whole = pa.types.is_integer(values.type)
    wanted = [one for one in numbers if not is_whole or (one == int(one) and abs(one) < 2**63)]
    means = pa.array([int(one) if is_whole else float(one) for one in wanted], values.type)
    return pc.if_else(pc.is_in(values, value_set=means), None, values)


def _integers(values: pa.Array) -> pa.Array:
    """int64 where all of them fit, else their digits."""
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        return values.cast(pa.string())


def _binary(values: pa.Array, missing: Sequence[str]) -> pa.Array:
    """Text that a writer has marked as bytes, else hexadecimal digits behind `0x`: by each value alone, so files agree.

    Of a fixed width also numbers and keys are written, some of which look like text. So there text is only what zeros
    fill up, if anything (or blanks, as a database fills up CHAR, where the width is no number's), and what nothing
    that is done to text would make another's: no blanks before it, no word for missing. Parquet has gaps of its own.
    """
    is_fixed, plain = pa.types.is_fixed_size_binary(values.type), values.cast(pa.binary())
    with contextlib.suppress(pa.ArrowInvalid):
        text = plain.cast(pa.string())
        if not is_fixed and not pc.any(pc.match_substring_regex(text, _CONTROL)).as_py():
            return text
    kept_apart = (*missing, "") if is_fixed else ()
    words = [None if one is None else _text_or_digits(one, is_fixed, kept_apart) for one in plain.to_pylist()]
    return pa.array(words, pa.string())


def _text_or_digits(value: bytes, is_fixed: bool, kept_apart: Sequence[str]) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        text = _without_padding(value).decode() if is_fixed else value.decode()
        is_as_written = not is_fixed or (text == text.strip(BLANKS) and text not in kept_apart)
        if is_as_written and not re.search(_CONTROL, text):
            return text
    return f"0x{value.hex()}"


def _without_padding(value: bytes) -> bytes:
    """Returns text without what fills up its width: zeros, or blanks.

    Of numbers of up to four bytes one may be `A` and blanks, and another `A` and zeros; longer ones are too many.
    """
    filling = b" " if value.endswith(b" ") and len(value) > 4 else b"\0"
    return value.rstrip(filling)


def _recoded(indices: pa.Array, values: pa.Array) -> pa.DictionaryArray:
    """Codes of values that may be missing or equal after they were made plain."""
    again = values.dictionary_encode()
    if not again.null_count and len(again.dictionary) == len(values):
        return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), again.dictionary)
    return pa.DictionaryArray.from_arrays(again.indices.take(indices), again.dictionary)


def _instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """timestamp[us] in UTC; without a zone it counts as UTC."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    column = column.cast(pa.timestamp("us", zone), safe=False)
    return column.cast(pa.int64()).cast(pa.timestamp("us"))


def _list(column: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """list<string>; a value that is missing is null."""
    return pa.chunked_array([_list_chunk(chunk, missing) for chunk in column.chunks], pa.list_(pa.string()))


def _list_chunk(chunk: pa.Array, missing: Sequence[str]) -> pa.Array:
    inner = chunk.type.value_type
    if isinstance(inner, pa.BaseExtensionType) or is_list(inner):
        raise UnreadTypeError(str(chunk.type))
    chunk = chunk.cast(pa.list_(inner))
    lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
    values = _stored(pa.chunked_array([chunk.flatten()]))
    if pa.types.is_timestamp(inner) or pa.types.is_date(inner) or pa.types.is_boolean(inner):
        text = values.cast(pa.string()).combine_chunks()
    else:
        encoded = simple(values, missing).combine_chunks()
        encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.chunk(0)
        if pa.types.is_floating(encoded.dictionary.type) and not all_integral(encoded.dictionary):
            raise UnreadTypeError(f"{chunk.type}, a vector")
        text = text_of(encoded.dictionary).take(encoded.indices)
    offsets = np.zeros(len(chunk) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = chunk.is_null() if chunk.null_count else None
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    return pa.ListArray.from_arrays(pa.array(offsets), text, mask=mask)


def all_integral(values: pa.Array) -> bool:
    """Says whether floats are whole and small enough to be exact."""
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    return bool((np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < _EXACT)).all())


def text_of(values: pa.Array) -> pa.Array:
    """Values as text, whole numbers without a point: 3.0 of a column with gaps is 3, as in one without."""
    if pa.types.is_floating(values.type) and len(values) and all_integral(values):
        values = values.cast(pa.int64())
    return values.cast(pa.string())


def together(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray | tuple[int, int]:
    """Columns of several files, each from `simple`, as one column.

    Args:
        parts: a column per file.

    Returns:
        The column; or the places of two parts of which one has lists and the other text, which are not joined.
    """
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        lists = [is_list(part.type) for part in parts]
        if any(lists):
            other = next((k for k, part in enumerate(parts) if not lists[k] and part.null_count < len(part)), None)
            if other is not None:
                return lists.index(True), other
            empty = [pa.chunked_array([pa.nulls(len(part), pa.list_(pa.string()))]) for part in parts]
            parts = [part if is_it else none for part, is_it, none in zip(parts, lists, empty, strict=True)]
        else:
            parts = _one_type([plain(part) for part in parts])
    kind = parts[0].type
    column = pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind)
    return pa.chunked_array([with_one_dictionary(column)]) if pa.types.is_dictionary(kind) else column


def with_one_dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Returns a column of dictionaries as one array.

    Arrow's own `combine_chunks` joins the dictionaries again, for each chunk anew: 2 s for 60 chunks that share one of
    half a million values.
    """
    if not column.num_chunks:
        return pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], column.type.value_type))
    if column.num_chunks == 1:
        return column.chunk(0)
    chunks = column.unify_dictionaries().chunks
    return pa.DictionaryArray.from_arrays(pa.concat_arrays([one.indices for one in chunks]), chunks[0].dictionary)


def plain(part: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column without a dictionary."""
    return part.cast(part.type.value_type) if pa.types.is_dictionary(part.type) else part


def _one_type(parts: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Numbers stay numbers, exactly; anything else is text."""
    filled = [part for part in parts if part.null_count < len(part)]
    if all(pa.types.is_integer(part.type) or pa.types.is_floating(part.type) for part in filled):
        whole = all(not pa.types.is_floating(part.type) or all_integral(part.combine_chunks()) for part in filled)
        kind = pa.int64() if whole else pa.float64()
        with contextlib.suppress(pa.ArrowInvalid):
            return [_as(part, kind).dictionary_encode() for part in parts]
    if all(pa.types.is_timestamp(part.type) for part in filled):
        return [_as(part, pa.timestamp("us")) for part in parts]
    if all(pa.types.is_boolean(part.type) for part in filled):
        return [_as(part, pa.bool_()) for part in parts]
    texts = [pa.chunked_array([text_of(part.combine_chunks())]) for part in parts]
    return [text.dictionary_encode() for text in texts]


def _as(part: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(len(part), kind)]) if part.null_count == len(part) else part.cast(kind)
