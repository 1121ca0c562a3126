"""Parquet: the default format, and the layout of items and users that others add to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.serving.deltas.reader import values_of
from mwuf_dist.serving.export.chunks import Chunk, Columns
from mwuf_dist.serving.finished_run import PHASE_NAMES
from mwuf_dist.serving.writers.interface import Entities, Table, Writer

ITEMS = "items.parquet"


class ParquetWriter(Writer):
    """Writes `items.parquet` and `users.parquet`."""

    def table(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> Table:
        """See `Writer.table`."""
        return ParquetTable(folder, entity, ids, columns)

    def read(self, folder: Path, entity: str) -> Entities:
        """See `Writer.read`."""
        table, name_of_id = pq.read_table(folder / f"{entity}s.parquet"), f"{entity}_id"
        columns = {name: values_of(table[name]) for name in table.column_names if name != name_of_id}
        return table[name_of_id].to_pylist(), columns

    def files(self, folder: Path, entity: str) -> set[str]:
        """See `Writer.files`."""
        return {f"{entity}s.parquet"}


class ParquetTable:
    """`items.parquet`: item_id and the columns, vectors as lists of float32, phase as text; a row group per chunk.

    Neither compressed nor dictionary-encoded: embeddings hold no repetition, and both only cost time.

    Args:
        folder: to write into.
        entity: "item" or "user".
        ids: of all rows.
        columns: the others.
    """

    def __init__(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> None:
        self._phases = pa.array(PHASE_NAMES)
        self._types = {name: _parquet_type(name, *kind) for name, kind in columns.items()}
        types = {f"{entity}_id": ids.type} | self._types
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
        encoding: dict[str, Any] = {
            "use_dictionary": ["phase"] if "phase" in types else False,
            "write_statistics": [name for name in (f"{entity}_id", "interactions") if name in types],
        }
        path = folder / f"{entity}s.parquet"
        self._writer = pq.ParquetWriter(path, self._schema, compression="none", **encoding)

    def write(self, chunk: Chunk) -> None:
        """See `Table.write`."""
        columns = [self._arrow(values, self._types[name]) for name, values in chunk.columns.items()]
        self._writer.write_batch(pa.record_batch([chunk.ids, *columns], schema=self._schema))

    def close(self) -> None:
        """See `Table.close`."""
        self._writer.close()

    def _arrow(self, values: np.ndarray, kind: pa.DataType) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return pa.DictionaryArray.from_arrays(pa.array(values.view(np.int8)), self._phases)
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
        return pa.array(values)


def _parquet_type(name: str, dtype: str, width: int) -> pa.DataType:
    if name == "phase":
        return pa.dictionary(pa.int8(), pa.string())
    kind = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.list_(pa.field("element", kind, nullable=False), width) if width else kind
