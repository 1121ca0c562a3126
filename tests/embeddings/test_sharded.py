"""Rows of which ranks hold a part each, and their gradients, are those of whole tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mwuf_kernels import has_library
from torch.nn.functional import embedding_bag

from mwuf_dist.config import EmbeddingConfig, build
from mwuf_dist.data.schema import Field
from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.embeddings.sharded_lookups import ShardedLookups, Want, fetch_ahead
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime, start
from tests.bounds import assert_float32_close
from tests.faults.ranks import VALUES, forked

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")

NUM_ENTITIES, DIM, LEARNING_RATE = 60, 4, 0.1


def _store(runtime: Runtime) -> FeatureStore:
    """Entities with an ID, a field of no, one or several words, and one of two values."""
    draws = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(draws.integers(4, size=NUM_ENTITIES))])
    size = {"user_id": NUM_ENTITIES, "words": 9, "kind": 2}
    values = {
        "user_id": draws.permutation(NUM_ENTITIES),
        "words": draws.integers(9, size=offsets[-1]),
        "kind": draws.integers(2, size=NUM_ENTITIES),
    }
    columns = {}
    for name, column in values.items():
        kind, bags = ("multi_valued", offsets) if name == "words" else ("categorical", None)
        field = Field(name, kind, "user", size[name], pooling="mean")
        columns[name] = FieldColumn(field, bags, column.astype(np.int32))
    return FeatureStore(EntityTable(NUM_ENTITIES, np.arange(NUM_ENTITIES), columns), runtime.device)


@dataclass(frozen=True)
class _Whole:
    """Tables on every rank, in float64: all ranks' shards put together."""

    tables: list[torch.Tensor]

    @staticmethod
    def of(tables: Tables, runtime: Runtime) -> _Whole:
        found = [torch.zeros(spec.rows, spec.dim, dtype=torch.float64) for spec in tables.specs.values()]
        for place, name in enumerate(tables.specs):
            for shards in runtime.gather([(one.row, one.weight.detach().double()) for one in tables.shards(name)]):
                for row, weight in shards:
                    found[place][row : row + len(weight)] = weight
        return _Whole([one.requires_grad_() for one in found])

    def fields(self, store: FeatureStore, index: torch.Tensor) -> torch.Tensor:
        if not len(index):  # of which TorchRec makes no dictionary
            return torch.zeros(0, len(self.tables) * DIM, dtype=torch.float64)
        bags = store.features(index).to_dict()
        found = [
            embedding_bag(bags[name].values(), table, bags[name].offsets()[:-1], mode="mean")
            for name, table in zip(store.tables, self.tables, strict=True)
        ]
        return torch.cat(found, dim=1)


def _loss(*rows: torch.Tensor) -> torch.Tensor:
    values = torch.cat([one.reshape(-1) for one in rows])
    return (values * torch.linspace(1, 2, len(values), dtype=values.dtype)).sin().sum()


def _is_trained(tables: Tables, before: _Whole, runtime: Runtime, num_terms: int) -> None:
    """Checks the gradients, or the step of row-wise Adagrad on them, which is `learning rate * g / sqrt(mean g^2)`."""
    after = _Whole.of(tables, runtime)
    for place, name in enumerate(tables.specs):
        expected = before.tables[place].grad
        assert expected is not None and float(expected.abs().max()) > 0.1
        if tables.kernels[name] == "rowwise_adagrad":
            step = LEARNING_RATE * expected / (expected.square().mean(1, keepdim=True).sqrt() + 1e-8)
            assert_float32_close(after.tables[place], before.tables[place] - step, num_terms=num_terms)
            continue
        for shard in tables.shards(name):
            (flat,) = [one for one in tables.flat_parameters() if name in one.parts]
            start, shape = flat.parts[name]
            assert flat.weights.grad is not None
            found = flat.weights.grad.view(-1)[start : start + shape.numel()].view(shape)
            assert_float32_close(found, expected[shard.row : shard.row + len(found)], num_terms=num_terms)


def _check(sharding: Any, optimizer: Any, runtime: Runtime) -> None:
    """Different numbers of entities on each rank, some more than once; one rank has none of some rows."""
    config = EmbeddingConfig(sharding=sharding, optimizer=optimizer, rowwise_adagrad_lr=LEARNING_RATE)
    store = _store(runtime)
    ids = Tables("ids", [TableSpec("ids", 50, DIM)], config, runtime)
    users = Tables("users", store.specs(DIM), config, runtime)
    for tables in (ids, users):
        assert tables.implementation == "sharded" and tables.takes_any_number
        tables.draw(0.5, 0)
    draws = torch.Generator().manual_seed(0)
    wanted = [  # of each rank
        (
            torch.randint(size, (number,), generator=draws).sort()[0].unique(),
            torch.randint(60, (number,), generator=draws),
        )
        for number, size in [(40, 20), (3, 50), (0, 50)][: runtime.world_size]
    ]
    for is_ahead in (False, True):
        whole = [_Whole.of(tables, runtime) for tables in (ids, users)]
        some, entities = wanted[runtime.rank]
        if is_ahead:
            fetch_ahead([Want(ids.lookups, (some,)), Want(users.lookups, (entities,), store)])
        found = ids.rows(some), store.lookup(users, entities)
        expected = [(whole[0].tables[0][rows], whole[1].fields(store, index)) for rows, index in wanted]
        for one, other in zip(found, expected[runtime.rank], strict=True):
            assert_float32_close(one, other, num_terms=4)
        _loss(*found).backward()
        for rows in expected:
            _loss(*rows).backward()
        for tables, before in zip((ids, users), whole, strict=True):
            for fetched in tables.gradients_to_send():
                # Short: beside the rows. Longer: in pieces, of more than two ranks; by itself in any case.
                own = torch.arange({"ids": 3, "users": 20_000}[tables.name] if is_ahead else 70_000) + runtime.rank
                summed = fetched.send_gradients(own.float())
                ranks = sum(range(runtime.world_size))
                assert torch.equal(summed, torch.arange(len(own)) * float(runtime.world_size) + ranks)
            _is_trained(tables, before, runtime, num_terms=50)
        assert isinstance(ids.lookups, ShardedLookups) and not ids.lookups.gradients()
        for tables in (ids, users):
            tables.reset_optimizer()
            for flat in tables.flat_parameters():
                flat.weights.grad = None


@torch.no_grad()
def _check_frozen(sharding: Any, runtime: Runtime) -> None:
    config = EmbeddingConfig(sharding=sharding)
    wide = Tables("wide", [TableSpec("a", 20, 3), TableSpec("b", 20, 5)], config, runtime, trained=False)
    parts = Tables("parts", [TableSpec("parts", 20, 7)], config, runtime, trained=False)
    wide.draw(1.0, 0)
    parts.draw(1.0, 0)
    ids = torch.tensor([[5, 1, 5, 19], [0, 19, 2, 2], [3, 4, 5, 6]]).T[:, runtime.rank]  # a column, with strides
    for found, whole in zip(wide.rows_by_table(ids), _Whole.of(wide, runtime).tables, strict=True):
        assert torch.equal(found.double(), whole[ids])
    bags = ids.reshape(2, 2)
    found = parts.bag_sums(*bags.unbind(1))
    assert_float32_close(found, _Whole.of(parts, runtime).tables[0][bags].sum(1), num_terms=2)


def _check_everything() -> None:
    with start(build(VALUES)) as runtime:
        for sharding in ("row_wise", "table_wise"):
            for optimizer in ("adam", "rowwise_adagrad"):
                _check(sharding, optimizer, runtime)
            _check_frozen(sharding, runtime)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_rows_fields_and_gradients_are_those_of_whole_tables(ranks: int, tmp_path: Path) -> None:
    with forked(_check_everything, (), tmp_path / "log", ranks) as launch:
        assert launch.wait() == [0] * ranks, launch.said()
