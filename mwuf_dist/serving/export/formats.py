"""The files of an export, written chunk by chunk: Parquet, one safetensors file, or one .npy per column.

There is one table of items and, where asked for, one of users. In array formats a phase is its code.

The safetensors library has no writer that takes a tensor in pieces, so its layout (the length of the header in 8 bytes,
the header as JSON, then the tensors one after another) is written here; a test reads it with the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mwuf_dist.serving.deltas.reader import values_of
from mwuf_dist.serving.export.chunks import Chunk, Columns
from mwuf_dist.serving.finished_run import PHASE_NAMES

_OF_USERS = {"user_id", "user_context"}
_SAFETENSORS_TYPES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


class Writer(Protocol):
    """Takes the chunks of a table one after another."""

    def write(self, chunk: Chunk) -> None:
        """Appends a chunk."""
        ...

    def close(self) -> None:
        """Finishes the files."""
        ...


class ParquetWriter:
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
        """See `Writer.write`."""
        columns = [self._arrow(values, self._types[name]) for name, values in chunk.columns.items()]
        self._writer.write_batch(pa.record_batch([chunk.ids, *columns], schema=self._schema))

    def close(self) -> None:
        """See `Writer.close`."""
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


def read_items(folder: Path, kind: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    """(raw IDs [n], columns) of the items of an export in any format, phases as text."""
    if kind == "parquet":
        table = pq.read_table(folder / "items.parquet")
        columns = {name: values_of(table[name]) for name in table.column_names if name != "item_id"}
        return table["item_id"].to_pylist(), columns
    if kind == "npy":
        columns = {path.stem: np.load(path) for path in folder.glob("*.npy") if path.stem not in _OF_USERS}
    else:
        columns = _read_safetensors(folder / "items.safetensors")
    ids = columns.pop("item_id")
    if ids.ndim == 2:  # text as bytes
        ids = np.array([bytes(row).rstrip(b"\0").decode() for row in ids], dtype=object)
    columns["phase"] = np.array(PHASE_NAMES)[columns["phase"]]
    return ids.tolist(), columns


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    types = {theirs: ours for ours, theirs in _SAFETENSORS_TYPES.items()}
    found = {}
    for name, one in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            first, last = one["data_offsets"]
            values = np.frombuffer(content[begin + first : begin + last], types[one["dtype"]])
            found[name] = values.reshape(one["shape"]).copy()
    return found


class _Column:
    """An array of known shape in a file, from some byte on, filled from its beginning to its end.

    Written and not mapped: pages of a mapped file count as this process's memory until the kernel takes them back.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("r+b")
        self._file.seek(offset)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        self._file.close()


class _ColumnWriter:
    """Both formats that are plain arrays."""

    def __init__(self, entity: str) -> None:
        self._id_name = f"{entity}_id"
        self._columns: dict[str, _Column] = {}

    def write(self, chunk: Chunk) -> None:
        """See `Writer.write`."""
        self._columns[self._id_name].append(self._ids(chunk.ids))
        for name, values in chunk.columns.items():
            self._columns[name].append(values)

    def close(self) -> None:
        """See `Writer.close`."""
        for column in self._columns.values():
            column.close()

    def _ids(self, ids: pa.Array) -> np.ndarray:
        raise NotImplementedError


class NpyWriter(_ColumnWriter):
    """`item_id.npy` and one file per column, named as it; `np.load` can map them. Arguments as of `ParquetWriter`."""

    def __init__(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> None:
        super().__init__(entity)
        num = len(ids)
        width = _longest(ids, "utf8_length") if _is_text(ids) else 0
        self._id_type = np.dtype(f"<U{width}") if width else np.dtype("<i8")
        shapes = {self._id_name: (self._id_type, (num,))}
        shapes |= {name: (np.dtype(dtype), _shape(num, width)) for name, (dtype, width) in columns.items()}
        for name, (dtype, shape) in shapes.items():
            path = folder / f"{name}.npy"
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                self._columns[name] = _Column(path, file.tell())

    def _ids(self, ids: pa.Array) -> np.ndarray:
        return ids.to_numpy(zero_copy_only=False).astype(self._id_type)


class SafetensorsWriter(_ColumnWriter):
    """`items.safetensors`: a tensor item_id and one per column. Arguments as of `ParquetWriter`.

    The format has no text: IDs that are text are UTF-8 bytes [n, longest], filled up with zeros.
    """

    def __init__(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> None:
        super().__init__(entity)
        num = len(ids)
        self._width = _longest(ids, "binary_length") if _is_text(ids) else 0
        shapes = {name: (dtype, [*_shape(num, width)]) for name, (dtype, width) in columns.items()}
        shapes[self._id_name] = ("uint8", [num, self._width]) if self._width else ("int64", [num])
        # Wide types first, so that every tensor begins at a multiple of its type's size.
        shapes = dict(sorted(shapes.items(), key=lambda shape: -np.dtype(shape[1][0]).itemsize))
        header: dict[str, Any] = {"__metadata__": {"phases": ",".join(PHASE_NAMES)}}
        end = 0
        for name, (dtype, shape) in shapes.items():
            begin, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
        path = folder / f"{entity}s.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            data = file.tell()
            file.truncate(data + end)
        for name in shapes:
            self._columns[name] = _Column(path, data + header[name]["data_offsets"][0])

    def _ids(self, ids: pa.Array) -> np.ndarray:
        if not self._width:
            return ids.to_numpy().astype("<i8", copy=False)
        encoded = np.array([text.encode() for text in ids.to_pylist()], dtype=f"S{self._width}")
        return encoded.view(np.uint8).reshape(len(ids), self._width)


def _shape(num: int, width: int) -> tuple[int, ...]:
    return (num, width) if width else (num,)


def _is_text(ids: pa.Array) -> bool:
    return pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)


def _longest(ids: pa.Array, length: str) -> int:
    longest = pc.call_function("max", [pc.call_function(length, [ids])]).as_py()
    return max(1, longest or 0)
