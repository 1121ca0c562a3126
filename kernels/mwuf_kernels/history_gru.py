"""history_gru: the last state of a gated recurrent unit (cuDNN's form) over each history, on a CPU.

What an event gives to the gates is computed once per distinct item. torch does it per event, pads histories to one
length, and makes a pass over memory for each of some ten operators a step.
"""

import ctypes
from typing import Any

import torch

from mwuf_kernels._autograd import eager_function
from mwuf_kernels.native import address, has_library, library, structure

_Gru = structure(
    "gru",
    longs="histories distinct dim",
    pointers="gates weight bias index offsets out states kept d_out d_events d_gates d_weight d_bias",
)


def history_gru(
    gates: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Returns the state after the last event of each history, from zeros: `torch.nn.GRU` of the events in turn.

        r, z = sigmoid(gates[:, :2D] + (W h + b)[:2D])
        n = tanh(gates[:, 2D:] + r (W h + b)[2D:])
        h' = (1 - z) n + z h

    Args:
        gates: [N, 3D] float32 of each distinct item x: ``x @ weight_ih.T + bias_ih``.
        weight: W, ``weight_hh`` [3D, D].
        bias: b, ``bias_hh`` [3D].
        index: [M] int64 rows of `gates`.
        offsets: [G + 1] int64; the events of history g are ``index[offsets[g]:offsets[g + 1]]``, oldest first.

    Returns:
        [G, D], zeros where a history is empty. The first derivative only; ask `has_loop` first.
    """
    keeps = torch.is_grad_enabled() and any(one.requires_grad for one in (gates, weight, bias))
    return _eager(*(one.contiguous() for one in (gates, weight, bias, index, offsets)), keeps)[0]


def _forward(
    gates: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    index: torch.Tensor,
    offsets: torch.Tensor,
    keeps: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    dim = weight.shape[1]
    out = gates.new_empty(len(offsets) - 1, dim)
    states, kept = (gates.new_empty(len(index), times * dim) if keeps else None for times in (1, 4))
    _call("mwuf_gru", [gates, weight, bias, index, offsets], out, states, kept, (None,) * 5)
    return out, states, kept


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:5], *output)


def _backward(ctx: Any, d_out: torch.Tensor, *_: Any) -> tuple:
    *inputs, out, states, kept = ctx.saved_tensors
    gates, weight, bias, index, _offsets = inputs
    d_events = gates.new_empty(len(index), gates.shape[1])
    gradients = torch.empty_like(gates), torch.empty_like(weight), torch.empty_like(bias)
    _call("mwuf_gru_back", inputs, out, states, kept, (d_out.contiguous(), d_events, *gradients))
    return *gradients, None, None, None


def _call(
    name: str,
    inputs: list[torch.Tensor],
    out: torch.Tensor,
    states: torch.Tensor | None,
    kept: torch.Tensor | None,
    of_back: tuple[torch.Tensor | None, ...],
) -> None:
    gates, weight, _, index, offsets = inputs
    assert index.dtype == offsets.dtype == torch.int64 and gates.shape[1] == len(weight) == 3 * weight.shape[1]
    assert has_library(*inputs[:3]), "ask has_loop first"
    found = library()
    assert found is not None
    addresses = (ctypes.c_void_p(address(one)) for one in (*inputs, out, states, kept, *of_back))
    getattr(found, name)(ctypes.byref(_Gru(len(offsets) - 1, len(gates), weight.shape[1], *addresses)))


_eager = eager_function(_forward, _setup_context, _backward, num_outputs=1)
