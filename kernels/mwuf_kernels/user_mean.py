"""user_mean: G(U(v)), the mean embedding of the users who interacted with each item."""

from typing import Any

import torch
import torch.nn.functional as F

from mwuf_kernels._autograd import eager_function
from mwuf_kernels._triton import use_triton
from mwuf_kernels.segments import segment_sums, segments

_MOST_IN_A_PART = 100  # rows that a CPU adds one after another


def user_mean(
    user_rows: torch.Tensor, users: torch.Tensor, offsets: torch.Tensor, default: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the mean row of each item's users.

    Args:
        user_rows: [N, D] user embeddings, a local table or looked-up rows. float32, bfloat16 or float64.
        users: [M] int32 or int64 rows of ``user_rows``; a user may come several times.
        offsets: [I + 1] int32 or int64: item i's users are ``users[offsets[i]:offsets[i + 1]]``.
        default: [D] the row of an item without users, such as the mean of all users; zero where not given.

    Returns:
        [I, D], of the type of ``user_rows``. The first derivative only; ``user_rows`` gets a dense gradient.
    """
    call = user_mean_op if torch.compiler.is_compiling() else _eager
    return call(user_rows, users, offsets, default)


def user_mean_reference(
    user_rows: torch.Tensor, users: torch.Tensor, offsets: torch.Tensor, default: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes ``user_mean`` in plain torch, as one would write it (arguments as there)."""
    counts = offsets.diff()
    items = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)
    sums = user_rows.new_zeros((counts.numel(), user_rows.shape[1]))
    sums = sums.index_add(0, items, user_rows.index_select(0, users))
    return _mean_of_sums(sums, counts, default)


def _mean_of_sums(sums: torch.Tensor, counts: torch.Tensor, default: torch.Tensor | None = None) -> torch.Tensor:
    """Returns [I, D] means from sums [I, D] and counts [I]; ``default`` [D] (or zero) where the count is zero."""
    means = sums / counts.clamp(min=1).to(sums.dtype)[:, None]
    return means if default is None else torch.where((counts == 0)[:, None], default.to(means.dtype), means)


def _forward(
    user_rows: torch.Tensor, users: torch.Tensor, offsets: torch.Tensor, default: torch.Tensor | None
) -> torch.Tensor:
    counts = offsets.diff()
    return _mean_of_sums(_sums(user_rows, users, offsets, counts), counts, default)


def _sums(user_rows: torch.Tensor, users: torch.Tensor, offsets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns sums [I, D] of segments with these counts [I].

    On CPU a float32 sum of thousands of rows is made of sums of at most a hundred, as the kernel makes it: one row
    after another, two thousand rows of a few users were wrong by 6e-6. bfloat16 would round each part.
    """
    in_parts = user_rows.dtype == torch.float32 and not use_triton(user_rows) and counts.numel() > 0
    if in_parts and counts.max() > _MOST_IN_A_PART:
        num_parts = (counts + (_MOST_IN_A_PART - 1)) // _MOST_IN_A_PART
        bounds = F.pad(num_parts.cumsum(0), (1, 0))
        number = torch.arange(int(bounds[-1]), device=users.device)
        starts = torch.repeat_interleave(offsets[:-1] - bounds[:-1] * _MOST_IN_A_PART, num_parts)
        starts = F.pad(starts + number * _MOST_IN_A_PART, (0, 1), value=users.numel())
        parts, _ = segment_sums((user_rows, None), users, starts)
        assert parts is not None
        user_rows, users, offsets = parts, number, bounds
    sums, _ = segment_sums((user_rows, None), users, offsets)
    assert sums is not None
    return sums


def _backward(
    d_means: torch.Tensor, num_users: int, users: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (d user_rows [num_users, D], d default [D])."""
    counts = offsets.diff()
    shares = _mean_of_sums(d_means, counts)  # what each of an item's users gets
    items = torch.repeat_interleave(counts, output_size=users.numel())
    order, user_offsets = segments(users, num_users)
    d_rows, _ = segment_sums((shares, None), items.index_select(0, order), user_offsets)
    assert d_rows is not None
    return d_rows, (d_means * (counts == 0)[:, None]).sum(0)


@torch.library.custom_op("mwuf::user_mean", mutates_args=())
def user_mean_op(
    user_rows: torch.Tensor, users: torch.Tensor, offsets: torch.Tensor, default: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns ``user_mean`` as ``torch.compile`` sees it."""
    return _forward(user_rows, users, offsets, default)


@user_mean_op.register_fake
def _(user_rows, users, offsets, default=None):
    return user_rows.new_empty((offsets.shape[0] - 1, user_rows.shape[1]))


@torch.library.custom_op("mwuf::user_mean_backward", mutates_args=())
def user_mean_backward_op(
    d_means: torch.Tensor, num_users: int, users: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients as a registered op."""
    return _backward(d_means, num_users, users, offsets)


@user_mean_backward_op.register_fake
def _(d_means, num_users, users, offsets):
    return d_means.new_empty((num_users, d_means.shape[1])), d_means.new_empty(d_means.shape[1])


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    user_rows, users, offsets, default = inputs
    ctx.num_users, ctx.has_default = user_rows.shape[0], default is not None
    ctx.save_for_backward(users, offsets)


def _backward_eager(ctx: Any, d_means: torch.Tensor) -> tuple:
    d_rows, d_default = _backward(d_means, ctx.num_users, *ctx.saved_tensors)
    return d_rows, None, None, d_default if ctx.has_default else None


def _backward_compiled(ctx: Any, d_means: torch.Tensor) -> tuple:
    d_rows, d_default = user_mean_backward_op(d_means, ctx.num_users, *ctx.saved_tensors)
    return d_rows, None, None, d_default if ctx.has_default else None


_eager = eager_function(_forward, _setup_context, _backward_eager)
user_mean_op.register_autograd(_backward_compiled, setup_context=_setup_context)
