"""What a feature store makes of values before they are looked up."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from mwuf_dist.data.schema import Field
from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.features import FeatureStore, without_rare_values
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import start
from tests.bounds import assert_float32_close
from tests.tiny import tiny

YEAR = FieldColumn(Field("year", "categorical", "item", 6, ordinal=True), None, np.array([3, 0, 1, 5], np.int32))
WORDS = FieldColumn(
    Field("words", "multi_valued", "item", 5), np.array([0, 2, 3, 5, 7]), np.array([1, 2, 1, 3, 2, 4, 4], np.int32)
)
ITEMS = EntityTable(4, np.arange(4), {"year": YEAR, "words": WORDS})


def bags(store: FeatureStore, field: str) -> list[list[int]]:
    """The values of the field of every entity."""
    keyed = store.features(torch.arange(store.num_rows)).to_dict()[field]
    return [values.tolist() for values in torch.split(keyed.values(), keyed.lengths().tolist())]


def test_an_ordinal_value_takes_its_neighbours_within_range_and_unknown_none() -> None:
    store = FeatureStore(ITEMS, torch.device("cpu"), smooth=True)
    assert bags(store, "year") == [[2, 3, 4], [0], [1, 2], [4, 5]]
    assert bags(store, "words") == [[1, 2], [1], [3, 2], [4, 4]]
    assert next(spec for spec in store.specs(8) if spec.name == "year").pooling == "mean"


def test_without_smoothing_a_value_stands_alone() -> None:
    assert bags(FeatureStore(ITEMS, torch.device("cpu")), "year") == [[3], [0], [1], [5]]


@pytest.mark.parametrize("kind", ["categorical", "multi_valued"])
def test_the_ids_are_held_once_whatever_reads_them(kind: Literal["categorical", "multi_valued"]) -> None:
    num, random = 10_000, np.random.default_rng(0)
    values = random.integers(100, size=(2, 5 * num)).astype(np.int32)
    field, of_five = Field("a", "categorical", "item", 100), Field("b", kind, "item", 100)
    last = FieldColumn(of_five, np.arange(num + 1) * 5, values[1])
    columns = {
        "a": FieldColumn(field, None, values[0, :num]),
        "b": last if kind == "multi_valued" else FieldColumn(of_five, None, values[1, :num]),
    }
    config = tiny()
    with start(config) as runtime:
        store = FeatureStore(EntityTable(num, np.arange(num), columns), runtime.device)
        tables = Tables("item", store.specs(8), config.embedding, runtime)
        tables.draw(0.1, 0)
        index = torch.tensor([3, 9_999, 3])
        with torch.no_grad():
            assert_float32_close(
                store.lookup(tables, index), tables(store.features(index)), num_terms=5
            )  # values of a field
    buffer = io.BytesIO()
    torch.save(store, buffer)
    assert store.num_bytes <= len(buffer.getvalue()) < store.num_bytes + 20_000
    per_item = 8 * 2 if kind == "categorical" else 8 * (6 + 2 + 1)  # ids; lengths of both bags, and where they begin
    assert store.num_bytes == num * per_item


def test_a_value_that_too_few_old_items_have_is_unknown() -> None:
    kept = without_rare_values(ITEMS, num_known=3, min_known=2)
    # Word 4 is met twice, but in the one item that is not old.
    assert kept.columns["words"].values.tolist() == [1, 2, 1, 0, 2, 0, 0]
    assert kept.columns["year"].values.tolist() == [0, 0, 0, 0]


def test_with_no_bound_every_value_stays() -> None:
    kept = without_rare_values(ITEMS, num_known=3, min_known=0)
    assert all((kept.columns[name].values == column.values).all() for name, column in ITEMS.columns.items())


@pytest.mark.parametrize("name", ["type", "values", "training", "_modules", "seats.first", "plain"])
def test_a_field_may_have_any_name_that_a_column_has(name: str) -> None:
    """`planes.csv` of a public table has a column `type`, which is a method of every torch module."""
    column = FieldColumn(Field(name, "categorical", "item", 6), None, np.array([3, 0, 1, 5], np.int32))
    store = FeatureStore(EntityTable(4, np.arange(4), {name: column}), torch.device("cpu"))
    (spec,) = store.specs(8)
    nn.ModuleDict({spec.name: nn.Identity()})  # raises where the name cannot be
    assert bags(store, spec.name) == [[3], [0], [1], [5]]
    assert store.names == [name] and list(store.used_values(torch.tensor([0]))) == [spec.name]
