"""pair_products: inner products of every pair of a row's fields, on a CPU (DLRM, PNN).

torch multiplies the fields of a row by themselves, a small product for each row with every pair in it twice, and picks
pairs from it; on its way back it spreads them again. Here a row stays in the fastest cache, and no pair is made twice.
"""

from typing import Any

import torch

from mwuf_kernels._autograd import eager_function
from mwuf_kernels.native import call


def pair_products(fields: torch.Tensor) -> torch.Tensor:
    """Returns <f_i, f_j> of the pairs i < j [B, n (n - 1) / 2], by i then j.

    Args:
        fields: f [B, n, D] float32.

    Returns:
        The products. The first derivative only; ask `has_loop` first.
    """
    return _eager(fields.contiguous())


def _forward(fields: torch.Tensor) -> torch.Tensor:
    rows, num, dim = fields.shape
    out = fields.new_empty(rows, num * (num - 1) // 2)
    call("mwuf_pair_products", rows, num, dim, fields, out)
    return out


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_out: torch.Tensor) -> torch.Tensor:
    (fields,) = ctx.saved_tensors
    d_fields = torch.empty_like(fields)
    call("mwuf_pair_products_back", *fields.shape, fields, d_out.contiguous(), d_fields)
    return d_fields


_eager = eager_function(_forward, _setup_context, _backward)
