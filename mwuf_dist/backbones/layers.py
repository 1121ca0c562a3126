"""Layers that backbones share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mwuf_dist.runtime.draws import row_noise


class _Sum(torch.autograd.Function):
    """Sum over the ranks; every rank's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    out = _Sum.apply(x) if dist.get_world_size() > 1 else x
    assert isinstance(out, torch.Tensor)
    return out


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the rows of the global batch (Ioffe and Szegedy 2015), padding left out.

    `torch.nn.SyncBatchNorm` refuses CPU tensors and knows no weights. In eval mode it is an affine map.

    Args:
        width: number of columns, C.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: torch.Tensor, row_weight: torch.Tensor | None = None) -> torch.Tensor:
        """Normalises x [B, C]; `row_weight` [B] is 0 on padding, None where there is none.

        Moments have the precision of the weights, whatever that of the product before it is.
        """
        x = x.to(self.weight.dtype)
        if not self.training or (row_weight is None and dist.get_world_size() == 1):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        weight = torch.ones(len(x), device=x.device, dtype=x.dtype) if row_weight is None else row_weight
        with torch.autocast(x.device.type, enabled=False):
            sums = _sum_over_ranks(torch.cat([weight @ x, weight.sum().reshape(1)]))
            count = sums[-1].detach().clamp(min=1)
            mean = sums[:-1] / count
            centred = x - mean
            variance = _sum_over_ranks(weight @ centred.square()) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(unbiased.detach(), self.momentum)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale [C], offset [C]) of what it does in eval mode."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class MLP(nn.Module):
    """Hidden layers of [Linear, BatchNorm, ReLU, Dropout] and a linear output of width 1.

    Args:
        width: of the input.
        hidden: widths of the hidden layers, at least one.
        batch_norm: with `GlobalBatchNorm`.
        dropout: share of hidden units dropped in training.
    """

    linears: nn.ModuleList
    norms: nn.ModuleList | None
    out: nn.Linear

    def __init__(self, width: int, hidden: Sequence[int], batch_norm: bool, dropout: float) -> None:
        super().__init__()
        widths = [width, *hidden]
        # BatchNorm takes a constant away again: before it a bias would only collect rounding noise.
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=not batch_norm) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(GlobalBatchNorm(b) for b in hidden) if batch_norm else None
        self.dropout = dropout
        self.out = nn.Linear(widths[-1], 1)

    def forward(self, x: torch.Tensor, row_weight: torch.Tensor | None = None) -> torch.Tensor:
        """Logit part [B] of x [B, width]."""
        for depth, linear in enumerate(self.linears):
            x = linear(x)
            if self.norms is not None:
                x = self.norms[depth](x, row_weight)
            x = F.relu(x)
            if self.dropout and self.training:
                x = x * row_noise(x, self.dropout)
        return self.out(x).squeeze(-1)

    @torch.no_grad()
    def frozen_layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(weight [out, in], bias [out]) of each layer as it acts in eval mode, BatchNorm folded in; output last."""
        layers = []
        for depth, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            if self.norms is not None:
                norm = self.norms[depth]
                assert isinstance(norm, GlobalBatchNorm)
                scale, offset = norm.affine()
                layers.append((linear.weight * scale[:, None], offset))
            else:
                layers.append((linear.weight.clone(), linear.bias.clone()))
        return [*layers, (self.out.weight.clone(), self.out.bias.clone())]


class RowDropout(nn.Module):
    """`torch.nn.Dropout` of rows of the batch [b, ...], whose mask is by place in the global batch: see `draws`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [b, ...], in training times `row_noise`."""
        return x * row_noise(x, self.dropout) if self.training and self.dropout else x


def second_order(fields: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of fields of their dot product [B], for fields [B, F, D] (Rendle 2010, lemma 3.1)."""
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1)
