"""Triton where it is installed, and the rule that says which tensors go through it.

Everything in this package imports and runs without Triton: kernels are then plain functions that nobody calls.
With ``TRITON_INTERPRET=1`` (set before the first import) CPU tensors go through the kernels too, which is how the
tests run the very same kernels on a machine without a GPU.
"""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

triton: Any
tl: Any
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

HAS_TRITON = triton is not None
if TYPE_CHECKING or not HAS_TRITON:
    constexpr: TypeAlias = Any  # marks a kernel's compile-time parameters
else:
    constexpr = tl.constexpr
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def jit(function: Any) -> Any:
    """Returns ``triton.jit``, or the function itself where Triton is missing."""
    return triton.jit(function) if HAS_TRITON else function


def use_triton(tensor: torch.Tensor) -> bool:
    """Says whether an op on ``tensor`` runs as a Triton kernel.

    float64 always takes the torch path: it exists to check gradients, and Triton's matrix products have no float64.
    """
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        return False
    return INTERPRETED if tensor.device.type == "cpu" else HAS_TRITON and tensor.is_cuda


def cdiv(numerator: int, denominator: int) -> int:
    """Returns the ceiling of a division of non-negative integers."""
    return -(-numerator // denominator)


def block_of(size: int, smallest: int, largest: int) -> int:
    """Returns the power of two at or above ``size``, kept between two powers of two."""
    return max(smallest, min(largest, 1 << max(size - 1, 0).bit_length()))
