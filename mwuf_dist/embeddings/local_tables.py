"""Tables that this rank holds alone, read and trained in place: plain gathers over the storage of TorchRec's kernel.

TorchRec's way to a row exchanges ids and rows between ranks, and its CPU kernel asks for jagged ids, table by table.
With one rank that is work for nothing: of MovieLens-1M at batch 2048, looking up the four user fields and
adding up their gradients took 1.02 ms through the kernel and takes 0.19 ms here. The weights, and so checkpoints and
everything that fills or exports a table, are the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mwuf_kernels import EntityFields, add_table_rows_, has_table_rows, table_rows
from torch import nn
from torch.autograd.function import once_differentiable

from mwuf_dist.embeddings.sharding import TableSpec

# Fields, and the entities [n] whose rows are wanted; without fields an entity is a row.
Lookup = tuple[EntityFields | None, torch.Tensor]


class DirectTables:
    """Row gathers and bags over one flat weight, with dense gradients: for Adam, not for fused kernels.

    Args:
        weights: of all tables, end to end.
        specs: the tables, in that order.
    """

    def __init__(self, weights: nn.Parameter, specs: Sequence[TableSpec]) -> None:
        self._weights = weights
        self._shapes = [(spec.rows, spec.dim) for spec in specs]
        assert sum(rows * dim for rows, dim in self._shapes) == weights.numel()
        self._width = specs[0].dim if len({spec.dim for spec in specs}) == 1 else None
        self._pools_by_mean = specs[0].pooling == "mean"

    @property
    def is_one_matrix(self) -> bool:
        """Whether all tables have one width D, so that they are one matrix [all rows, D]."""
        return self._width is not None

    def first_rows(self) -> list[int]:
        """Where each table begins in that matrix."""
        starts = [0]
        for rows, _ in self._shapes[:-1]:
            starts.append(starts[-1] + rows)
        return starts

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [n, sum of widths] of every table at the same ids [n]; several tables without gradients."""
        if len(self._shapes) == 1:
            return self.entity_rows(None, ids) if has_table_rows() else self.matrix_rows(ids)
        return torch.cat(self.rows_by_table(ids), dim=1)

    def rows_by_table(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Rows [n, width] of each table at the same ids [n], without gradients."""
        assert not torch.is_grad_enabled()
        sizes = [rows * dim for rows, dim in self._shapes]
        tables = [part.view(shape) for part, shape in zip(self._weights.split(sizes), self._shapes, strict=True)]
        return [table.index_select(0, ids) for table in tables]

    def matrix(self) -> torch.Tensor:
        """All rows [rows, D] of the tables in one matrix, in place, with gradients."""
        assert self._width is not None
        return self._weights.view(-1, self._width)

    def set_gradient(self, d_matrix: torch.Tensor) -> None:
        """Makes `d_matrix` [rows, D] the gradient of `matrix()`, which has none yet, without autograd's copy of it."""
        assert self._weights.grad is None
        self._weights.grad = d_matrix.view(-1)

    def set_gradient_of_rows(self, ids: torch.Tensor, d_rows: torch.Tensor) -> None:
        """The same from the gradient [n, D] of rows ids [n], all different, that were looked up without autograd."""
        d_matrix = d_rows.new_zeros(self.matrix().shape)
        self.set_gradient(d_matrix.index_copy_(0, ids, d_rows))

    def entity_rows(self, fields: EntityFields | None, entities: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix side by side [n, F*D] of the fields of entities [n], or of entities that are rows."""
        (rows,) = self.entity_rows_of([(fields, entities)])
        return rows

    def entity_rows_of(self, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        """The same for several lookups, whose gradients come together in one tensor."""
        if not torch.is_grad_enabled():
            return tuple(table_rows(self.matrix(), fields, entities.contiguous()) for fields, entities in lookups)
        out: Any = _EntityRows.apply(self._weights, self._width, lookups)
        return out

    def matrix_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [m, D] of the matrix at ids [m]."""
        out = _Rows.apply(self._weights, ids, self._width)
        assert isinstance(out, torch.Tensor)
        return out

    def bags(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Bags [b, D] of rows of the matrix, pooled as the tables are; bag i is the next lengths[i] of ids [m]."""
        out = _Bags.apply(self._weights, ids, lengths, self._width, self._pools_by_mean)
        assert isinstance(out, torch.Tensor)
        return out

    def bag_sums(self, ids: torch.Tensor) -> torch.Tensor:
        """Sums [n, D] of the rows ids [n, k] of the only table, without gradients."""
        assert len(self._shapes) == 1 and not torch.is_grad_enabled()
        matrix = self._weights.view(self._shapes[0])
        offsets = torch.arange(0, ids.numel(), ids.shape[1], device=ids.device)
        # embedding_bag behind its Python wrapper, which takes a third of the time again.
        return torch._embedding_bag_forward_only(matrix, ids.reshape(-1), offsets, False, 0, False, None, False)[0]


class _EntityRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, dim: int, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        ctx.shape = (weights.numel() // dim, dim)
        ctx.lookups = [(fields, entities.contiguous()) for fields, entities in lookups]
        return tuple(table_rows(weights.view(-1, dim), fields, entities) for fields, entities in ctx.lookups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        for (fields, entities), d_rows in zip(ctx.lookups, gradients, strict=True):
            add_table_rows_(total, fields, entities, d_rows.contiguous())
        return total.view(-1), None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, ids: torch.Tensor, dim: int) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.size = weights.numel()
        return weights.view(-1, dim).index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        return _scattered(d_rows, ids, ctx.size), None, None


class _Bags(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, dim: int, pools_by_mean: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(ids, lengths)
        ctx.size, ctx.pools_by_mean = weights.numel(), pools_by_mean
        offsets = torch.cumsum(lengths, 0) - lengths
        mode = "mean" if pools_by_mean else "sum"
        return F.embedding_bag(ids, weights.view(-1, dim), offsets, mode=mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_bags: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ids, lengths = ctx.saved_tensors
        if ctx.pools_by_mean:
            d_bags = d_bags / lengths.clamp(min=1).unsqueeze(1)
        bag = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths)
        return _scattered(d_bags.index_select(0, bag), ids, ctx.size), None, None, None, None


def _scattered(d_rows: torch.Tensor, ids: torch.Tensor, size: int) -> torch.Tensor:
    """The flat gradient [size] of weights whose rows `ids` [m] were read, from that of the rows [m, D]."""
    gradient = d_rows.new_zeros(size)
    gradient.view(-1, d_rows.shape[1]).index_add_(0, ids, d_rows)
    return gradient
