"""bulk_warm: warm embeddings of every item of a table in one pass, for refreshing a serving table.

``warm_embedding`` after ``meta_networks`` writes scale and shift of millions of items to memory and reads them back;
here they never leave the registers (GPU) or the cache (CPU).
"""

from typing import Any

import torch

from mwuf_kernels._autograd import eager_function
from mwuf_kernels._triton import cdiv, constexpr, jit, tl
from mwuf_kernels.meta_networks import (
    Network,
    hidden_tile,
    meta_networks_backward,
    meta_networks_forward_torch,
    meta_networks_reference,
    network_sizes,
    output_tile,
    runs_as_kernel,
    tile_sizes,
)

# Bytes of a row a step: 32 columns of float32. With 64 of them gfx942 spills 284 bytes a thread; with 32 nothing, and a
# multiprocessor of NVIDIA holds three programs instead of two. With fewer bytes an access moves less than 16.
_STEP_BYTES = 128
_CHUNK_BYTES = 1 << 20  # what a CPU core's second-level cache holds of one chunk


def bulk_warm(
    table: torch.Tensor,
    item_inputs: torch.Tensor,
    user_means: torch.Tensor,
    h: Network,
    g: Network,
    *,
    residual: bool = False,
) -> torch.Tensor:
    """Returns ``table * scale + shift`` with scale and shift from the meta networks.

    Args:
        table: [I, D] cold embeddings, a rank's own shard. float32, bfloat16 or float64, as everything else.
        item_inputs: [I, Ch] inputs of the scaling network h.
        user_means: [I, Cg] inputs of the shifting network g.
        h: the scaling network, as in ``meta_networks``.
        g: the shifting network.
        residual: ``scale = 1 + h(...)``, as in ``meta_networks``.

    Returns:
        [I, D]. Unlike in ``warm_embedding``, a gradient reaches the table; the first derivative only.
    """
    assert table.shape[0] == item_inputs.shape[0] == user_means.shape[0]
    assert table.shape[1] == h[2].shape[0] == g[2].shape[0] and table.dtype == item_inputs.dtype == h[0].dtype
    call = bulk_warm_op if torch.compiler.is_compiling() else _eager
    return call(table, item_inputs, user_means, *h, *g, residual)


def bulk_warm_reference(
    table: torch.Tensor,
    item_inputs: torch.Tensor,
    user_means: torch.Tensor,
    h: Network,
    g: Network,
    *,
    residual: bool = False,
) -> torch.Tensor:
    """Computes ``bulk_warm`` in plain torch, as one would write it (arguments as there)."""
    scale, shift = meta_networks_reference(item_inputs, user_means, h, g, residual=residual)
    return table * scale + shift


def _forward(table: torch.Tensor, item_inputs: torch.Tensor, user_means: torch.Tensor, *rest: Any) -> torch.Tensor:
    h, g, residual = rest[:4], rest[4:8], rest[8]
    out = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    if table.numel() == 0:
        return out
    if runs_as_kernel(table, h[0].shape[0], g[0].shape[0]):
        return _forward_triton(out, table, item_inputs, user_means, h, g, residual)
    return _forward_chunks(out, table, item_inputs, user_means, h, g, residual)


def _forward_chunks(
    out: torch.Tensor,
    table: torch.Tensor,
    item_inputs: torch.Tensor,
    user_means: torch.Tensor,
    h: Network,
    g: Network,
    residual: bool,
) -> torch.Tensor:
    """Takes a chunk at a time through buffers made once, so that nothing but table, inputs and result moves."""
    inputs_h, inputs_g, hidden_h, hidden_g, dim = network_sizes(h, g)
    row_bytes = (inputs_h + inputs_g + hidden_h + hidden_g + 4 * dim) * table.element_size()
    num_rows = min(max(_CHUNK_BYTES // row_bytes, 64), table.shape[0])
    buffers = [table.new_empty((num_rows, width)) for width in (hidden_h, dim, hidden_g, dim)]
    last_bias = h[3] + 1 if residual else h[3]
    for start in range(0, table.shape[0], num_rows):
        rows = slice(start, min(start + num_rows, table.shape[0]))
        layer_h, scale, layer_g, shift = (buffer[: rows.stop - start] for buffer in buffers)
        torch.addmm(h[1], item_inputs[rows], h[0].t(), out=layer_h).relu_()
        torch.addmm(last_bias, layer_h, h[2].t(), out=scale)
        torch.addmm(g[1], user_means[rows], g[0].t(), out=layer_g).relu_()
        torch.addmm(g[3], layer_g, g[2].t(), out=shift)
        torch.addcmul(shift, table[rows], scale, out=out[rows])
    return out


@jit
def _bulk_warm_kernel(
    table_ptr, out_ptr, x_h, w1_h, b1_h, w2_h, b2_h, x_g, w1_g, b1_g, w2_g, b2_g,
    num_items, inputs_h, inputs_g, hidden_h, hidden_g, dim,
    RESIDUAL: constexpr, BLOCK_U: constexpr, BLOCK_C: constexpr,
    BLOCK_HH: constexpr, BLOCK_HG: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    items = tl.program_id(0).to(tl.int64) * BLOCK_U + tl.arange(0, BLOCK_U)
    layer_h = hidden_tile(x_h, w1_h, b1_h, items, num_items, inputs_h, hidden_h, BLOCK_U, BLOCK_C, BLOCK_HH)
    layer_g = hidden_tile(x_g, w1_g, b1_g, items, num_items, inputs_g, hidden_g, BLOCK_U, BLOCK_C, BLOCK_HG)
    for start in range(0, dim, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        cells = items[:, None] * dim + columns[None, :]
        mask = (items < num_items)[:, None] & (columns < dim)[None, :]
        scale = output_tile(layer_h, w2_h, b2_h, columns, hidden_h, dim, BLOCK_HH)
        if RESIDUAL:
            scale += 1.0
        shift = output_tile(layer_g, w2_g, b2_g, columns, hidden_g, dim, BLOCK_HG)
        cold = tl.load(table_ptr + cells, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + cells, cold * scale + shift, mask=mask)


def _forward_triton(
    out: torch.Tensor,
    table: torch.Tensor,
    item_inputs: torch.Tensor,
    user_means: torch.Tensor,
    h: Network,
    g: Network,
    residual: bool,
) -> torch.Tensor:
    sizes = tile_sizes(h, g)
    sizes["BLOCK_D"] = min(sizes["BLOCK_D"], _STEP_BYTES // table.element_size())
    tensors = [tensor.contiguous() for tensor in (item_inputs, *h, user_means, *g)]
    _bulk_warm_kernel[(cdiv(table.shape[0], sizes["BLOCK_U"]),)](
        table.contiguous(), out, *tensors, table.shape[0], *network_sizes(h, g),
        RESIDUAL=residual, **sizes,
    )  # fmt: skip
    return out


def _backward(d_warm: torch.Tensor, saved: tuple[torch.Tensor, ...], residual: bool) -> list[torch.Tensor]:
    """Returns gradients of the eleven tensors; everything is computed again from the inputs, none of it in one pass."""
    table, item_inputs, user_means = saved[:3]
    h, g = saved[3:7], saved[7:11]
    scale, _, *hidden = meta_networks_forward_torch(item_inputs, user_means, h, g, residual)  # type: ignore[arg-type]
    inputs, layers = (item_inputs, user_means), (hidden[0], hidden[1])
    found = meta_networks_backward((d_warm * table, d_warm), inputs, h, g, layers, (True, True))  # type: ignore[arg-type]
    return [d_warm * scale, *(gradient for gradient in found if gradient is not None)]


@torch.library.custom_op("mwuf::bulk_warm", mutates_args=())
def bulk_warm_op(
    table: torch.Tensor,
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
) -> torch.Tensor:
    """Returns ``bulk_warm`` as ``torch.compile`` sees it."""
    return _forward(table, item_inputs, user_means, w1_h, b1_h, w2_h, b2_h, w1_g, b1_g, w2_g, b2_g, residual)


@bulk_warm_op.register_fake
def _(table, item_inputs, user_means, w1_h, b1_h, w2_h, b2_h, w1_g, b1_g, w2_g, b2_g, residual=False):
    return torch.empty(table.shape, dtype=table.dtype, device=table.device)


@torch.library.custom_op("mwuf::bulk_warm_backward", mutates_args=())
def bulk_warm_backward_op(d_warm: torch.Tensor, saved: list[torch.Tensor], residual: bool) -> list[torch.Tensor]:
    """Returns all eleven gradients as a registered op."""
    return _backward(d_warm, tuple(saved), residual)


@bulk_warm_backward_op.register_fake
def _(d_warm, saved, residual):
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in saved]


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:11])
    ctx.residual = inputs[11]


def _backward_eager(ctx: Any, d_warm: torch.Tensor) -> tuple:
    return *_backward(d_warm, ctx.saved_tensors, ctx.residual), None


def _backward_compiled(ctx: Any, d_warm: torch.Tensor) -> tuple:
    return *bulk_warm_backward_op(d_warm, list(ctx.saved_tensors), ctx.residual), None


_eager = eager_function(_forward, _setup_context, _backward_eager)
bulk_warm_op.register_autograd(_backward_compiled, setup_context=_setup_context)
