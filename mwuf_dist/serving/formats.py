"""The files of an export, written chunk by chunk: Parquet, one safetensors file, or one .npy per column.

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

from mwuf_dist.serving.item_chunks import ItemChunk
from mwuf_dist.serving.run_folder import PHASE_NAMES

_SAFETENSORS_TYPES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


class ItemWriter(Protocol):
    """Takes the chunks of an export one after another."""

    def write(self, chunk: ItemChunk) -> None:
        """Appends a chunk."""
        ...

    def close(self) -> None:
        """Finishes the files."""
        ...


class ParquetWriter:
    """`items.parquet`: item_id, embedding (a list of D float32), phase (text), interactions; a row group per chunk.

    Neither compressed nor dictionary-encoded: embeddings hold no repetition, and both only cost time.
    """

    def __init__(self, folder: Path, id_type: pa.DataType, dim: int) -> None:
        self._phases = pa.array(PHASE_NAMES)
        self._vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
        types = {
            "item_id": id_type,
            "embedding": self._vector,
            "phase": pa.dictionary(pa.int8(), pa.string()),
            "interactions": pa.int64(),
        }
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
        encoding: dict[str, Any] = {"use_dictionary": ["phase"], "write_statistics": ["item_id", "interactions"]}
        self._writer = pq.ParquetWriter(folder / "items.parquet", self._schema, compression="none", **encoding)

    def write(self, chunk: ItemChunk) -> None:
        """See `ItemWriter.write`."""
        columns = [
            chunk.item_id,
            pa.FixedSizeListArray.from_arrays(pa.array(chunk.embedding.reshape(-1)), type=self._vector),
            pa.DictionaryArray.from_arrays(pa.array(chunk.phase.view(np.int8)), self._phases),
            pa.array(chunk.interactions),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        """See `ItemWriter.close`."""
        self._writer.close()


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

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def write(self, chunk: ItemChunk) -> None:
        """See `ItemWriter.write`."""
        self._columns["item_id"].append(self._ids(chunk.item_id))
        for name in ("embedding", "phase", "interactions"):
            self._columns[name].append(getattr(chunk, name))

    def close(self) -> None:
        """See `ItemWriter.close`."""
        for column in self._columns.values():
            column.close()

    def _ids(self, ids: pa.Array) -> np.ndarray:
        raise NotImplementedError


class NpyWriter(_ColumnWriter):
    """`item_id.npy`, `embedding.npy`, `phase.npy` (codes), `interactions.npy`; `np.load` can map them."""

    def __init__(self, folder: Path, item_ids: pa.Array, dim: int) -> None:
        super().__init__()
        num = len(item_ids)
        width = _longest(item_ids, "utf8_length") if _is_text(item_ids) else 0
        self._id_type = np.dtype(f"<U{width}") if width else np.dtype("<i8")
        shapes = {
            "item_id": (self._id_type, (num,)),
            "embedding": (np.dtype("<f4"), (num, dim)),
            "phase": (np.dtype("u1"), (num,)),
            "interactions": (np.dtype("<i8"), (num,)),
        }
        for name, (dtype, shape) in shapes.items():
            path = folder / f"{name}.npy"
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                self._columns[name] = _Column(path, file.tell())

    def _ids(self, ids: pa.Array) -> np.ndarray:
        return ids.to_numpy(zero_copy_only=False).astype(self._id_type)


class SafetensorsWriter(_ColumnWriter):
    """`items.safetensors`: tensors item_id, embedding, phase (codes), interactions.

    The format has no text: IDs that are text are UTF-8 bytes [n, longest], filled up with zeros.
    """

    def __init__(self, folder: Path, item_ids: pa.Array, dim: int) -> None:
        super().__init__()
        num = len(item_ids)
        self._width = _longest(item_ids, "binary_length") if _is_text(item_ids) else 0
        shapes = {
            "embedding": ("float32", [num, dim]),
            "interactions": ("int64", [num]),
            "item_id": ("uint8", [num, self._width]) if self._width else ("int64", [num]),
            "phase": ("uint8", [num]),
        }
        header: dict[str, Any] = {"__metadata__": {"phases": ",".join(PHASE_NAMES)}}
        end = 0
        for name, (dtype, shape) in shapes.items():
            begin, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
        path = folder / "items.safetensors"
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


def _is_text(ids: pa.Array) -> bool:
    return pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)


def _longest(ids: pa.Array, length: str) -> int:
    longest = pc.call_function("max", [pc.call_function(length, [ids])]).as_py()
    return max(1, longest or 0)
