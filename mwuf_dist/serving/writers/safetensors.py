"""One safetensors file for the items and one for the users.

The safetensors library has no writer that takes a tensor in pieces, so its layout (the length of the header in 8 bytes,
the header as JSON, then the tensors one after another) is written here; a test reads it with the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.serving.export.chunks import Columns
from mwuf_dist.serving.finished_run import PHASE_NAMES
from mwuf_dist.serving.writers.arrays import ArrayTable, Column, entities_of, is_text, longest, shape_of
from mwuf_dist.serving.writers.interface import Entities, Table, Writer

_TYPES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


class SafetensorsWriter(Writer):
    """Writes `items.safetensors` and `users.safetensors`."""

    def table(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> Table:
        """See `Writer.table`."""
        return SafetensorsTable(folder, entity, ids, columns)

    def read(self, folder: Path, entity: str) -> Entities:
        """See `Writer.read`."""
        return entities_of(_read(folder / f"{entity}s.safetensors"), entity)

    def files(self, folder: Path, entity: str) -> set[str]:
        """See `Writer.files`."""
        return {f"{entity}s.safetensors"}


class SafetensorsTable(ArrayTable):
    """`items.safetensors`: a tensor item_id and one per column. Arguments as of `Writer.table`.

    The format has no text: IDs that are text are UTF-8 bytes [n, longest], filled up with zeros.
    """

    def __init__(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> None:
        super().__init__(entity)
        num = len(ids)
        self._width = longest(ids, "binary_length") if is_text(ids) else 0
        shapes = {name: (dtype, [*shape_of(num, width)]) for name, (dtype, width) in columns.items()}
        shapes[self._id_name] = ("uint8", [num, self._width]) if self._width else ("int64", [num])
        # Wide types first, so that every tensor begins at a multiple of its type's size.
        shapes = dict(sorted(shapes.items(), key=lambda shape: -np.dtype(shape[1][0]).itemsize))
        header: dict[str, Any] = {"__metadata__": {"phases": ",".join(PHASE_NAMES)}}
        end = 0
        for name, (dtype, shape) in shapes.items():
            begin, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
        path = folder / f"{entity}s.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            data = file.tell()
            file.truncate(data + end)
        for name in shapes:
            self._columns[name] = Column(path, data + header[name]["data_offsets"][0])

    def _ids(self, ids: pa.Array) -> np.ndarray:
        if not self._width:
            return ids.to_numpy().astype("<i8", copy=False)
        encoded = np.array([text.encode() for text in ids.to_pylist()], dtype=f"S{self._width}")
        return encoded.view(np.uint8).reshape(len(ids), self._width)


def _read(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    types = {theirs: ours for ours, theirs in _TYPES.items()}
    found = {}
    for name, one in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            first, last = one["data_offsets"]
            values = np.frombuffer(content[begin + first : begin + last], types[one["dtype"]])
            found[name] = values.reshape(one["shape"]).copy()
    return found
