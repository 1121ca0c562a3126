"""warm_embedding: the cold and the warm embedding of a batch from one read of its unique rows.

``cold = v`` and ``warm = v.detach() * scale + shift``, where v is the row of the batch's item. The detach is Algorithm
1 of MWUF: the loss on the warm embedding trains the meta networks and never reaches the ID table, so one backward of
``L_cold + L_warm`` makes both updates of the algorithm.
"""

from typing import Any

import torch

from mwuf_kernels._autograd import eager_function
from mwuf_kernels._triton import block_of, cdiv, constexpr, jit, tl, use_triton
from mwuf_kernels.segments import segment_sums, segments


def warm_embedding(
    rows: torch.Tensor, inverse: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes cold and warm embeddings of a batch whose items are given once each.

    With S the sum of ``d warm`` over the positions of a unique item, the gradients are ``d rows = sum of d cold``,
    ``d scale = v * S`` and ``d shift = S``: nothing flows from warm to rows.

    Args:
        rows: [U, D] the unique items' embeddings, as a lookup returns them. float32, bfloat16 or float64.
        inverse: [B] int32 or int64, each position's unique item, in ``[0, U)`` (not checked on a GPU); None where the
            positions are the unique items themselves, in order.
        scale: [U, D], of the type of ``rows``.
        shift: [U, D], of the type of ``rows``.

    Returns:
        ``(cold, warm)``, both [B, D]. The first derivative only.
    """
    assert rows.shape == scale.shape == shift.shape and rows.dtype == scale.dtype == shift.dtype
    if inverse is None:
        return rows, torch.addcmul(shift, rows.detach(), scale)
    call = warm_embedding_op if torch.compiler.is_compiling() else _eager
    return call(rows, inverse, scale, shift)


def warm_embedding_reference(
    rows: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes ``warm_embedding`` in plain torch, as one would write it (arguments as there)."""
    cold = rows.index_select(0, inverse)
    return cold, torch.addcmul(shift.index_select(0, inverse), cold.detach(), scale.index_select(0, inverse))


def _forward(
    rows: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if use_triton(rows):
        return _forward_triton(rows, inverse, scale, shift)
    # Arithmetic on the U unique rows, then two gathers: the plain way makes three and an output-sized product.
    warm = torch.addcmul(shift, rows, scale)
    return rows.index_select(0, inverse), warm.index_select(0, inverse)


def warm_embedding_backward(
    d_cold: torch.Tensor | None, d_warm: torch.Tensor | None, rows: torch.Tensor, inverse: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Computes the gradients without autograd, for a training step that writes its backward by hand.

    Args:
        d_cold: [B, D] gradient of cold, or None.
        d_warm: [B, D] gradient of warm, or None.
        rows: as in ``warm_embedding``.
        inverse: [B] or None, likewise.

    Returns:
        (d rows, d scale, d shift); None where the gradient they come from is None.
    """
    if inverse is None:
        d_rows, d_shift = d_cold, d_warm
    else:
        d_rows, d_shift = segment_sums((d_cold, d_warm), *segments(inverse, len(rows)))
    return d_rows, None if d_shift is None else d_shift * rows, d_shift


@jit
def _warm_embedding_kernel(
    rows_ptr, inverse_ptr, scale_ptr, shift_ptr, cold_ptr, warm_ptr, num_places, dim,
    BLOCK_B: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    live = places < num_places
    mask = live[:, None] & (columns < dim)[None, :]
    item = tl.load(inverse_ptr + places, mask=live, other=0).to(tl.int64)
    # 64-bit cell numbers throughout: a table may have more than 2^31 elements.
    own = item[:, None] * dim + columns[None, :]
    cold = tl.load(rows_ptr + own, mask=mask, other=0.0)
    scale = tl.load(scale_ptr + own, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + own, mask=mask, other=0.0).to(tl.float32)
    out = places[:, None] * dim + columns[None, :]
    tl.store(cold_ptr + out, cold, mask=mask)
    tl.store(warm_ptr + out, cold.to(tl.float32) * scale + shift, mask=mask)


def _forward_triton(
    rows: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    num_places, dim = inverse.numel(), rows.shape[1]
    cold, warm = rows.new_empty((num_places, dim)), rows.new_empty((num_places, dim))
    if num_places == 0 or dim == 0:
        return cold, warm
    block_d = block_of(dim, 16, 128)
    block_b = max(8, 2048 // block_d)  # 2,048 cells a program in 4 warps; not tuned on a GPU yet
    _warm_embedding_kernel[(cdiv(num_places, block_b), cdiv(dim, block_d))](
        rows.contiguous(), inverse.contiguous(), scale.contiguous(), shift.contiguous(), cold, warm, num_places, dim,
        BLOCK_B=block_b, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    return cold, warm


@torch.library.custom_op("mwuf::warm_embedding", mutates_args=())
def warm_embedding_op(
    rows: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Registers ``warm_embedding`` for ``torch.compile``."""
    return _forward(rows, inverse, scale, shift)


@warm_embedding_op.register_fake
def _(rows, inverse, scale, shift):
    shape = (inverse.shape[0], rows.shape[1])
    return rows.new_empty(shape), rows.new_empty(shape)


@torch.library.custom_op("mwuf::warm_embedding_backward", mutates_args=())
def warm_embedding_backward_op(
    d_cold: torch.Tensor | None, d_warm: torch.Tensor | None, rows: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Registers the gradients as an op; one that is not wanted is an empty tensor, as an op cannot return None."""
    gradients = warm_embedding_backward(d_cold, d_warm, rows, inverse)
    d_rows, d_scale, d_shift = (rows.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return d_rows, d_scale, d_shift


@warm_embedding_backward_op.register_fake
def _(d_cold, d_warm, rows, inverse):
    warm = rows.new_empty(0 if d_warm is None else rows.shape)
    return rows.new_empty(0 if d_cold is None else rows.shape), warm, torch.empty_like(warm)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.set_materialize_grads(False)  # a step that uses only cold must not pay for warm
    # Otherwise a backbone would differentiate its way back to a frozen embedding.
    wants_rows, _, wants_scale, wants_shift, *_ = ctx.needs_input_grad
    wanted = (wants_rows, wants_scale or wants_shift)
    ctx.mark_non_differentiable(*(out for out, wants in zip(output, wanted, strict=True) if not wants))


def _gradients(ctx: Any, d_cold: torch.Tensor | None, d_warm: torch.Tensor | None) -> tuple:
    wants_rows, _, wants_scale, wants_shift, *_ = ctx.needs_input_grad
    return d_cold if wants_rows else None, d_warm if wants_scale or wants_shift else None, *ctx.saved_tensors


def _backward_eager(ctx: Any, d_cold: torch.Tensor | None, d_warm: torch.Tensor | None) -> tuple:
    d_rows, d_scale, d_shift = warm_embedding_backward(*_gradients(ctx, d_cold, d_warm))
    return d_rows, None, d_scale, d_shift


def _backward_compiled(ctx: Any, d_cold: torch.Tensor | None, d_warm: torch.Tensor | None) -> tuple:
    arguments = _gradients(ctx, d_cold, d_warm)
    d_rows, d_scale, d_shift = warm_embedding_backward_op(*arguments)
    d_rows = None if arguments[0] is None else d_rows
    d_scale, d_shift = (None, None) if arguments[1] is None else (d_scale, d_shift)
    return d_rows, None, d_scale, d_shift


_eager = eager_function(_forward, _setup_context, _backward_eager)
warm_embedding_op.register_autograd(_backward_compiled, setup_context=_setup_context)
