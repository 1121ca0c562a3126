"""history_attention: rows attend to the events of their histories, multi-head (Vaswani et al. 2017, equation 1).

Events of a batch repeat few distinct ones, so keys and values are given once each, and histories name them. On a CPU a
compiled loop reads them where they lie; torch gathers them into padded pieces, histories of about one length together.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F

from mwuf_kernels._autograd import eager_function
from mwuf_kernels.native import address, has_library, has_loop, library, structure

# Padded events of one piece.
_CELLS = 1 << 16

_Attention = structure(
    "attention",
    longs="rows distinct heads width histories",
    pointers="query key value event offsets group out normalisers d_out d_query d_key d_value",
)


def history_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    event: torch.Tensor,
    offsets: torch.Tensor,
    group: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Returns what each row finds in its history, the mean of values weighted by e^(query . key / sqrt(W / heads)).

    Args:
        query: [B, W] of each row; head h has columns h * W / heads and the following.
        key: [P, W] of each distinct event.
        value: [P, W] likewise.
        event: [M] int64 rows of `key` and `value`; one may come several times in a history, and weighs so often.
        offsets: [G + 1] int64; history g is ``event[offsets[g]:offsets[g + 1]]``.
        group: [B] int64, the history of each row.
        heads: how many; they divide W.

    Returns:
        [B, W], zeros where a history is empty. The first derivative only.
    """
    if has_loop(query, key, value):
        return _eager(*(one.contiguous() for one in (query, key, value, event, offsets, group)), heads)[0]
    return _in_pieces(query, key, value, event, offsets, group, heads)


def _forward(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *tensors, heads = inputs
    out, normalisers = torch.empty_like(tensors[0]), tensors[0].new_empty(len(tensors[0]), heads)
    _call("mwuf_attention", (*tensors, out, normalisers), heads, (None,) * 4)
    return out, normalisers


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, heads = inputs
    ctx.heads = heads
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, d_out: torch.Tensor, *_: Any) -> tuple:
    query, key, value = ctx.saved_tensors[:3]
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    _call("mwuf_attention_back", ctx.saved_tensors, ctx.heads, (d_out.contiguous(), *gradients))
    return *gradients, None, None, None, None


def _call(name: str, tensors: tuple[torch.Tensor, ...], heads: int, of_back: tuple[torch.Tensor | None, ...]) -> None:
    query, key, _, event, offsets, group, *_ = tensors
    assert event.dtype == offsets.dtype == group.dtype == torch.int64 and query.shape[1] % heads == 0
    sizes = len(query), len(key), heads, query.shape[1] // heads, len(offsets) - 1
    assert has_library(*tensors[:3])
    found = library()
    assert found is not None
    addresses = (ctypes.c_void_p(address(one)) for one in (*tensors, *of_back))
    getattr(found, name)(ctypes.byref(_Attention(*sizes, *addresses)))


_eager = eager_function(_forward, _setup_context, _backward, num_outputs=1)


def _in_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    event: torch.Tensor,
    offsets: torch.Tensor,
    group: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Does the same in torch."""
    lengths = offsets.diff()
    num_rows = torch.bincount(group, minlength=len(lengths))
    by_group = torch.argsort(group, stable=True)
    first_row = torch.cumsum(num_rows, 0) - num_rows
    found, rows = [query.new_zeros(0, value.shape[1])], [group[:0]]
    for groups in _pieces(lengths, num_rows):
        place, is_event = _padded(offsets[groups], lengths[groups])  # [g, L]
        of_event = event[place.clamp(max=max(0, len(event) - 1))] if len(event) else place * 0
        of_row, is_row = _padded(first_row[groups], num_rows[groups])  # [g, T]
        of_row = by_group[of_row.clamp(max=len(by_group) - 1)]
        split = (len(groups), -1, heads, query.shape[1] // heads)
        q, k, v = (
            table[index].view(split).transpose(1, 2)
            for table, index in ((query, of_row), (key, of_event), (value, of_event))
        )
        # A history without events attends to padding, and what it finds is taken away.
        has_events = is_event.any(1)
        mask = (is_event | ~has_events[:, None])[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # [g, T, W]
        found.append((out * has_events[:, None, None])[is_row])
        rows.append(of_row[is_row])
    return torch.cat(found).index_select(0, torch.argsort(torch.cat(rows)))


def _pieces(lengths: torch.Tensor, num_rows: torch.Tensor) -> list[torch.Tensor]:
    """Sorts histories with a row by length and cuts them so that a padded piece is about `_CELLS` large."""
    order = torch.argsort(lengths, stable=True)
    order = order[num_rows[order] > 0]
    # Longest last: the padded size of a piece is its number of histories times its last length.
    sizes = torch.maximum(lengths[order], num_rows[order]).clamp(min=1)
    piece = torch.cumsum(sizes, 0) // _CELLS
    return [groups for groups in order.split(torch.bincount(piece).tolist()) if len(groups)]


def _padded(first: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns positions first[j], first[j] + 1, ... [g, longest], and which of them are within lengths[j]."""
    step = torch.arange(max(1, int(lengths.max())), device=first.device)
    return first[:, None] + step, step < lengths[:, None]
