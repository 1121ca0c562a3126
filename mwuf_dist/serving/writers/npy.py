"""One `.npy` file per column, which `np.load` can map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from mwuf_dist.serving.export.chunks import Columns
from mwuf_dist.serving.writers.arrays import ArrayTable, Column, entities_of, is_text, longest, shape_of
from mwuf_dist.serving.writers.interface import Entities, Table, Writer

_NOT_OF_ITEMS = {"user_id", "user_context", "field_id", "field_embedding"}


class NpyWriter(Writer):
    """Writes one file per column of the items and of the users, named as it."""

    def table(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> Table:
        """See `Writer.table`."""
        return NpyTable(folder, entity, ids, columns)

    def read(self, folder: Path, entity: str) -> Entities:
        """See `Writer.read`."""
        return entities_of({Path(name).stem: np.load(folder / name) for name in self.files(folder, entity)}, entity)

    def files(self, folder: Path, entity: str) -> set[str]:
        """See `Writer.files`."""
        if entity == "user":
            return {"user_id.npy", "user_context.npy"}
        return {path.name for path in folder.glob("*.npy") if path.stem not in _NOT_OF_ITEMS}


class NpyTable(ArrayTable):
    """`item_id.npy` and one file per column, named as it; `np.load` can map them. Arguments as of `Writer.table`."""

    def __init__(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> None:
        super().__init__(entity)
        num = len(ids)
        width = longest(ids, "utf8_length") if is_text(ids) else 0
        self._id_type = np.dtype(f"<U{width}") if width else np.dtype("<i8")
        shapes = {self._id_name: (self._id_type, (num,))}
        shapes |= {name: (np.dtype(dtype), shape_of(num, width)) for name, (dtype, width) in columns.items()}
        for name, (dtype, shape) in shapes.items():
            path = folder / f"{name}.npy"
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                self._columns[name] = Column(path, file.tell())

    def _ids(self, ids: pa.Array) -> np.ndarray:
        return ids.to_numpy(zero_copy_only=False).astype(self._id_type)
