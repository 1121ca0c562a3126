"""The tables of the fields as an export holds them: a server makes contexts of values that it has itself.

So it scores items and users it has never seen, and rows that have fields of their own (a position, a device).

A value's row is what the model reads for it: of a value that too few old items have the row of "unknown", of an ordinal
one with `embedding.smooth_ordinal` the mean with its neighbours. The ID of a user is no field here: users have it in
their own table, and one never seen has the first columns of `unknown_user`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.data import vocabulary
from mwuf_dist.data.schema import USER_ID, Field
from mwuf_dist.data.shards import FieldColumn
from mwuf_dist.embeddings.features import FeatureStore, rare_values, with_neighbours
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.serving.finished_run import FinishedRun


@dataclass(frozen=True)
class FieldTable:
    """Holds the rows of one field.

    Attributes:
        values: what each row stands for, text [n]: empty for "unknown" (row 0), a word, the upper edge of a bucket, the
            index itself where no words are kept, or which number of a vector it weighs.
        rows: embeddings [n, D], float32.
        about: what `export.json` says: side, kind, pooling, and of a vector the mean and deviation of its numbers.
    """

    values: pa.Array
    rows: np.ndarray
    about: dict[str, Any]


def field_tables(run: FinishedRun) -> dict[str, FieldTable]:
    """Reads the table of each field of a run, by its name, in the order of `context` in `export.json`."""
    words, model = vocabulary.read(run.prepared) or {}, run.model
    of_items = dict(_of_tables(run, model.items, model.item_tables, words))
    for name, weight in zip(model.items.vectors, model.vector_fields.maps, strict=True):
        about = {"side": "item", "kind": "vector", "pooling": "sum"} | run.prepared.manifest["vectors"][name]
        numbers = pa.array([str(one) for one in range(len(weight))])
        of_items[name] = FieldTable(numbers, weight.detach().cpu().numpy(), about)
    of_rows: dict[str, FieldTable] = {}
    for store, tables in zip(model.rows, model.row_tables, strict=True):
        of_rows |= {name: replace(one, about=one.about | {"side": "row"}) for name, one in
                    _of_tables(run, store, tables, words)}  # fmt: skip
    return of_items | of_rows | dict(_of_tables(run, model.users, model.user_tables, words))


def _of_tables(
    run: FinishedRun, store: FeatureStore, tables: Tables, words: dict[str, pa.Table]
) -> Iterator[tuple[str, FieldTable]]:
    embedding, device = run.config.embedding, run.model.runtime.device
    for field, name, table in zip(store.fields, store.names, store.tables, strict=True):
        if name == USER_ID:
            continue
        size = tables.specs[table].rows
        with torch.no_grad():
            rows = tables.rows_of(table, torch.arange(size, device=device)).cpu().numpy()
        served = _smoothed(rows, field) if embedding.smooth_ordinal and field.ordinal else rows.copy()
        if field.side == "item":
            column = run.prepared.entity("item").columns[name]
            served[rare_values(column, run.num_old_items, embedding.min_old_items)] = rows[0]
        kind, values = _values(words.get(name), size)
        about = {"side": field.side, "kind": kind, "pooling": field.pooling}
        yield name, FieldTable(values, served, about)


def _smoothed(rows: np.ndarray, field: Field) -> np.ndarray:
    """Returns the mean row of each value and its neighbours."""
    plain = Field(field.name, "categorical", field.side, field.size)
    bags = with_neighbours(FieldColumn(plain, None, np.arange(field.size, dtype=np.int32)))
    assert bags.offsets is not None
    sums = np.add.reduceat(rows[bags.values], bags.offsets[:-1], axis=0)
    return sums / np.diff(bags.offsets)[:, None].astype(np.float32)


def _values(table: pa.Table | None, size: int) -> tuple[str, pa.Array]:
    """Returns (kind, text [size]) of what the indices stand for."""
    if table is None:
        return "index", pa.array(["", *(str(index) for index in range(1, size))])
    edges = table["edge"].to_pylist()
    if edges and edges[0] is not None:
        return "number", pa.array(["", *(repr(edge) for edge in edges)])
    return "word", pa.array(["", *table["word"].to_pylist()], pa.string())
