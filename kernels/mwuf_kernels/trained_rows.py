"""Rows of a batch through a head in training, forward and back: the CPU's way through `trained_rows.cpp`.

The head is [linear] + [second-order interactions] + [MLP] over the field embeddings of a row, which come as *sides*:
some fields of every row, or of every distinct item, and which of them each row has. The MLP may also read the products
<f_i, f_j> of all pairs of fields. What a test holds this equal to are `mwuf_dist.backbones.linear.LinearFirstLayer`'s
and `mwuf_dist.backbones.pnn.Pnn`'s `forward`, with autograd.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mwuf_kernels.batch_norm import Exchange, Layer, TrainedNorm
from mwuf_kernels.native import address, library, structure

_SPAN, _MOST_SPANS = 144, 128  # as in cpu/rows.h

_Side = structure("side", longs="rows width column", pointers="x index d_x")
_Trained = structure(
    "trained",
    longs="n dim interactions depth num_sides num_pairs",
    floats="momentum eps",
    pointers="linear linear_bias out out_bias total pairs d_linear d_out d_bias sum_over_ranks",
)


def sums_bytes(num_rows: int, num_weights: int) -> int:
    """Gives the memory of a backward pass: each span of rows has sums of its own for all gradients of weights."""
    return 4 * num_weights * min(-(-num_rows // _SPAN), _MOST_SPANS)


@dataclass(frozen=True)
class BatchSide:
    """Some fields of the rows of a batch.

    Attributes:
        embeddings: of those fields side by side [n, f*D] float32.
        index: which of the n each row of the batch has [B] int64; None where row i has the i-th.
        column: where the fields begin in the input of the first layer.
    """

    embeddings: torch.Tensor
    index: torch.Tensor | None
    column: int


@dataclass(frozen=True)
class TrainedLayer:
    """A hidden layer: weight [out, in], bias [out] or a norm instead, ReLU, and times dropout's noise [B, out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: TrainedNorm | None
    noise: torch.Tensor | None


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of a layer; those that it has no parameter for are None."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm_weight: torch.Tensor | None
    norm_bias: torch.Tensor | None


@dataclass(frozen=True)
class TrainedGradients:
    """Gradients of the sides' embeddings, the layers, the linear weight [F*D], the output's [H], both biases [1].

    None of a linear part or an output that is not there.
    """

    sides: list[torch.Tensor]
    layers: list[LayerGradients]
    linear: torch.Tensor | None
    out: torch.Tensor | None
    bias: torch.Tensor


@dataclass
class TrainedRows:
    """One forward pass, and what its backward needs.

    Attributes:
        sides: the fields.
        layers: hidden layers; may be empty.
        linear: weight [F*D] and bias [1] of the linear part; None without one.
        out: weight [H] and bias [1] of the output layer; None without layers.
        dim: embedding width D.
        interactions: whether the logit has the second-order term, which goes with a linear part.
        num_pairs: products of the pairs of fields i < j, by i then j, that the first layer reads behind the fields:
            F (F - 1) / 2 or none.
        sum_over_ranks: sums a float64 tensor over the ranks in place, where each has a part of the batch: a norm's
            moments are those of all rows. None where these are all.
    """

    sides: Sequence[BatchSide]
    layers: Sequence[TrainedLayer]
    linear: tuple[torch.Tensor, torch.Tensor] | None
    out: tuple[torch.Tensor, torch.Tensor] | None
    dim: int
    interactions: bool
    num_pairs: int = 0
    sum_over_ranks: Callable[[torch.Tensor], object] | None = None

    def forward(self) -> torch.Tensor:
        """Returns logits [B]."""
        first = self.sides[0]
        self._num_rows = len(first.embeddings) if first.index is None else len(first.index)
        new, num_rows = first.embeddings.new_empty, self._num_rows
        assert (self.linear is not None or not self.interactions) and (self.layers or not self.num_pairs)
        self._states = [
            (new(num_rows, len(x.weight)), None if x.norm is None else new(num_rows + 2, len(x.weight)))
            for x in self.layers
        ]
        self._total = new(num_rows, self.dim) if self.interactions else None
        self._pairs = new(num_rows, self.num_pairs) if self.num_pairs else None
        logit = new(num_rows)
        self._call("mwuf_trained_forward", logit)
        return logit

    def backward(self, d_logit: torch.Tensor) -> TrainedGradients:
        """Returns gradients of everything, from those of the logits [B]."""
        layers = [
            LayerGradients(
                torch.empty_like(layer.weight),
                None if layer.bias is None else torch.empty_like(layer.bias),
                None if layer.norm is None else torch.empty_like(layer.norm.weight),
                None if layer.norm is None else torch.empty_like(layer.norm.bias),
            )
            for layer in self.layers
        ]
        gradients = TrainedGradients(
            [torch.empty_like(side.embeddings) for side in self.sides],
            layers,
            None if self.linear is None else torch.empty_like(self.linear[0]),
            None if self.out is None else torch.empty_like(self.out[0]),
            d_logit.new_empty(1),
        )
        self._call("mwuf_trained_backward", d_logit, gradients.sides, gradients)
        return gradients

    def backward_to_sides(self, d_logit: torch.Tensor) -> list[torch.Tensor]:
        """Returns gradients of the sides' embeddings alone, of layers without norms, pairs or a linear part."""
        assert self.linear is None and not self.num_pairs and all(layer.norm is None for layer in self.layers)
        sides = [torch.empty_like(side.embeddings) for side in self.sides]
        self._call("mwuf_trained_backward", d_logit, sides)
        return sides

    def _call(
        self,
        name: str,
        logit: torch.Tensor,
        d_sides: Sequence[torch.Tensor] | None = None,
        gradients: TrainedGradients | None = None,
    ) -> None:
        found = library()
        assert found is not None, "there is no compiled library: ask has_library first"
        sides = (_Side * len(self.sides))(
            *(
                (*side.embeddings.shape, side.column, address(side.embeddings), address(side.index),
                 None if d_sides is None else address(d_sides[place]))
                for place, side in enumerate(self.sides)
            )
        )  # fmt: skip
        d_layers = [None] * len(self.layers) if gradients is None else gradients.layers
        layers = (Layer * len(self.layers))(*(self._layer(place, d) for place, d in enumerate(d_layers)))
        norm = self.layers[0].norm if self.layers else None
        d = (None, None, None) if gradients is None else (gradients.linear, gradients.out, gradients.bias)
        exchange = Exchange(self.sum_over_ranks)
        net = _Trained(
            self._num_rows, self.dim, int(self.interactions), len(self.layers), len(self.sides), self.num_pairs,
            norm.momentum if norm else 0.0, norm.eps if norm else 0.0,
            *map(address, (*(self.linear or (None, None)), *(self.out or (None, None)), self._total, self._pairs, *d)),
            exchange.address,
        )  # fmt: skip
        getattr(found, name)(ctypes.byref(net), sides, layers, ctypes.c_void_p(address(logit)))
        exchange.raise_error()

    def _layer(self, place: int, d: LayerGradients | None) -> tuple[int | None, ...]:
        layer, (output, product) = self.layers[place], self._states[place]
        norm = layer.norm
        num_out, num_in = layer.weight.shape
        of_norm = (None,) * 4 if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        # The two rows behind the product are the batch's mean and 1 / deviation.
        moments = (None, None) if product is None else (product[-2], product[-1])
        of_d = (None,) * 4 if d is None else (d.weight, d.bias, d.norm_weight, d.norm_bias)
        tensors = (layer.weight, layer.bias, *of_norm, layer.noise, product, output, *moments, *of_d)
        return num_in, num_out, *map(address, tensors)
