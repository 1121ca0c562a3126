"""A log in many files: what is read does not depend on the cuts, and its cost does not grow with them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mwuf_dist.data.readers.arrow_types import together, with_one_dictionary
from mwuf_dist.data.readers.ids import codes


def test_columns_of_many_files_are_one_column_with_one_dictionary() -> None:
    parts = [pa.chunked_array([pa.array([f"v{k}", None, f"v{k + 1}"]).dictionary_encode()]) for k in range(50)]
    column = together(parts)
    assert isinstance(column, pa.ChunkedArray) and column.num_chunks == 1
    assert column.to_pylist() == [one for k in range(50) for one in (f"v{k}", None, f"v{k + 1}")]
    assert len(column.chunk(0).dictionary) == 51
    index, values = codes(column)
    assert [values[int(one)].as_py() if one >= 0 else None for one in index] == column.to_pylist()


def test_a_column_without_rows_has_no_codes() -> None:
    nothing = pa.chunked_array([], pa.dictionary(pa.int32(), pa.string()))
    assert len(with_one_dictionary(nothing)) == 0 and len(codes(nothing)[0]) == 0


def test_codes_hold_the_distinct_values_once_for_all_chunks() -> None:
    """The bytes that the codes of 64 chunks take are those of one: no chunk brings the whole dictionary again."""
    values = np.arange(64 * 500) % 3000
    chunks = [pa.array(part.astype(str)).dictionary_encode() for part in np.split(values, 64)]
    whole = with_one_dictionary(pa.chunked_array(chunks))
    assert len(whole.dictionary) == 3000 and len(whole) == len(values)
    assert whole.nbytes < 2 * pa.array(values.astype(str)).dictionary_encode().nbytes
