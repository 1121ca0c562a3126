"""A `LinearFirstLayer`, a `Pnn` or an `MLP` as one compiled loop over the rows of a batch.

The first layer is linear in the field embeddings (and in the products of their pairs), so each *side* of a row
contributes a part of its own, and a side whose rows repeat within a batch (the item) is computed once per distinct row.
The backbone's `forward` is the reference that a test holds this equal to: it concatenates all embeddings of every row,
and autograd writes each intermediate anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from mwuf_kernels import BatchSide, TrainedLayer, TrainedNorm, TrainedRows, has_loop, sums_bytes
from torch import nn
from torch.autograd.function import once_differentiable

from mwuf_dist.backbones.layers import MLP, GlobalBatchNorm
from mwuf_dist.runtime.collectives import sum_over_ranks_
from mwuf_dist.runtime.draws import row_noise

_MOST_SUMS_BYTES = 2**26  # Of gradients of an MLP's weights.
# Of an MLP. At batch 2,048 the loop takes 11.6 ms with 189 thousand, 31.8 with 526 thousand and 80.2 with 1.05 million,
# and `layers.linear` 16.1, 31.3 and 59.0.
_MOST_WEIGHTS = 2**19


class TrainedHead:
    """Computes a backbone in training by `TrainedRows`.

    Args:
        dim: width D of an embedding.
        linear, mlp: the backbone's.
        interactions: whether it has the second-order term.
        num_pairs: see `TrainedRows`.
        parameters: all of the backbone's by their names, listed once: walking a module for them in every step took
            0.1 ms.
    """

    def __init__(
        self,
        dim: int,
        linear: nn.Linear | None,
        mlp: MLP | None,
        interactions: bool,
        num_pairs: int,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self._dim, self._interactions, self._num_pairs = dim, interactions, num_pairs
        self._linear, self._mlp = linear, mlp
        self._names, self._parameters = tuple(parameters), tuple(parameters.values())

    def logit(self, sides: Sequence[BatchSide], weight: torch.Tensor | None = None) -> torch.Tensor:
        """Returns logits [B] of the rows whose fields the `sides` are, with gradients to embeddings and weights.

        BatchNorm takes its moments over the rows of all ranks.

        Args:
            sides: the rows' fields.
            weight: 0 for padding [B], which is left out and has a logit of 0; None where there is none.
        """
        num_rows = next(len(s.embeddings if s.index is None else s.index) for s in sides)
        kept = None if weight is None else weight.nonzero().squeeze(1)
        if kept is not None:
            sides = [
                replace(side, embeddings=side.embeddings.index_select(0, kept))
                if side.index is None
                else replace(side, index=side.index.index_select(0, kept))
                for side in sides
            ]
        noise = self._noise(num_rows, kept)
        out = _Function.apply(self, sides, noise, *(side.embeddings for side in sides), *self._parameters)
        assert isinstance(out, torch.Tensor)
        return out if kept is None else out.new_zeros(num_rows).index_copy(0, kept, out)

    def _noise(self, num_rows: int, kept: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Draws dropout's noise for each layer, as for all rows of the batch: each place has its own."""
        if self._mlp is None:
            return []
        noise: list[torch.Tensor | None] = [None] * len(self._mlp.linears)
        for depth, linear in enumerate(self._mlp.linears):
            assert isinstance(linear, nn.Linear)
            if self._mlp.dropout:
                drawn = row_noise(linear.weight.new_empty(num_rows, linear.out_features), self._mlp.dropout)
                noise[depth] = drawn if kept is None else drawn.index_select(0, kept)
        return noise

    def rows(self, sides: Sequence[BatchSide], noise: Sequence[torch.Tensor | None]) -> TrainedRows:
        """Prepares one forward pass."""
        mlp = self._mlp
        layers = [] if mlp is None else [self._layer(depth, one) for depth, one in enumerate(noise)]
        return TrainedRows(
            [replace(side, embeddings=side.embeddings.detach()) for side in sides],
            layers,
            None if self._linear is None else (self._linear.weight[0], self._linear.bias),
            None if mlp is None else (mlp.out.weight[0], mlp.out.bias),
            self._dim,
            self._interactions,
            self._num_pairs,
            rank_sums(),
        )

    def _layer(self, depth: int, noise: torch.Tensor | None) -> TrainedLayer:
        mlp = self._mlp
        assert mlp is not None
        linear, norm = mlp.linears[depth], None if mlp.norms is None else mlp.norms[depth]
        assert isinstance(linear, nn.Linear) and (norm is None or isinstance(norm, GlobalBatchNorm))
        return TrainedLayer(linear.weight, linear.bias, None if norm is None else trained_norm(norm), noise)

    def gradients(self, rows: TrainedRows, d_logit: torch.Tensor) -> list[torch.Tensor | None]:
        """Returns gradients of the sides' embeddings and of the parameters, in the order of `logit`."""
        found = rows.backward(d_logit)
        by_name = {"linear.bias": found.bias, "mlp.out.bias": found.bias}
        if found.linear is not None:
            by_name["linear.weight"] = found.linear.unsqueeze(0)
        if found.out is not None:
            by_name["mlp.out.weight"] = found.out.unsqueeze(0)
        for depth, layer in enumerate(found.layers):
            for name, gradient in (
                (f"mlp.linears.{depth}.weight", layer.weight),
                (f"mlp.linears.{depth}.bias", layer.bias),
                (f"mlp.norms.{depth}.weight", layer.norm_weight),
                (f"mlp.norms.{depth}.bias", layer.norm_bias),
            ):
                if gradient is not None:
                    by_name[name] = gradient
        return [*found.sides, *(by_name[name] for name in self._names)]


def trained_norm(norm: GlobalBatchNorm) -> TrainedNorm:
    """Gives a loop the weights and running moments of a norm."""
    return TrainedNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps)


def rank_sums() -> Callable[[torch.Tensor], object] | None:
    """Gives a loop what sums up moments over the ranks; None where there is one."""
    return sum_over_ranks_ if dist.get_world_size() > 1 else None


def mlp_logit(mlp: MLP, pieces: Sequence[torch.Tensor], row_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Computes `mlp(torch.cat(pieces, dim=1), row_weight)`, in a compiled loop where one may stand in its place.

    Most of an MLP's time are its products. The loop's take half of torch's (one thread with AVX-512, 512 x 64 weights),
    the pieces [B, ...] are read where they lie, and what is between two layers stays in the cache. Layers so wide that
    the sums of their gradients leave the caches, or take much memory, are left to `MLP.forward`.
    """
    parameters = {f"mlp.{name}": one for name, one in mlp.named_parameters()}
    is_frozen = not torch.is_grad_enabled() or not any(one.requires_grad for one in parameters.values())
    num_weights = sum(one.numel() for one in parameters.values())
    num_bytes = sums_bytes(len(pieces[0]), num_weights) if mlp.training else 0
    is_ours = type(mlp) is MLP and num_weights <= _MOST_WEIGHTS and num_bytes <= _MOST_SUMS_BYTES
    if not is_ours or not (mlp.training or is_frozen) or not has_loop(*pieces, *parameters.values()):
        return mlp(torch.cat(list(pieces), dim=1), row_weight)
    columns = itertools.accumulate((piece.shape[1] for piece in pieces), initial=0)
    sides = [BatchSide(piece.contiguous(), None, column) for piece, column in zip(pieces, columns, strict=False)]
    if mlp.training:
        return TrainedHead(1, None, mlp, False, 0, parameters).logit(sides, row_weight)
    *layers, (weight, bias) = mlp.frozen_layers()
    rows = [TrainedLayer(*layer, None, None) for layer in layers]
    detached = [replace(side, embeddings=side.embeddings.detach()) for side in sides]
    trained = TrainedRows(detached, rows, None, (weight[0], bias), 1, False)
    out = _FrozenFunction.apply(trained, *(side.embeddings for side in sides))
    assert isinstance(out, torch.Tensor)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: TrainedHead,
        sides: Sequence[BatchSide],
        noise: Sequence[torch.Tensor | None],
        *_: torch.Tensor,
    ) -> torch.Tensor:
        ctx.head, ctx.rows = head, head.rows(sides, noise)
        return ctx.rows.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logit: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, *ctx.head.gradients(ctx.rows, d_logit.contiguous())


class _FrozenFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: TrainedRows, *_: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows
        return rows.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logit: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.rows.backward_to_sides(d_logit.contiguous())
