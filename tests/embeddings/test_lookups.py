"""Compiled lookups read and train what TorchRec's kernel would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mwuf_kernels import has_library

from mwuf_dist.data.schema import Field
from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import start
from mwuf_dist.training.model import Model
from mwuf_dist.training.run import _prepare
from tests.bounds import assert_float32_close
from tests.tiny import tiny


def gradient(tables: Tables, rows: torch.Tensor) -> torch.Tensor:
    (flat,) = tables.flat_parameters()
    flat.weights.grad = None
    (rows * torch.arange(1.0, 1 + rows.shape[1])).sin().sum().backward()
    assert flat.weights.grad is not None
    return flat.weights.grad.clone()


@pytest.mark.skipif(not has_library(), reason="no C++ compiler")
def test_compiled_lookups_give_the_rows_bags_and_gradients_of_the_kernel() -> None:
    config = tiny()
    with start(config) as runtime:
        model = Model(config, _prepare(config, runtime), runtime)
        kinds = set()
        for store, tables in ((model.users, model.user_tables), (model.items, model.item_tables)):
            assert tables.implementation == "compiled"
            index = torch.randint(0, store.num_rows, (500,), generator=torch.Generator().manual_seed(0))
            found, expected = store.lookup(tables, index), tables(store.features(index))
            assert_float32_close(found, expected, num_terms=5)  # values of a field
            assert_float32_close(gradient(tables, found), gradient(tables, expected), num_terms=len(index))
            kinds |= {field.kind for field in store.fields}
        assert kinds == {"categorical", "multi_valued"}
        ids = torch.tensor([3, 0, 3, 5])
        rows = model.old_ids.rows(ids)
        assert torch.equal(rows, model.old_ids.shards("old")[0].weight[ids])
        factor = torch.arange(1.0, 1 + model.dim)
        expected = torch.zeros(model.num_old, model.dim)
        expected.index_add_(0, ids, factor * (rows.detach() * factor).cos())
        assert_float32_close(
            gradient(model.old_ids, rows).view_as(expected), expected, num_terms=2 + 4
        )  # two rows and a cosine


def test_the_sides_of_entities_are_their_fields_and_have_their_gradients() -> None:
    """Of 200 users with one of six combinations of two fields, and of users who are each the only one of theirs."""
    draws = np.random.default_rng(0)
    config = tiny()
    for num_values in (2, 300):
        columns = {
            name: FieldColumn(Field(name, "categorical", "user", size), None, values.astype(np.int32))
            for name, size, values in (
                ("user_id", 201, np.arange(1, 201)),
                ("age", num_values + 1, draws.integers(num_values + 1, size=200)),
                ("town", num_values, draws.integers(num_values, size=200)),
            )
        }
        with start(config) as runtime:
            store = FeatureStore(EntityTable(200, np.arange(200), columns), runtime.device)
            tables = Tables("user", store.specs(8), config.embedding, runtime)
            tables.draw(0.1, 0)
            index = torch.from_numpy(draws.integers(200, size=90))
            sides = store.sides(tables, index, runtime)
            assert len(sides) == (2 if num_values == 2 and has_library() else 1)
            parts = [side.embeddings if side.index is None else side.embeddings[side.index] for side in sides]
            assert [side.column for side in sides] == [0, 8][: len(sides)]
            found, expected = torch.cat(parts, dim=1), store.lookup(tables, index)
            assert torch.equal(found, expected)
            assert_float32_close(gradient(tables, found), gradient(tables, expected), num_terms=len(index))


def test_tables_that_train_in_their_own_backward_are_left_to_their_kernel() -> None:
    config = tiny(embedding={"optimizer": "rowwise_adagrad"})
    with start(config) as runtime:
        model = Model(config, _prepare(config, runtime), runtime)
        assert all(tables.implementation == "torchrec" for tables in model.pretrained_tables)
