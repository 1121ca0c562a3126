"""Chooses among three ways to the rows of a collection, over the same weights, so checkpoints are the same.

TorchRec's way exchanges ids and rows between ranks, and its CPU kernel asks for jagged ids, table by table. Where this
rank holds all rows, compiled loops read them in place: of MovieLens-1M at batch 2048, looking up the four user fields
and adding up their gradients took 1.02 ms through the kernel and takes 0.19 ms by the loops. Where CPU ranks hold a
part each, they exchange distinct rows, those of all collections of a step at once (`sharded_lookups.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from mwuf_kernels import BatchSide, EntityFields, add_table_rows_, backward_from, table_rows
from torch import nn
from torch.autograd.function import once_differentiable
from torchrec import KeyedJaggedTensor

from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.runtime import Runtime

if TYPE_CHECKING:
    from mwuf_dist.embeddings.features import FeatureStore

# Fields, and the entities [n] whose rows are wanted; without fields an entity is a row.
Lookup = tuple[EntityFields | None, torch.Tensor]


class KernelLookups:
    """Looks rows up in TorchRec's kernel, with the exchange between ranks where tables are sharded.

    Args:
        specs: the tables.
        kernel: from jagged ids to pooled rows [bags, sum of widths]; on several ranks a collective.
        device: of the ids.
    """

    implementation = "torchrec"
    is_thread_safe = False  # Whether several threads may look up at once.

    def __init__(
        self, specs: Sequence[TableSpec], kernel: Callable[[KeyedJaggedTensor], torch.Tensor], device: torch.device
    ) -> None:
        self._names = [spec.name for spec in specs]
        self._widths = [spec.dim for spec in specs]
        self._kernel = kernel
        self._arange = torch.arange(1, device=device)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, sum of widths] of every table at the same ids [n]."""
        num = len(self._names)
        # How ids are sent to other ranks takes no strides into account: a strided column would fetch other rows.
        values = ids.contiguous() if num == 1 else ids.repeat(num)
        offsets = self._offsets_of_one(len(values), ids.device)
        return self._kernel(KeyedJaggedTensor(self._names, values, offsets=offsets))

    def rows_to_train(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, D] of the only table, for `set_gradient`."""
        return self.rows(ids)

    def set_gradient(self, ids: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor) -> None:
        """Gives the table the gradient [n, D] of `rows`, which are its rows ids [n]."""
        backward_from([rows], [d_rows])

    def rows_by_table(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        """Looks up rows [n, width] of each table at the same ids [n]."""
        return self.rows(ids).split(self._widths, dim=1)

    def fields(self, store: FeatureStore, index: torch.Tensor) -> torch.Tensor:
        """Looks up field embeddings [n, F*D] of entities [n]."""
        return self._kernel(store.features(index))

    def sides(self, store: FeatureStore, index: torch.Tensor, runtime: Runtime) -> list[BatchSide]:
        """Looks up what `fields` gives, as sides of a batch."""
        return [BatchSide(self.fields(store, index), None, 0)]

    def rows_once(self, *ids: torch.Tensor) -> list[torch.Tensor]:
        """Returns the only table's rows [u, D] at all ids, and which of them the `ids` [n] have, [n] each."""
        flat = torch.cat(ids)
        return [self.rows(flat), *torch.arange(len(flat), device=flat.device).split([len(one) for one in ids])]

    def bag_sums(self, *ids: torch.Tensor) -> torch.Tensor:
        """Sums the only table's rows at each of the `ids` [n] to [n, D]."""
        bags = torch.stack(ids, dim=1)
        lengths = torch.full((len(bags),), len(ids), device=bags.device)
        return self._kernel(KeyedJaggedTensor(self._names, bags.view(-1), lengths=lengths))

    def _offsets_of_one(self, num_bags: int, device: torch.device) -> torch.Tensor:
        """Returns offsets [n + 1] of bags of one id each: a prefix of one cached arange."""
        if num_bags >= len(self._arange):
            self._arange = torch.arange(2 * num_bags + 1, device=device)
        return self._arange[: num_bags + 1]


class LoopLookups:
    """Looks rows up by compiled loops over one flat weight, with dense gradients: for Adam, not for fused kernels.

    Args:
        weights: of all tables, end to end.
        specs: the tables, in that order.
    """

    implementation = "compiled"
    is_thread_safe = True

    def __init__(self, weights: nn.Parameter, specs: Sequence[TableSpec]) -> None:
        self._weights = weights
        self._shapes = [(spec.rows, spec.dim) for spec in specs]
        assert sum(rows * dim for rows, dim in self._shapes) == weights.numel()

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, sum of widths] of every table at the same ids [n]; several tables without gradients."""
        if len(self._shapes) > 1:
            return torch.cat(list(self.rows_by_table(ids)), dim=1)
        (rows,) = self._looked_up([(None, ids)])
        return rows

    def rows_to_train(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, D] of the only table, for `set_gradient`: without autograd, which takes as long again."""
        return self._matrix.index_select(0, ids)

    def set_gradient(self, ids: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor) -> None:
        """Gives the table the gradient [n, D] of `rows`, which are its rows ids [n], all different."""
        assert self._weights.grad is None
        self._weights.grad = torch.zeros_like(self._matrix).index_copy_(0, ids, d_rows).view(-1)

    def rows_by_table(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        """Looks up rows [n, width] of each table at the same ids [n], without gradients."""
        assert not torch.is_grad_enabled()
        sizes = [rows * dim for rows, dim in self._shapes]
        tables = [part.view(shape) for part, shape in zip(self._weights.split(sizes), self._shapes, strict=True)]
        return [table.index_select(0, ids) for table in tables]

    def fields(self, store: FeatureStore, index: torch.Tensor) -> torch.Tensor:
        """Looks up field embeddings [n, F*D] of entities [n], of tables of one width."""
        (rows,) = self._looked_up([(store.ids, index)])
        return rows

    def sides(self, store: FeatureStore, index: torch.Tensor, runtime: Runtime) -> list[BatchSide]:
        """Looks up what `fields` gives, as sides of a batch: what many entities share stands there once."""
        profiles = store.profiles
        if profiles is None:
            return [BatchSide(self.fields(store, index), None, 0)]
        distinct, inverse = runtime.distinct(profiles.of_entity.index_select(0, index), profiles.number)
        own, shared = self._looked_up([(profiles.own, index), (profiles.shared, distinct)])
        return [BatchSide(own, None, 0), BatchSide(shared, inverse, own.shape[1])]

    def rows_once(self, *ids: torch.Tensor) -> list[torch.Tensor]:
        """Returns all rows [N, D] of the only table, in place, and the `ids` [n]."""
        assert len(self._shapes) == 1
        return [self._matrix, *(one.contiguous() for one in ids)]

    def bag_sums(self, *ids: torch.Tensor) -> torch.Tensor:
        """Sums the only table's rows at each of the `ids` [n] to [n, D], without gradients."""
        assert len(self._shapes) == 1
        return bag_sums(self._weights.view(self._shapes[0]), ids)

    def _looked_up(self, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        """Returns rows of several lookups in the matrix of all tables, whose gradients come together in one tensor."""
        lookups = [(fields, entities.contiguous()) for fields, entities in lookups]
        if not torch.is_grad_enabled():
            return tuple(table_rows(self._matrix, fields, entities) for fields, entities in lookups)
        return entity_rows(self._weights, self._matrix.shape[1], lookups)

    @property
    def _matrix(self) -> torch.Tensor:
        """All rows [rows, D] of the tables, in place and without gradients."""
        return self._weights.detach().view(-1, self._shapes[0][1])


def bag_sums(rows: torch.Tensor, ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sums rows [u, D] at each of some ids [n] to [n, D], without gradients."""
    assert not torch.is_grad_enabled()
    bags = torch.stack(list(ids), dim=1)
    offsets = torch.arange(0, bags.numel(), len(ids), device=bags.device)
    # embedding_bag behind its Python wrapper, which takes a third of the time again.
    return torch._embedding_bag_forward_only(rows, bags.view(-1), offsets, False, 0, False, None, False)[0]


def entity_rows(weights: torch.Tensor, dim: int, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
    """Returns rows of several lookups in a matrix of all tables, flat or [rows, dim]; their gradients come together."""
    out: Any = _EntityRows.apply(weights, dim, lookups)
    return out


class _EntityRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, dim: int, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        ctx.shape, ctx.dim, ctx.lookups = weights.shape, dim, lookups
        return tuple(table_rows(weights.view(-1, dim), fields, entities) for fields, entities in lookups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        matrix = total.view(-1, ctx.dim)
        for (fields, entities), d_rows in zip(ctx.lookups, gradients, strict=True):
            add_table_rows_(matrix, fields, entities, d_rows.contiguous())
        return total, None, None
