"""Vectors of items: fields that are not looked up in a table but given as numbers, by an encoder outside.

In the prepared folder each number is standardised by mean and deviation over the old items that have a vector, and an
item without one has zeros: the old items' mean. The statistics stand in the manifest, so that items that come later are
standardised alike, and know nothing of new items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.data.schema import Field

_LEAST_DEVIATION = 1e-6


def matrix(column: pa.Array) -> np.ndarray:
    """Returns the numbers of a column of vectors [E, size], float32, zeros where there is none."""
    size = column.type.list_size
    whole = column.fill_null(pa.scalar([0.0] * size, column.type)) if column.null_count else column
    return np.array(whole.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, size)


def column_of(values: np.ndarray, has: np.ndarray | None = None) -> pa.Array:
    """Returns a column of vectors [E, size] as a table holds it, null where an entity has none."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    mask = None if has is None or has.all() else pa.array(~has)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.float32(), values.shape[1]), mask=mask)


def standardise(items: pa.Table, fields: Sequence[Field], num_old: int) -> tuple[pa.Table, dict[str, Any]]:
    """Standardises the vector fields by the old items' statistics.

    Args:
        items: a row per item, old ones first.
        fields: of the data set.
        num_old: number of old items.

    Returns:
        The table, and for each field `mean` and `deviation` [size] and how many items had `missing` vectors.

    Raises:
        UserError: no old item has one.
    """
    scales = {}
    for field in fields:
        if field.kind != "vector":
            continue
        column = items[field.name].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        has, values = column.is_valid().to_numpy(zero_copy_only=False), matrix(column).astype(np.float64)
        known = values[:num_old][has[:num_old]]
        if not len(known):
            raise UserError(f"field {field.name}: no old item has a vector, so nothing can be learned of it")
        mean, deviation = known.mean(0), known.std(0)
        deviation = np.where(deviation > _LEAST_DEVIATION, deviation, 1.0)
        scale = {"mean": mean.tolist(), "deviation": deviation.tolist(), "missing": int((~has).sum())}
        place = items.column_names.index(field.name)
        items = items.set_column(place, field.name, column_of(scaled(values, has, scale)))
        scales[field.name] = scale
    return items, scales


def scaled(values: np.ndarray, has: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """Returns vectors [E, size] standardised, zeros where there is none."""
    out = (values - np.array(scale["mean"])) / np.array(scale["deviation"])
    return np.where(has[:, None], out, 0.0)


def notes(scales: Mapping[str, Any], num_items: int) -> list[str]:
    """Says how many items have no vector."""
    return [
        f"field {name}: {scale['missing']:,} of {num_items:,} items have no vector: they get the old items' mean"
        for name, scale in scales.items()
        if scale["missing"]
    ]
