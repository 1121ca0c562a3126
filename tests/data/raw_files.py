"""Small raw files, written where the sources look for them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.data.schema import RawDataset, RawPieces


def write_files(folder: Path, texts: dict[str, str], zipped: bool = False) -> Path:
    """Writes each text into the file of that name (and `.gz`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_bytes(text.encode())
    return folder


def field_values(dataset: RawDataset, side: str, name: str) -> dict[Any, int]:
    """Index of a field by raw ID."""
    table: pa.Table = dataset.users if side == "user" else dataset.items
    return dict(zip(table["raw_id"].to_pylist(), table[name].to_pylist(), strict=True))


def rows_of(dataset: RawDataset) -> list[tuple[Any, ...]]:
    """(raw user, raw item, label, time) of each row."""
    users, items = dataset.users["raw_id"].to_pylist(), dataset.items["raw_id"].to_pylist()
    columns = (dataset.interactions[name].to_pylist() for name in ("user", "item", "label", "time"))
    return [(users[u], items[i], label, time) for u, i, label, time in zip(*columns, strict=True)]


def in_memory(raw: RawPieces) -> RawDataset:
    """All pieces together; a user or item is a row of its table."""
    blocks = [block for piece in raw.pieces for block in raw.read(piece)]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    ids = {side: np.unique(columns[side], return_counts=True) for side in ("user", "item")}
    entities = raw.entities(ids["user"][0].astype(np.int64), *(array.astype(np.int64) for array in ids["item"]))
    if not raw.ids_are_rows:
        columns |= {side: np.searchsorted(known, columns[side]) for side, (known, _) in ids.items()}
    columns |= {side: columns[side].astype(np.int32) for side in ids}
    return RawDataset(pa.table(columns), entities.users, entities.items, entities.fields)


def files_of(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
