"""meta_networks: the scaling network h and the shifting network g of MWUF, both in one launch.

Each is ``w2 @ relu(w1 @ x + b1) + b2``; h reads the item's own features, g the mean embedding of its users. Weights lie
as in ``torch.nn.Linear``, [outputs, inputs].
"""

from typing import Any

import torch
import torch.nn.functional as F

from mwuf_kernels._autograd import eager_function
from mwuf_kernels._triton import HAS_TRITON, INTERPRETED, block_of, cdiv, constexpr, jit, tl, use_triton
from mwuf_kernels.native import has_library
from mwuf_kernels.networks import Network, network_back, network_forward

# Items a program; 16 is the least that tl.dot takes. 2M items on an H200, hidden width 64, D = 16, 4 warps: 16 items
# 6.2 ms, 32 5.7, 64 3.2, 128 2.1. Compiled for sm_100 with D = 128, 4 warps spill registers at 64 items and at 32; 8 do
# not at 32, and need 72 registers a thread instead of 255.
_BLOCK_U, _BLOCK_U_WIDE = 64, 32
_BLOCK_C = 32  # inputs a step
_MOST_HIDDEN = 512  # a program keeps 32 x H float32 in registers
# The interpreter (Triton 3.7) holds bfloat16 as 16-bit integers and multiplies those as they are.
_WIDENS = tl.constexpr(INTERPRETED) if HAS_TRITON else False


def meta_networks(
    item_inputs: torch.Tensor, user_means: torch.Tensor, h: Network, g: Network, *, residual: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale and shift of each unique item.

    Args:
        item_inputs: [U, Ch] inputs of h. float32, bfloat16 or float64; everything else has the same type.
        user_means: [U, Cg] inputs of g, such as ``user_mean`` makes.
        h: the scaling network.
        g: the shifting network; its D is that of h, its hidden width may differ.
        residual: ``scale = 1 + h(...)`` instead of ``h(...)``: with last layers that start at zero, the warm embedding
            starts equal to the cold one.

    Returns:
        ``(scale, shift)``, both [U, D]. The first derivative only; on a GPU the hidden layers are not kept for the
        backward but computed again.
    """
    assert item_inputs.shape[0] == user_means.shape[0] and h[2].shape[0] == g[2].shape[0]
    assert item_inputs.dtype == user_means.dtype == h[0].dtype == g[0].dtype
    call = meta_networks_op if torch.compiler.is_compiling() else _eager
    return call(item_inputs, user_means, *h, *g, residual)[:2]


def meta_networks_reference(
    item_inputs: torch.Tensor, user_means: torch.Tensor, h: Network, g: Network, *, residual: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes ``meta_networks`` in plain torch, as one would write it (arguments as there)."""
    scale = F.linear(F.relu(F.linear(item_inputs, h[0], h[1])), h[2], h[3])
    shift = F.linear(F.relu(F.linear(user_means, g[0], g[1])), g[2], g[3])
    return (1 + scale if residual else scale), shift


def runs_as_kernel(inputs: torch.Tensor, hidden_h: int, hidden_g: int) -> bool:
    """Says whether networks of these hidden widths run in the Triton kernels of this package."""
    return use_triton(inputs) and max(hidden_h, hidden_g) <= _MOST_HIDDEN


def meta_networks_forward_torch(
    item_inputs: torch.Tensor, user_means: torch.Tensor, h: Network, g: Network, residual: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (scale, shift, hidden layer of h, hidden layer of g) without gradients."""
    if has_library(item_inputs, user_means, *h, *g):
        scale, hidden_h = network_forward(item_inputs, h, 1.0 if residual else 0.0)
        shift, hidden_g = network_forward(user_means, g, 0.0)
        return scale, shift, hidden_h, hidden_g
    hidden_h = F.linear(item_inputs, h[0], h[1]).relu_()
    hidden_g = F.linear(user_means, g[0], g[1]).relu_()
    # The one of the residual is added to the bias, once per column instead of once per cell.
    scale = F.linear(hidden_h, h[2], h[3] + 1 if residual else h[3])
    return scale, F.linear(hidden_g, g[2], g[3]), hidden_h, hidden_g


def _forward(
    item_inputs: torch.Tensor, user_means: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    h, g, residual = rest[:4], rest[4:8], rest[8]
    if not runs_as_kernel(item_inputs, h[0].shape[0], g[0].shape[0]):
        return meta_networks_forward_torch(item_inputs, user_means, h, g, residual)
    # The kernel keeps no hidden layer; on CPU keeping it is cheaper than a third matrix product.
    nothing = item_inputs.new_empty(0)
    return *_forward_triton(item_inputs, user_means, h, g, residual), nothing, nothing.clone()


def meta_networks_backward(
    gradients: tuple[torch.Tensor | None, torch.Tensor | None],
    inputs: tuple[torch.Tensor, torch.Tensor],
    h: Network,
    g: Network,
    hidden: tuple[torch.Tensor, torch.Tensor],
    wants_inputs: tuple[bool, bool] = (False, False),
) -> list[torch.Tensor | None]:
    """Returns gradients of ``(item_inputs, user_means, *h, *g)``.

    Args:
        gradients: d scale and d shift, [U, D]; the other network's gradients are None where one is None.
        inputs: item_inputs and user_means.
        h: the scaling network.
        g: the shifting network.
        hidden: their hidden layers where the forward kept them, else two empty tensors.
        wants_inputs: whether the gradients of the two inputs are wanted.
    """
    gradients = tuple(None if d_out is None else d_out.contiguous() for d_out in gradients)  # type: ignore[assignment]
    if hidden[0].dim() == 2 and has_library(*inputs, *h, *g):
        return _gradients_compiled(gradients, inputs, (h, g), hidden, wants_inputs)
    if hidden[0].dim() == 1:
        hidden, d_hidden = _hidden_triton(gradients, inputs, h, g)
    else:
        d_hidden = tuple(
            None if d_out is None else _through_relu_(d_out @ network[2], layer)
            for d_out, network, layer in zip(gradients, (h, g), hidden, strict=True)
        )
    d_inputs, d_weights = [], []
    for k, network in enumerate((h, g)):
        d_out, d_layer = gradients[k], d_hidden[k]
        if d_out is None or d_layer is None:
            d_inputs.append(None)
            d_weights += [None] * 4
            continue
        d_inputs.append(d_layer @ network[0] if wants_inputs[k] else None)
        d_weights += [d_layer.t() @ inputs[k], d_layer.sum(0), d_out.t() @ hidden[k], d_out.sum(0)]
    return d_inputs + d_weights


def _gradients_compiled(
    gradients: tuple[torch.Tensor | None, torch.Tensor | None],
    inputs: tuple[torch.Tensor, torch.Tensor],
    networks: tuple[Network, Network],
    hidden: tuple[torch.Tensor, torch.Tensor],
    wants_inputs: tuple[bool, bool],
) -> list[torch.Tensor | None]:
    """Returns `meta_networks_backward` by `networks.cpp`."""
    d_inputs: list[torch.Tensor | None] = []
    d_weights: list[torch.Tensor | None] = []
    for d_out, x, network, layer, wants in zip(gradients, inputs, networks, hidden, wants_inputs, strict=True):
        if d_out is None:
            d_inputs.append(None)
            d_weights += [None] * 4
            continue
        d_hidden, of_weights = network_back(d_out, x, network, layer)
        d_inputs.append(d_hidden @ network[0] if wants else None)
        d_weights += of_weights
    return d_inputs + d_weights


def _through_relu_(gradient: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward.grad_input(gradient, layer, 0, grad_input=gradient)


@jit
def _dot(a, b, total):
    # "ieee": TF32 would keep 10 bits of float32. Three products of it ("tf32x3") are 3.7 times as fast on an H200, but
    # gradients then were off by 1.3e-3 of the largest, at 65,536 items, and a test against float64 failed.
    if _WIDENS:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@jit
def hidden_tile(
    x_ptr, w1_ptr, b1_ptr, items, num_items, num_inputs, num_hidden,
    BLOCK_U: constexpr, BLOCK_C: constexpr, BLOCK_H: constexpr,
):  # fmt: skip
    """Returns relu(x @ w1.T + b1) of BLOCK_U items, [BLOCK_U, BLOCK_H] float32."""
    units = tl.arange(0, BLOCK_H)
    real = units < num_hidden
    layer = tl.zeros((BLOCK_U, BLOCK_H), dtype=tl.float32)
    for start in range(0, num_inputs, BLOCK_C):
        inputs = start + tl.arange(0, BLOCK_C)
        x_mask = (items < num_items)[:, None] & (inputs < num_inputs)[None, :]
        x = tl.load(x_ptr + items[:, None] * num_inputs + inputs[None, :], mask=x_mask, other=0.0)
        w_mask = (inputs < num_inputs)[:, None] & real[None, :]
        w1 = tl.load(w1_ptr + units[None, :] * num_inputs + inputs[:, None], mask=w_mask, other=0.0)
        layer = _dot(x, w1, layer)
    layer += tl.load(b1_ptr + units, mask=real, other=0.0).to(tl.float32)[None, :]
    return tl.where(layer < 0.0, 0.0, layer)  # keeps NaN, as torch does


@jit
def output_tile(hidden, w2_ptr, b2_ptr, columns, num_hidden, dim, BLOCK_H: constexpr):
    """Returns the layer ``hidden @ w2.T + b2`` for some output columns, float32."""
    units = tl.arange(0, BLOCK_H)
    mask = (units < num_hidden)[:, None] & (columns < dim)[None, :]
    w2 = tl.load(w2_ptr + columns[None, :] * num_hidden + units[:, None], mask=mask, other=0.0)
    bias = tl.load(b2_ptr + columns, mask=columns < dim, other=0.0).to(tl.float32)
    return (
        _dot(hidden.to(w2.dtype), w2, tl.zeros((hidden.shape[0], columns.shape[0]), dtype=tl.float32)) + bias[None, :]
    )


@jit
def _network(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, out_ptr, items, num_items, num_inputs, num_hidden, dim,
    PLUS: constexpr, BLOCK_U: constexpr, BLOCK_C: constexpr, BLOCK_H: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    hidden = hidden_tile(x_ptr, w1_ptr, b1_ptr, items, num_items, num_inputs, num_hidden, BLOCK_U, BLOCK_C, BLOCK_H)
    for start in range(0, dim, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        out = output_tile(hidden, w2_ptr, b2_ptr, columns, num_hidden, dim, BLOCK_H) + PLUS
        mask = (items < num_items)[:, None] & (columns < dim)[None, :]
        tl.store(out_ptr + items[:, None] * dim + columns[None, :], out, mask=mask)


@jit
def _meta_networks_kernel(
    x_h, w1_h, b1_h, w2_h, b2_h, out_h, x_g, w1_g, b1_g, w2_g, b2_g, out_g,
    num_items, inputs_h, inputs_g, hidden_h, hidden_g, dim,
    RESIDUAL: constexpr, BLOCK_U: constexpr, BLOCK_C: constexpr,
    BLOCK_HH: constexpr, BLOCK_HG: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    items = tl.program_id(0).to(tl.int64) * BLOCK_U + tl.arange(0, BLOCK_U)
    if tl.program_id(1) == 0:
        _network(
            x_h, w1_h, b1_h, w2_h, b2_h, out_h, items, num_items, inputs_h, hidden_h, dim,
            1.0 if RESIDUAL else 0.0, BLOCK_U, BLOCK_C, BLOCK_HH, BLOCK_D,
        )  # fmt: skip
    else:
        _network(
            x_g, w1_g, b1_g, w2_g, b2_g, out_g, items, num_items, inputs_g, hidden_g, dim,
            0.0, BLOCK_U, BLOCK_C, BLOCK_HG, BLOCK_D,
        )  # fmt: skip


@jit
def _hidden_gradient(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, d_out_ptr, hidden_ptr, d_hidden_ptr, items, num_items, num_inputs, num_hidden, dim,
    BLOCK_U: constexpr, BLOCK_C: constexpr, BLOCK_H: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    hidden = hidden_tile(x_ptr, w1_ptr, b1_ptr, items, num_items, num_inputs, num_hidden, BLOCK_U, BLOCK_C, BLOCK_H)
    units = tl.arange(0, BLOCK_H)
    d_hidden = tl.zeros((BLOCK_U, BLOCK_H), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mask = (items < num_items)[:, None] & (columns < dim)[None, :]
        d_out = tl.load(d_out_ptr + items[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        mask = (columns < dim)[:, None] & (units < num_hidden)[None, :]
        w2 = tl.load(w2_ptr + columns[:, None] * num_hidden + units[None, :], mask=mask, other=0.0)
        d_hidden = _dot(d_out, w2, d_hidden)
    cells = items[:, None] * num_hidden + units[None, :]
    mask = (items < num_items)[:, None] & (units < num_hidden)[None, :]
    tl.store(hidden_ptr + cells, hidden, mask=mask)
    tl.store(d_hidden_ptr + cells, tl.where(hidden > 0.0, d_hidden, 0.0), mask=mask)


@jit
def _hidden_gradients_kernel(
    x_h, w1_h, b1_h, w2_h, d_out_h, hid_h, d_hid_h, x_g, w1_g, b1_g, w2_g, d_out_g, hid_g, d_hid_g,
    num_items, inputs_h, inputs_g, hidden_h, hidden_g, dim,
    BLOCK_U: constexpr, BLOCK_C: constexpr,
    BLOCK_HH: constexpr, BLOCK_HG: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    items = tl.program_id(0).to(tl.int64) * BLOCK_U + tl.arange(0, BLOCK_U)
    if tl.program_id(1) == 0:
        _hidden_gradient(
            x_h, w1_h, b1_h, w2_h, d_out_h, hid_h, d_hid_h, items, num_items, inputs_h, hidden_h, dim,
            BLOCK_U, BLOCK_C, BLOCK_HH, BLOCK_D,
        )  # fmt: skip
    else:
        _hidden_gradient(
            x_g, w1_g, b1_g, w2_g, d_out_g, hid_g, d_hid_g, items, num_items, inputs_g, hidden_g, dim,
            BLOCK_U, BLOCK_C, BLOCK_HG, BLOCK_D,
        )  # fmt: skip


def tile_sizes(h: Network, g: Network) -> dict[str, int]:
    """Returns sizes of tiles and warps of programs with which this package's kernels compute the two networks."""
    is_narrow = h[2].shape[0] <= 32 and max(h[0].shape[0], g[0].shape[0]) <= 64
    return {
        "BLOCK_U": _BLOCK_U if is_narrow else _BLOCK_U_WIDE,
        "num_warps": 4 if is_narrow else 8,
        "BLOCK_C": _BLOCK_C,
        "BLOCK_HH": block_of(h[0].shape[0], 16, _MOST_HIDDEN),
        "BLOCK_HG": block_of(g[0].shape[0], 16, _MOST_HIDDEN),
        "BLOCK_D": block_of(h[2].shape[0], 16, 64),
    }


def network_sizes(h: Network, g: Network) -> tuple[int, int, int, int, int]:
    """Returns (inputs of h, inputs of g, hidden width of h, of g, D)."""
    return h[0].shape[1], g[0].shape[1], h[0].shape[0], g[0].shape[0], h[2].shape[0]


def _contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _forward_triton(
    item_inputs: torch.Tensor, user_means: torch.Tensor, h: Network, g: Network, residual: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    num_items = item_inputs.shape[0]
    scale, shift = (item_inputs.new_empty((num_items, network[2].shape[0])) for network in (h, g))
    if num_items > 0:
        sizes = tile_sizes(h, g)
        _meta_networks_kernel[(cdiv(num_items, sizes["BLOCK_U"]), 2)](
            *_contiguous(item_inputs, *h), scale, *_contiguous(user_means, *g), shift,
            num_items, *network_sizes(h, g), RESIDUAL=residual, **sizes,
        )  # fmt: skip
    return scale, shift


def _hidden_triton(
    gradients: tuple[torch.Tensor | None, torch.Tensor | None],
    inputs: tuple[torch.Tensor, torch.Tensor],
    h: Network,
    g: Network,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Returns the hidden layers, computed again, and their gradients. The weights' gradients are left to cuBLAS."""
    num_items, dim = inputs[0].shape[0], h[2].shape[0]
    d_scale, d_shift = (inputs[0].new_zeros((num_items, dim)) if d is None else d for d in gradients)
    hidden_h, hidden_g = (inputs[0].new_empty((num_items, network[0].shape[0])) for network in (h, g))
    d_hidden_h, d_hidden_g = torch.empty_like(hidden_h), torch.empty_like(hidden_g)
    if num_items > 0:
        sizes = tile_sizes(h, g)
        _hidden_gradients_kernel[(cdiv(num_items, sizes["BLOCK_U"]), 2)](
            *_contiguous(inputs[0], *h[:3]), d_scale, hidden_h, d_hidden_h,
            *_contiguous(inputs[1], *g[:3]), d_shift, hidden_g, d_hidden_g,
            num_items, *network_sizes(h, g), **sizes,
        )  # fmt: skip
    return (hidden_h, hidden_g), (d_hidden_h, d_hidden_g)


@torch.library.custom_op("mwuf::meta_networks", mutates_args=())
def meta_networks_op(
    item_inputs: torch.Tensor,
    user_means: torch.Tensor,
    w1_h: torch.Tensor,
    b1_h: torch.Tensor,
    w2_h: torch.Tensor,
    b2_h: torch.Tensor,
    w1_g: torch.Tensor,
    b1_g: torch.Tensor,
    w2_g: torch.Tensor,
    b2_g: torch.Tensor,
    residual: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ``meta_networks`` as ``torch.compile`` sees it; the last two outputs are what the backward keeps."""
    return _forward(item_inputs, user_means, w1_h, b1_h, w2_h, b2_h, w1_g, b1_g, w2_g, b2_g, residual)


@meta_networks_op.register_fake
def _(item_inputs, user_means, w1_h, b1_h, w2_h, b2_h, w1_g, b1_g, w2_g, b2_g, residual=False):
    num_items = item_inputs.shape[0]
    kernel = runs_as_kernel(item_inputs, w1_h.shape[0], w1_g.shape[0])
    hidden = (item_inputs.new_empty(0 if kernel else (num_items, w1.shape[0])) for w1 in (w1_h, w1_g))
    return *(item_inputs.new_empty((num_items, w2.shape[0])) for w2 in (w2_h, w2_g)), *hidden


@torch.library.custom_op("mwuf::meta_networks_backward", mutates_args=())
def meta_networks_backward_op(
    gradients: list[torch.Tensor], inputs: list[torch.Tensor], weights: list[torch.Tensor], hidden: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Returns all ten gradients as a registered op."""
    h, g = (weights[0], weights[1], weights[2], weights[3]), (weights[4], weights[5], weights[6], weights[7])
    pairs = [(pair[0], pair[1]) for pair in (gradients, inputs, hidden)]
    found = meta_networks_backward(pairs[0], pairs[1], h, g, pairs[2], (True, True))
    return [gradient for gradient in found if gradient is not None]


@meta_networks_backward_op.register_fake
def _(gradients, inputs, weights, hidden):
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (*inputs, *weights)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    # The last biases have no part in any gradient; b1 is read again where the hidden layer is recomputed.
    ctx.save_for_backward(*inputs[:10], *output[2:])
    ctx.set_materialize_grads(False)


def _backward_eager(ctx: Any, d_scale: torch.Tensor | None, d_shift: torch.Tensor | None, *_: None) -> tuple:
    saved, wants = ctx.saved_tensors, ctx.needs_input_grad
    h, g = saved[2:6], saved[6:10]
    return *meta_networks_backward((d_scale, d_shift), saved[:2], h, g, saved[10:], (wants[0], wants[1])), None


def _backward_compiled(ctx: Any, d_scale: torch.Tensor | None, d_shift: torch.Tensor | None, *_: None) -> tuple:
    saved = ctx.saved_tensors
    zeros = (saved[0].new_zeros((saved[0].shape[0], saved[4].shape[0])) if d is None else d for d in (d_scale, d_shift))
    return *meta_networks_backward_op(list(zeros), list(saved[:2]), list(saved[2:10]), list(saved[10:])), None


_eager = eager_function(_forward, _setup_context, _backward_eager, num_outputs=2)
meta_networks_op.register_autograd(_backward_compiled, setup_context=_setup_context)
