"""The forward and backward of a `LinearFirstLayer` in training, written by hand.

The first layer is linear in the field embeddings, so each *side* of a row contributes a part of its own, and a side
whose rows repeat within a batch (the item) is computed once per distinct row. A part is

    [its share of the first layer, H | the sum of its field embeddings, D (only with interactions)]

and, apart, a constant per row: its share of the linear layer less half the squares of its embeddings. With S the sum
of all embeddings, the second-order term is |S|^2 / 2 + constant. `LinearFirstLayer.forward` is the reference that a
test holds this equal to: it concatenates all embeddings of every row, and autograd writes each intermediate anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from mwuf_dist.backbones.layers import GlobalBatchNorm, dropout_noise

if TYPE_CHECKING:
    from mwuf_dist.backbones.base import LinearFirstLayer


@dataclass(frozen=True)
class BatchSide:
    """Some fields of the rows of a batch.

    Attributes:
        embeddings: of those fields side by side [n, f*D].
        index: which of the n each row of the batch has [B]; None where row i has the i-th.
        columns: the fields' columns in the input of the backbone's first layer: a slice where they are neighbours.
    """

    embeddings: torch.Tensor
    index: torch.Tensor | None
    columns: slice


class TrainedHead:
    """See above. Its parameters are listed once: walking a module for them in every step took 0.1 ms."""

    def __init__(self, backbone: LinearFirstLayer) -> None:
        self.shape, self.uses_interactions = backbone.shape, backbone.uses_interactions
        self.linear, self.mlp = backbone.linear, backbone.mlp
        self.parameters = dict(backbone.named_parameters())
        self.layers: list[tuple[nn.Linear, GlobalBatchNorm | None]] = []
        if self.mlp is not None:
            norms = self.mlp.norms if self.mlp.norms is not None else [None] * len(self.mlp.linears)
            for linear, norm in zip(self.mlp.linears, norms, strict=True):
                assert isinstance(linear, nn.Linear) and (norm is None or isinstance(norm, GlobalBatchNorm))
                self.layers.append((linear, norm))

    def logit(self, sides: Sequence[BatchSide]) -> torch.Tensor:
        """Logits [B] of the rows whose fields the `sides` are, with gradients to embeddings and weights.

        BatchNorm takes its moments over this rank's rows: for one rank and batches without padding.
        """
        out = _Function.apply(self, sides, *(side.embeddings for side in sides), *self.parameters.values())
        assert isinstance(out, torch.Tensor)
        return out


class _FirstLayer:
    """The first layer, the linear part and the second-order term, side by side."""

    def __init__(self, head: TrainedHead, sides: Sequence[BatchSide]) -> None:
        # A side with a row per row of the batch comes first: the others are added to it.
        self._sides = sorted(enumerate(sides), key=lambda pair: pair[1].index is not None)
        self._dim = head.shape.dim if head.uses_interactions else 0
        self._weight = head.layers[0][0].weight.detach() if head.layers else None
        self._linear = head.linear.weight.detach()[0]
        self.hidden = 0 if self._weight is None else len(self._weight)
        self.width = self.hidden + self._dim

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed parts [B, H + D], summed constants [B])."""
        total, constant = None, None
        self._mixings = [self._mixing(side) for _, side in self._sides]
        for mixing, (_, side) in zip(self._mixings, self._sides, strict=True):
            x = side.embeddings
            own = x @ self._linear[side.columns]
            if self._dim:
                own -= 0.5 * torch.linalg.vecdot(x, x)
            part = x @ mixing
            if side.index is not None:
                part, own = part.index_select(0, side.index), own.index_select(0, side.index)
            total = part if total is None else total.add_(part)
            constant = own if constant is None else constant.add_(own)
        assert total is not None and constant is not None
        return total, constant

    def _mixing(self, side: BatchSide) -> torch.Tensor:
        """What maps a side's embeddings to its part [f*D, H + D]: its columns of the layer, and their sum over fields.

        A sum over a middle axis takes torch longer than a product with ones and zeros in the product there is anyway.
        """
        width = side.embeddings.shape[1]
        mixing = side.embeddings.new_zeros(width, self.width)
        if self._weight is not None:
            mixing[:, : self.hidden] = self._weight[:, side.columns].t()
        if self._dim:
            ones = torch.arange(width)
            mixing[ones, self.hidden + ones % self._dim] = 1
        return mixing

    def backward(
        self, d_total: torch.Tensor, d_constant: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]:
        """Gradients of (each side's embeddings, the first layer's weight [H, F*D], the linear weight [F*D]).

        Args:
            d_total: of the summed parts [B, H + D].
            d_constant: of the summed constants [B].
        """
        d_sides = [d_total] * len(self._sides)
        d_weight = None if self._weight is None else torch.empty_like(self._weight)
        d_linear = torch.empty_like(self._linear)
        for mixing, (place, side) in zip(self._mixings, self._sides, strict=True):
            x, d_part, d_own = side.embeddings, d_total, d_constant
            if side.index is not None:
                d_part = d_part.new_zeros(len(x), self.width).index_add_(0, side.index, d_total)
                d_own = d_own.new_zeros(len(x)).index_add_(0, side.index, d_constant)
            d_x = d_part @ mixing.t()
            slope = self._linear[side.columns]
            d_x.addcmul_(d_own.unsqueeze(1), slope - x if self._dim else slope)
            d_sides[place] = d_x
            if d_weight is not None:
                d_weight[:, side.columns] = d_part[:, : self.hidden].t() @ x
            d_linear[side.columns] = d_own @ x
        return d_sides, d_weight, d_linear


class _Hidden:
    """What follows a layer's product: BatchNorm, ReLU, dropout, in place where autograd would copy.

    What dropout has zeroed needs no other mask than the ReLU's: neither lets a gradient through.
    """

    def __init__(self, norm: GlobalBatchNorm | None, dropout: float) -> None:
        self._norm = norm
        self._dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._norm
        if norm is not None:
            self._input = x = x.contiguous()
            x, self._mean, self._scale = torch.native_batch_norm(
                x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
            )
        self._output = x.relu_()
        if self._dropout:
            self._noise = dropout_noise(x, self._dropout)
            x *= self._noise
        return x

    def backward(self, d: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(gradient of the product, gradients of BatchNorm's weight and bias); writes over `d`."""
        norm = self._norm
        if self._dropout:
            d *= self._noise
        d = torch.ops.aten.threshold_backward.grad_input(d, self._output, 0, grad_input=d)
        if norm is None:
            return d, []
        d, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            d, self._input, norm.weight, norm.running_mean, norm.running_var, self._mean, self._scale, True, norm.eps,
            [True, True, True],
        )  # fmt: skip
        return d, [d_weight, d_bias]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: TrainedHead, sides: Sequence[BatchSide], *_: torch.Tensor) -> torch.Tensor:
        ctx.head = head
        ctx.first = first = _FirstLayer(head, sides)
        total, logit = first.forward()
        logit += head.linear.bias
        if head.uses_interactions:
            ctx.total = total[:, first.hidden :]
            logit += 0.5 * torch.linalg.vecdot(ctx.total, ctx.total)
        mlp = head.mlp
        if mlp is None:
            return logit
        ctx.hidden, ctx.states = [], []
        x = total[:, : first.hidden]
        for depth, (linear, norm) in enumerate(head.layers):
            if depth:
                x = F.linear(x, linear.weight, linear.bias)
            elif norm is None:
                x += linear.bias
            layer = _Hidden(norm, mlp.dropout)
            x = layer.forward(x)
            ctx.hidden.append(layer)
            ctx.states.append(x)
        logit += mlp.out.bias
        return logit.addmv_(x, mlp.out.weight[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logit: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        head, first = ctx.head, ctx.first
        gradients: dict[str, torch.Tensor] = {"linear.bias": d_logit.sum().view(1)}
        d_total = d_logit.new_empty(len(d_logit), first.width)
        if head.uses_interactions:
            torch.mul(ctx.total, d_logit.unsqueeze(1), out=d_total[:, first.hidden :])
        if head.mlp is not None:
            d_total[:, : first.hidden] = _mlp_backward(ctx, d_logit, gradients)
        d_sides, d_weight, d_linear = first.backward(d_total, d_logit)
        gradients["linear.weight"] = d_linear.unsqueeze(0)
        if d_weight is not None:
            gradients["mlp.linears.0.weight"] = d_weight
        return None, None, *d_sides, *(gradients[name] for name in head.parameters)


def _mlp_backward(ctx: Any, d_logit: torch.Tensor, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """The gradient of the first layer's product [B, H]; those of all weights but its own go into `gradients`."""
    head = ctx.head
    gradients["mlp.out.weight"] = (d_logit @ ctx.states[-1]).unsqueeze(0)
    gradients["mlp.out.bias"] = gradients["linear.bias"]
    d = d_logit.unsqueeze(1) * head.mlp.out.weight
    for depth in reversed(range(len(head.layers))):
        d, of_norm = ctx.hidden[depth].backward(d)
        if of_norm:
            gradients[f"mlp.norms.{depth}.weight"], gradients[f"mlp.norms.{depth}.bias"] = of_norm
        else:
            gradients[f"mlp.linears.{depth}.bias"] = d.sum(0)
        if depth:
            gradients[f"mlp.linears.{depth}.weight"] = d.t() @ ctx.states[depth - 1]
            d = d @ head.layers[depth][0].weight
    return d
