"""Layers that backbones share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mwuf_kernels import has_loop, pair_products
from torch import nn
from torch.autograd.function import once_differentiable

from mwuf_dist.runtime.collectives import sum_over_ranks_
from mwuf_dist.runtime.draws import row_noise


class _Normalised(torch.autograd.Function):
    """(x - mean) / deviation of x [B, C] over the rows of all ranks that weigh 1: an exchange each way."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        width = x.shape[1]
        weighted = x if weight is None else x * weight[:, None]
        # Squares about this rank's mean: in float32, squares of x itself would drown a small deviation.
        count = float(len(x)) if weight is None else float(weight.sum())
        about = weighted.sum(0) / max(count, 1.0)
        deviation = x - about if weight is None else (x - about) * weight[:, None]
        plain, about = weighted.sum(0).double(), about.double()
        squares = deviation.square().sum(0).double() + 2 * about * plain - count * about.square()
        sums = sum_over_ranks_(torch.cat([plain, squares, plain.new_tensor([count])]))
        total = sums[-1].clamp(min=1)
        mean = sums[:width] / total
        variance = (sums[width:-1] / total - mean.square()).clamp(min=0)
        mean, variance, total = (value.to(x.dtype) for value in (mean, variance, total))
        factor = torch.rsqrt(variance + eps)
        out = (x - mean) * factor
        ctx.save_for_backward(out, factor, total)
        ctx.weight = weight
        ctx.mark_non_differentiable(mean, variance, total)
        return out, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out, factor, total = ctx.saved_tensors
        sums = sum_over_ranks_(torch.stack([gradient.sum(0), (gradient * out).sum(0)])) / total
        pulled = sums[0] + out * sums[1]
        if ctx.weight is not None:
            pulled = pulled * ctx.weight[:, None]
        return (gradient - pulled) * factor, None, None


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
        if not self.training and x.requires_grad and not self.weight.requires_grad:
            # Of a frozen model's training. torch's own has a backward that takes three times as long (32,768 x 32).
            scale, offset = self.affine()
            return torch.addcmul(offset, x, scale)
        if not self.training or (row_weight is None and dist.get_world_size() == 1):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        out: Any = _Normalised.apply(x, row_weight, self.eps)
        normalised, mean, variance, count = out
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return normalised * self.weight + self.bias

    @torch.no_grad()
    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (scale [C], offset [C]) of what it does in eval mode."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class _Products(torch.autograd.Function):
    """<f_i, f_j> of the pairs i < j of f [B, n, D].

    Of autograd's own backward, two products of matrices and a scatter, one product and a gather remain, because the
    matrix of products is symmetric: df_i = sum_j d_ij f_j. At n = 27, D = 128 that takes a third of the time.
    """

    @staticmethod
    def forward(fields: torch.Tensor, pairs: torch.Tensor, pair_of: torch.Tensor) -> torch.Tensor:
        return _products(fields, pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        fields, _, pair_of = inputs
        ctx.save_for_backward(fields, pair_of)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        fields, pair_of = ctx.saved_tensors
        num_fields = fields.shape[1]
        padded = F.pad(gradients[0], (0, 1))  # a column of zeros, for the diagonal
        of_matrix = padded.index_select(1, pair_of).view(-1, num_fields, num_fields)
        return torch.bmm(of_matrix, fields), None, None


def _products(fields: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return torch.bmm(fields, fields.transpose(1, 2)).flatten(1).index_select(1, pairs)


class PairProducts(nn.Module):
    """Inner products of every pair i < j of fields [B, n, D], [B, n (n - 1) / 2] in the order of their rows.

    Args:
        num_fields: n.
    """

    pairs: torch.Tensor
    pair_of: torch.Tensor

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.num_pairs = len(first)
        # Where the pairs are in a flattened [n, n] matrix, and which pair is where in it: on the diagonal, none.
        of_matrix = torch.full((num_fields, num_fields), self.num_pairs)
        of_matrix[first, second] = of_matrix[second, first] = torch.arange(self.num_pairs)
        self.register_buffer("pairs", first * num_fields + second, persistent=False)
        self.register_buffer("pair_of", of_matrix.flatten(), persistent=False)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """Returns the products, in the precision of autocast where that is on."""
        return pair_products(fields) if has_loop(fields) else self.by_torch(fields)

    def by_torch(self, fields: torch.Tensor) -> torch.Tensor:
        """Makes every product, and picks the pairs."""
        kind = fields.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # which a function's backward does not see
            fields = fields.to(torch.get_autocast_dtype(kind))
        # An exported graph is of plain operations.
        if fields.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            products: torch.Tensor = _Products.apply(fields, self.pairs, self.pair_of)  # pyright: ignore[reportAssignmentType]
            return products
        return _products(fields, self.pairs)


class _OneDnnLinear(torch.autograd.Function):
    """x W^T + b of matrices that are copied into oneDNN's memory and back, in a thirtieth of a wide product's time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        found = torch.ops.aten.mkldnn_linear_backward(x.to_mkldnn(), gradient.to_mkldnn(), weight, asked)
        return tuple(one.to_dense() if is_asked else None for is_asked, one in zip(asked, found, strict=True))


def linear(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Computes a `torch.nn.Linear` of x [B, in], by oneDNN where that may stand in the place of torch's product.

    The library that torch multiplies by uses half of what an AMD processor can do: on one with AVX-512 it makes 115
    billion operations a second where oneDNN makes 240 (2,048 rows of 1,024 numbers, 1,024 columns, one thread); with
    AVX2 oneDNN is 1.15 times as fast. What follows a product stays with torch: oneDNN's ReLU makes zero of NaN.
    """
    assert isinstance(layer, nn.Linear)
    if not has_loop(x, layer.weight) or not torch.backends.mkldnn.is_available():  # in this order, for an export
        return layer(x)
    out: torch.Tensor = _OneDnnLinear.apply(x, layer.weight, layer.bias)  # pyright: ignore[reportAssignmentType]
    return out


class MLP(nn.Module):
    """Hidden layers of [Linear, BatchNorm, ReLU, Dropout] and a linear output of width 1.

    Args:
        width: of the input.
        hidden: widths of the hidden layers, at least one.
        batch_norm: with `GlobalBatchNorm`.
        dropout: fraction of hidden units dropped in training.
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
        """Returns the logit part [B] of x [B, width]."""
        for depth, layer in enumerate(self.linears):
            x = linear(x, layer)
            if self.norms is not None:
                x = self.norms[depth](x, row_weight)
            x = F.relu(x)
            if self.dropout and self.training:
                x = x * row_noise(x, self.dropout)
        return self.out(x).squeeze(-1)

    @torch.no_grad()
    def frozen_layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Gives (weight [out, in], bias [out]) of each layer as it acts in eval mode, BatchNorm folded in.

        Output last.
        """
        layers = []
        for depth, layer in enumerate(self.linears):
            assert isinstance(layer, nn.Linear)
            if self.norms is not None:
                norm = self.norms[depth]
                assert isinstance(norm, GlobalBatchNorm)
                scale, offset = norm.affine()
                layers.append((layer.weight * scale[:, None], offset))
            else:
                layers.append((layer.weight.clone(), layer.bias.clone()))
        return [*layers, (self.out.weight.clone(), self.out.bias.clone())]


class RowDropout(nn.Module):
    """`torch.nn.Dropout` of rows of the batch [b, ...], whose mask is by position in the global batch: see `draws`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns X [b, ...], in training times `row_noise`."""
        return x * row_noise(x, self.dropout) if self.training and self.dropout else x


def second_order(fields: torch.Tensor) -> torch.Tensor:
    """Returns the sum over pairs of fields of their dot product [B], for fields [B, F, D] (Rendle 2010, lemma 3.1)."""
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1)
