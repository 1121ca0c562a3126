"""Plain arrays in files, which the formats npy and safetensors share: written chunk by chunk, phases as codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mwuf_dist.serving.export.chunks import Chunk
from mwuf_dist.serving.finished_run import PHASE_NAMES
from mwuf_dist.serving.writers.interface import Entities


def entities_of(columns: dict[str, np.ndarray], entity: str) -> Entities:
    """Makes of the columns in the files what `Writer.read` gives."""
    ids = columns.pop(f"{entity}_id")
    if ids.ndim == 2:  # text as bytes
        ids = np.array([bytes(row).rstrip(b"\0").decode() for row in ids], dtype=object)
    if "phase" in columns:
        columns["phase"] = np.array(PHASE_NAMES)[columns["phase"]]
    return ids.tolist(), columns


class Column:
    """An array of known shape in a file, from some byte on, filled from its beginning to its end.

    Written and not mapped: pages of a mapped file count as this process's memory until the kernel takes them back.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("r+b")
        self._file.seek(offset)

    def append(self, values: np.ndarray) -> None:
        """Writes the next values."""
        self._file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ArrayTable:
    """Writes a table whose columns are plain arrays; a subclass opens the files."""

    def __init__(self, entity: str) -> None:
        self._id_name = f"{entity}_id"
        self._columns: dict[str, Column] = {}

    def write(self, chunk: Chunk) -> None:
        """See `Table.write`."""
        self._columns[self._id_name].append(self._ids(chunk.ids))
        for name, values in chunk.columns.items():
            self._columns[name].append(values)

    def close(self) -> None:
        """See `Table.close`."""
        for column in self._columns.values():
            column.close()

    def _ids(self, ids: pa.Array) -> np.ndarray:
        raise NotImplementedError


def shape_of(num: int, width: int) -> tuple[int, ...]:
    """Returns the shape of a column with so many rows; `width` 0: one value each."""
    return (num, width) if width else (num,)


def is_text(ids: pa.Array) -> bool:
    """Says whether IDs are text."""
    return pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)


def longest(ids: pa.Array, length: str) -> int:
    """Returns the length of the longest ID, at least 1, as the Arrow function `length` counts it."""
    most = pc.call_function("max", [pc.call_function(length, [ids])]).as_py()
    return max(1, most or 0)
