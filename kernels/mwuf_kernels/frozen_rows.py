"""Rows of a batch through a frozen head, forward and back in one call: the CPU's way through `frozen_rows.cpp`.

A frozen head maps an item embedding v [D] and a part [width], the sum of a user's and an item's, to a logit:

    part = [first layer's sums, H | sum S of the other fields' embeddings, D (only with interactions) | constant]
    logit = constant + |S|^2 / 2 + (S + linear) . v + layers(relu(sums + v W))

With products of pairs of fields in its first layer (PNN), parts hold the fields e of items and users in place of S, and
what is under the ReLU gets the products <v, e_j> and <e_i, e_j> that are of no user and of no item alone, times their
rows of the first layer.

Over powers of fields (AFN), parts hold the logarithms of the fields in place of all that is before the constant, zero
where the item embedding's would be, and the logit is constant + layers(exp(powers . logarithms + bias)).

`mwuf_dist.backbones.FoldedHead` is the same in torch, and what a test holds this equal to.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mwuf_kernels.native import address, library, structure

_PADDED = 16  # Widths are padded to multiples of it: of every register's width.


_Head = structure(
    "head",
    longs="dim inputs padded_inputs hidden interactions depth item_fields user_fields fields neurons",
    floats="smallest",
    pointers="widths weights transposed biases out linear crossed powers power_bias",
)


@dataclass(frozen=True)
class PartRows:
    """Parts of the rows of a batch: row i has row first[i] of `parts` plus, where there is one, row second[i].

    Attributes:
        parts: [n, width] float32.
        first, second: [B] int64; `first` None is row i itself.
    """

    parts: torch.Tensor
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


@dataclass(frozen=True)
class PairWeights:
    """Rows of a first layer for products of two fields.

    The first item field is a place for the item embedding. It is zero where that is not a part of the part.

    Attributes:
        of_item: for the products of the item embedding and each other field, the items' first [Fi - 1 + Fu, H].
        crossed: for those of each item field and each user field [Fi, Fu, H].
    """

    of_item: torch.Tensor
    crossed: torch.Tensor


@dataclass(frozen=True)
class PowerWeights:
    """Neurons y = exp(weight ln|e| + bias) of each of the D columns of F fields, which the first layer reads.

    Attributes:
        weight: [L, F]; the item embedding is the first field.
        bias: [L].
        first_bias: of the first layer [H].
        smallest: absolute values below it count as it.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    first_bias: torch.Tensor
    smallest: float


class FrozenRows:
    """One frozen head.

    Args:
        item_weight: the item's rows of the first layer [D, H], or all of them with `powers` [D*L, H]; None where there
            are no layers.
        layers: (weight [out, in], bias [out]) of the hidden layers after the first, then of the output [1, in]. The
            first layer's bias and the output's are in the parts.
        linear: of the item embedding [D].
        interactions: whether parts hold S.
        pairs: of a head whose parts hold fields; there are layers then.
        powers: of a head whose parts hold logarithms; likewise.

    Raises:
        RuntimeError: there is no compiled library: ask `has_library` first.
    """

    def __init__(
        self,
        item_weight: torch.Tensor | None,
        layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
        linear: torch.Tensor,
        interactions: bool,
        pairs: PairWeights | None = None,
        powers: PowerWeights | None = None,
    ) -> None:
        found = library()
        if found is None:
            raise RuntimeError("there is no compiled library on this machine")
        self._call = found.mwuf_head
        self._call.restype = None
        self._call.argtypes = (
            *(ctypes.c_void_p, ctypes.c_long),
            *(ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p),
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
        )
        self._dim, hidden = len(linear), 0 if item_weight is None else item_weight.shape[1]
        weights, biases = [], []
        inputs, num_fields, crossed = self._dim, (0, 0), linear.new_empty(0, 0)
        if pairs is not None:
            assert item_weight is not None
            item_weight = torch.cat([item_weight, pairs.of_item])
            inputs, num_fields, crossed = len(item_weight), pairs.crossed.shape[:2], pairs.crossed.flatten(0, 1)
        num_powers, smallest, of_powers = (0, 0), 0.0, (linear.new_empty(0, 0), linear.new_empty(0))
        if powers is not None:
            assert item_weight is not None
            inputs, num_powers, smallest = len(item_weight), powers.weight.shape[::-1], powers.smallest
            of_powers = powers.weight.t(), powers.bias
        if item_weight is not None:
            weights = [item_weight, *(weight.t() for weight, _ in layers[:-1])]
            first_bias = item_weight.new_zeros(hidden) if powers is None else powers.first_bias
            biases = [first_bias, *(bias for _, bias in layers[:-1])]
        forward = [_padded(weight) for weight in weights]
        out = layers[-1][0][0] if layers else linear.new_zeros(0)
        # Kept, because the library has only their addresses.
        self._tensors = (
            *forward,
            *(weight.t().contiguous() for weight in forward),
            *map(_padded_vector, biases),
            _padded_vector(out),
            _padded_vector(F.pad(linear, (0, inputs - self._dim))),
            _padded(crossed),
            *(one.float().contiguous() for one in of_powers),
        )
        depth = len(forward)
        groups = [_addresses(self._tensors[start * depth : (start + 1) * depth]) for start in range(3)]
        widths = (ctypes.c_long * depth)(*(weight.shape[1] for weight in forward))
        self._arrays = (widths, *groups)
        self._head = _Head(
            self._dim, inputs, len(self._tensors[-4]), hidden, int(interactions), depth, *num_fields, *num_powers,
            smallest, *(ctypes.addressof(array) for array in self._arrays), *map(address, self._tensors[-5:]),
        )  # fmt: skip

    def logits(self, rows: PartRows) -> torch.Tensor:
        """Returns logits [B] of parts that the item's embedding is part of already."""
        num_rows = len(rows.parts if rows.first is None else rows.first)
        out = rows.parts.new_empty(num_rows)
        self._run(rows, num_rows, 1, None, 0, None, None, None, 0.0, None, None, out)
        return out

    def loss_and_gradient(
        self,
        rows: PartRows,
        items: torch.Tensor,
        index: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        scale: float,
        d_items: torch.Tensor,
    ) -> torch.Tensor:
        """Gives weighted binary cross entropies summed over the rows [P], float64.

        Their gradient is added to `d_items`.

        Args:
            rows: the parts of B rows.
            items: item embeddings [P, n, D] float32: P passes over the same rows.
            index: which of the n each row has [B] int64, the same in every pass.
            labels: [B] float32.
            weights: [B] float32; None is 1.
            scale: of losses and gradients, such as 1 / rows of the global batch.
            d_items: as `items`.
        """
        loss = torch.zeros(len(items), dtype=torch.float64)
        assert items.is_contiguous() and d_items.is_contiguous() and d_items.shape == items.shape
        assert items.shape[2] == self._dim
        passes, num_items = items.shape[:2]
        num_rows = len(labels)
        self._run(rows, num_rows, passes, items, num_items, index, labels, weights, scale, loss, d_items, None)
        return loss.mul_(scale)

    def _run(
        self,
        rows: PartRows,
        num_rows: int,
        passes: int,
        items: torch.Tensor | None,
        num_items: int,
        index: torch.Tensor | None,
        labels: torch.Tensor | None,
        weights: torch.Tensor | None,
        scale: float,
        loss: torch.Tensor | None,
        d_items: torch.Tensor | None,
        logits: torch.Tensor | None,
    ) -> None:
        parts = rows.parts
        assert parts.dtype == torch.float32 and parts.is_contiguous()
        self._call(
            ctypes.addressof(self._head), num_rows, parts.data_ptr(), parts.shape[1],
            address(rows.first), address(rows.second),
            passes, address(items), num_items, address(index),
            address(labels), address(weights), scale, address(loss), address(d_items), address(logits),
        )  # fmt: skip


def _addresses(tensors: Sequence[torch.Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _padded(matrix: torch.Tensor) -> torch.Tensor:
    """Returns a matrix with zeros behind and below, to multiples of a register."""
    rows, columns = matrix.shape
    return F.pad(matrix.float(), (0, -columns % _PADDED, 0, -rows % _PADDED)).contiguous()


def _padded_vector(vector: torch.Tensor) -> torch.Tensor:
    """Returns a vector with zeros behind, likewise."""
    return F.pad(vector.float(), (0, -len(vector) % _PADDED)).contiguous()
