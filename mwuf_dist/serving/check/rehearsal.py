"""Deltas made up for a check: some items of an export moved, some born, one gone, as the daily job would write it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.data.vectors import column_of
from mwuf_dist.serving.deltas.files import write_delta
from mwuf_dist.serving.deltas.reader import values_of

_NUM, _MOST_ITEMS, _BORN = 4, 1000, 2
_MOVED_BY = 0.5  # Standard deviation, in units of the embeddings' own.


def made_up_deltas(export: Path, about: dict[str, Any], folder: Path) -> list[Path]:
    """Writes deltas that go on from an export in Parquet, for nothing but a check.

    Args:
        export: its folder.
        about: its `export.json`.
        folder: made here.
    """
    folder.mkdir()
    items = pq.read_table(export / "items.parquet")
    random = np.random.default_rng(0)
    state, paths = about["state"], []
    before = state["hash"]
    spread = _MOVED_BY * float(values_of(items["embedding"]).std()) if len(items) else 1.0
    gone = random.permutation(len(items))[:_NUM]
    for step in range(_NUM):
        after = secrets.token_hex(16)
        there = np.setdiff1d(np.arange(len(items)), gone[: step + 1])
        moved = random.permutation(there)[:_MOST_ITEMS]
        table = items.take(pa.array(np.append(moved, moved[:_BORN])))
        born = _new_ids(items["item_id"].type, step, min(_BORN, len(moved)))
        ids = pa.concat_arrays([table["item_id"].slice(0, len(moved)).combine_chunks(), born])
        vectors = values_of(table["embedding"])
        vectors = (vectors + random.normal(size=vectors.shape) * spread).astype(np.float32)
        changed = _with(_with(table, "item_id", ids), "embedding", column_of(vectors))
        retired = items.select(["item_id"]).take(pa.array(gone[step : step + 1]))
        number = state["number"] + step + 1
        header = {"chain": state["chain"], "number": number, "before": before, "after": after}
        paths.append(write_delta(folder, header, {"changed": changed, "retired": retired}))
        before = after
    return paths


def _new_ids(kind: pa.DataType, step: int, num: int) -> pa.Array:
    """Returns IDs that no export has."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([f"made up for a check: {step}-{one}" for one in range(num)], kind)
    return pa.array([-(10**12) - step * _BORN - one for one in range(num)], kind)


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
