"""log_neurons: products of learned powers of a row's fields, as AFN has them (Cheng et al. 2020), on a CPU.

torch takes absolute value, clamp, logarithm, exponential and two BatchNorms one after the other over numbers in memory.
Here twelve rows go from their embeddings to their powers in the cache, as far as BatchNorm's moments let them.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mwuf_kernels._autograd import eager_function
from mwuf_kernels.batch_norm import Exchange, Layer, TrainedNorm, norm_alone
from mwuf_kernels.native import address, has_library, library, structure

_Neurons = structure(
    "log_neurons",
    longs="rows fields dim neurons",
    floats="smallest momentum eps",
    pointers="item context row_weight weight bias out logs powers d_out d_item d_context d_weight d_bias "
    "sum_over_ranks",
)


@dataclass(frozen=True)
class LogNeurons:
    """Holds what `log_neurons` needs beside the weights.

    Attributes:
        log_norm: after the logarithms [F].
        power_norm: after the powers [L].
        smallest: absolute values below it count as it, and have no gradient.
        sum_over_ranks: sums a float64 tensor over the ranks in place; None where this rank has all rows.
    """

    log_norm: TrainedNorm
    power_norm: TrainedNorm
    smallest: float
    sum_over_ranks: Callable[[torch.Tensor], object] | None = None


def log_neurons(
    item: torch.Tensor,
    context: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    how: LogNeurons,
    row_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns power_norm(exp(W log_norm(ln |e|) + bias)) of each of the D columns of a row's F fields, in training.

    Both norms take their moments over the batch, and move the running ones.

    Args:
        item: the first field [B, D] float32.
        context: the others side by side [B, (F-1)*D].
        weight: W [L, F].
        bias: [L].
        how: the rest.
        row_weight: [B], 0 on padding, which has no part in moments and gradients; None where there is none.

    Returns:
        [B, D*L]. The first derivative only; ask `has_loop` first.
    """
    norms = (how.log_norm.weight, how.log_norm.bias, how.power_norm.weight, how.power_norm.bias)
    return _eager(*(one.contiguous() for one in (item, context, weight, bias, *norms)), how, row_weight)[0]


def _forward(*inputs: Any) -> tuple[torch.Tensor, ...]:
    *tensors, how, row_weight = inputs
    item, context, weight = tensors[:3]
    rows, fields, neurons = len(item), weight.shape[1], len(weight)
    dim = item.shape[1]
    assert context.shape == (rows, (fields - 1) * dim)
    out, powers = (item.new_empty(rows, dim * neurons) for _ in range(2))
    logs = item.new_empty(rows, fields * dim)
    moments = item.new_empty(2, fields), item.new_empty(2, neurons)
    _call("mwuf_log_neurons", tensors, how, row_weight, (out, logs, powers), moments)
    return out, logs, powers, *moments


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, how, row_weight = inputs
    ctx.save_for_backward(*tensors, row_weight, *output)
    ctx.how = how


def _backward(ctx: Any, d_out: torch.Tensor, *_: Any) -> tuple:
    *tensors, row_weight, _out, logs, powers, of_logs, of_powers = ctx.saved_tensors
    gradients = tuple(torch.empty_like(one) for one in tensors)
    kept = (None, logs, powers)
    _call(
        "mwuf_log_neurons_back", tensors, ctx.how, row_weight, kept, (of_logs, of_powers), d_out.contiguous(), gradients
    )
    return *gradients, None, None


def _call(
    name: str,
    tensors: list[torch.Tensor],
    how: LogNeurons,
    row_weight: torch.Tensor | None,
    kept: tuple[torch.Tensor | None, ...],
    moments: tuple[torch.Tensor, torch.Tensor],
    d_out: torch.Tensor | None = None,
    gradients: tuple[torch.Tensor | None, ...] = (None,) * 8,
) -> None:
    assert has_library(*tensors), "ask has_loop first"
    found = library()
    assert found is not None
    item, context, weight, bias = tensors[:4]
    d_item, d_context, d_weight, d_bias, *d_norms = gradients
    exchange = Exchange(how.sum_over_ranks)
    numbers = len(item), weight.shape[1], item.shape[1], len(weight)
    given = item, context, row_weight, weight, bias, *kept, d_out, d_item, d_context, d_weight, d_bias
    eps = how.log_norm.eps
    assert how.power_norm.eps == eps and how.power_norm.momentum == how.log_norm.momentum
    net = _Neurons(*numbers, how.smallest, how.log_norm.momentum, eps, *map(address, given), exchange.address)
    norms = (Layer * 2)(
        norm_alone(how.log_norm, moments[0], d_norms[:2]), norm_alone(how.power_norm, moments[1], d_norms[2:])
    )
    getattr(found, name)(ctypes.byref(net), norms)
    exchange.raise_error()


_eager = eager_function(_forward, _setup_context, _backward, num_outputs=1)
