"""activation_unit: what an item finds in a row's events, by the unit of DIN (Zhou et al. 2018, figure 2), on a CPU.

torch makes [B, L, 3D] inputs, [B, L, H] sums and their gradients in memory, a pass for each operator. Here the item of
a row enters the weights, e W + (e * v) P = e (W + v P), which halves the products; its events are read where they lie,
and stay in the cache.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F

from mwuf_kernels._autograd import eager_function
from mwuf_kernels.native import address, has_library, library, structure

_PADDED = 16  # Units are padded to a multiple of it: of every register's width.

_Unit = structure(
    "unit",
    longs="rows distinct dim units",
    floats="slope constant",
    pointers="item events weight bias relevance index offsets group out d_out d_item d_events d_event_weight "
    "d_product_weight d_item_weight d_bias d_relevance d_numbers",
)


def activation_unit(
    item: torch.Tensor,
    events: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    slope: torch.Tensor,
    relevance: torch.Tensor,
    constant: torch.Tensor,
    index: torch.Tensor,
    offsets: torch.Tensor,
    group: torch.Tensor,
) -> torch.Tensor:
    """Returns sum_j w_j e_j of each row's events, w_j = relevance . PReLU(W [e_j, e_j * v, v] + bias) + constant.

    Args:
        item: v [B, D] float32.
        events: the distinct ones [N, D].
        weight: W [H, 3D].
        bias: [H].
        slope: of the PReLU below zero [1].
        relevance: [1, H].
        constant: [1].
        index: [M] int64 rows of `events`.
        offsets: [G + 1] int64; history g has the events ``index[offsets[g]:offsets[g + 1]]``.
        group: the history of each row [B] int64.

    Returns:
        [B, D]. The first derivative only; ask `has_loop` first.
    """
    more = -len(bias) % _PADDED
    weight, bias, relevance = F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more)), F.pad(relevance, (0, more))
    inputs = item, events, weight, bias, slope, relevance, constant, index, offsets, group
    return _eager(*(one.contiguous() for one in inputs))


def _forward(*inputs: torch.Tensor) -> torch.Tensor:
    item, events, weight, bias, slope, relevance, constant, *places = inputs
    out = torch.empty_like(item)
    _call("mwuf_unit", [item, events, weight, bias, relevance], (slope, constant), (*places, out, *(None,) * 9))
    return out


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_out: torch.Tensor) -> tuple:
    item, events, weight, bias, slope, relevance, constant, *places = ctx.saved_tensors
    d_item = torch.empty_like(item)
    d_events = torch.empty_like(events) if ctx.needs_input_grad[1] else None
    wanted = any(ctx.needs_input_grad[2:7])
    dim, units = item.shape[1], len(bias)
    d_parts = [weight.new_empty(dim, units) if wanted else None for _ in range(3)]
    d_bias, d_relevance, d_numbers = (weight.new_empty(size) if wanted else None for size in (units, (1, units), 2))
    tensors = [item, events, weight, bias, relevance]
    gradients = (d_item, d_events, *d_parts, d_bias, d_relevance, d_numbers)
    _call("mwuf_unit_back", tensors, (slope, constant), (*places, None, d_out.contiguous(), *gradients))
    if d_numbers is None:
        return d_item, d_events, *(None,) * 8
    d_weight = torch.cat([one for one in d_parts if one is not None]).t()
    return d_item, d_events, d_weight, d_bias, d_numbers[:1], d_relevance, d_numbers[1:], None, None, None


def _call(
    name: str,
    tensors: list[torch.Tensor],
    numbers: tuple[torch.Tensor, torch.Tensor],
    others: tuple[torch.Tensor | None, ...],
) -> None:
    item, events, weight, bias, relevance = tensors
    rows, dim = item.shape
    assert all(one is not None and one.dtype == torch.int64 for one in others[:3])
    assert events.shape[1] == dim and weight.shape == (len(bias), 3 * dim) and relevance.shape == (1, len(bias))
    assert has_library(*tensors), "ask has_loop first"
    found = library()
    assert found is not None
    addresses = (ctypes.c_void_p(address(one)) for one in (*tensors, *others))
    unit = _Unit(rows, len(events), dim, len(bias), *(float(one) for one in numbers), *addresses)
    getattr(found, name)(ctypes.byref(unit))


_eager = eager_function(_forward, _setup_context, _backward)
