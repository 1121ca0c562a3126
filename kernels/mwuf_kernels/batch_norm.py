"""What the loops over rows of a batch share that has BatchNorm in it: `cpu/batch_norm.h`."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mwuf_kernels.native import address, structure

Layer = structure(
    "layer",
    longs="num_in num_out",
    pointers="weight bias gamma beta running_mean running_var noise z a mean scale d_weight d_bias d_gamma d_beta",
)
_SumOverRanks = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double), ctypes.c_long)


@dataclass(frozen=True)
class TrainedNorm:
    """BatchNorm [out] after a layer's product: weight, bias, and moments that a forward pass moves."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    momentum: float
    eps: float


def norm_alone(norm: TrainedNorm, moments: torch.Tensor, gradients: Sequence[torch.Tensor | None]) -> tuple:
    """Lists the fields of a `Layer` that is a norm alone.

    Args:
        norm: the norm [C].
        moments: room for the batch's mean and 1 / deviation [2, C].
        gradients: room for those of its weight and bias [C] each; None where nobody asks for them.
    """
    of_norm = norm.weight, norm.bias, norm.running_mean, norm.running_var
    tensors = (None, None, *of_norm, None, None, None, moments[0], moments[1], None, None, *gradients)
    return 0, len(norm.weight), *map(address, tensors)


class Exchange:
    """Sums over the ranks for a loop. An error cannot pass through C: it is kept, and no more is sent.

    Args:
        sum_over_ranks: sums a float64 tensor in place; None where this rank has all rows.
    """

    def __init__(self, sum_over_ranks: Callable[[torch.Tensor], object] | None) -> None:
        self._sum = sum_over_ranks
        self._error: BaseException | None = None
        self._function = _SumOverRanks(self._call)  # kept, because C has only its address
        self.address = None if sum_over_ranks is None else ctypes.cast(self._function, ctypes.c_void_p)

    def raise_error(self) -> None:
        """Raises what was raised in a sum."""
        if self._error is not None:
            raise self._error

    def _call(self, values: Any, num: int) -> None:
        if self._error is not None or self._sum is None:
            return
        try:
            memory = (ctypes.c_double * num).from_address(ctypes.addressof(values.contents))
            self._sum(torch.frombuffer(memory, dtype=torch.float64))
        except BaseException as error:
            self._error = error
