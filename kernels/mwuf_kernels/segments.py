"""Sums over segments of gathered rows: the backward of every gather in this package, and the forward of user_mean.

A segment is a slice of an index; its sum is the sum of the rows the slice names. No atomics: each sum is made by one
program (or, past ``_SPAN`` entries, from partial sums at fixed positions), in an order that depends on the sizes alone,
so the same input gives the same bits on every run.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F

from mwuf_kernels._triton import block_of, cdiv, constexpr, jit, tl, use_triton

# torch does not require NumPy; sorting is slower without it, nothing else changes.
_HAS_NUMPY = find_spec("numpy") is not None
_SPAN = 128  # Entries: longer segments are cut at multiples of this, so that one popular item is not one long loop.
_TORCH_RADIX_ROWS = 32768  # torch.sort on CPU is a radix sort only above this size


def segments(inverse: torch.Tensor, num_unique: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts the positions of a batch by the unique row they point to.

    A data loader can make this ahead of time, once per batch, and pass it to every op that sums over unique rows.

    Args:
        inverse: [B] int32 or int64, each in ``[0, num_unique)``.
        num_unique: U, the number of unique rows; rows that no position points to are allowed.

    Returns:
        ``order`` [B] int64, the positions sorted by ``inverse`` (ties in their order), and ``offsets`` [U + 1] int64:
        the positions of row u are ``order[offsets[u]:offsets[u + 1]]``.
    """
    if inverse.device.type == "cpu":
        if _HAS_NUMPY and num_unique <= 1 << 16:
            # NumPy sorts 16-bit keys by radix: 8192 positions take 30 microseconds, torch.sort takes 290.
            order = torch.from_numpy(inverse.numpy().astype("uint16").argsort(kind="stable"))
        else:
            keys = inverse.to(torch.int32) if inverse.numel() >= _TORCH_RADIX_ROWS else inverse
            order = torch.sort(keys, stable=True).indices
        offsets = torch.zeros(num_unique + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(inverse, minlength=num_unique), 0, out=offsets[1:])
        return order, offsets
    ordered, order = torch.sort(inverse, stable=True)
    # Counting with bincount would add with atomics on a GPU; the sorted keys already hold the answer.
    bounds = torch.arange(num_unique + 1, dtype=inverse.dtype, device=inverse.device)
    return order, torch.searchsorted(ordered, bounds)


def segment_sums(
    sources: tuple[torch.Tensor | None, torch.Tensor | None], index: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Sums rows of up to two sources over the same segments: ``out[s] = sum_j source[index[j]]``, j in segment s.

    Args:
        sources: two [N, D] tensors (float32, bfloat16 or float64), or None for one that is not wanted.
        index: [M] int32 or int64 rows of the sources.
        offsets: [S + 1] int32 or int64; segment s is ``index[offsets[s]:offsets[s + 1]]``, and may be empty.

    Returns:
        One [S, D] tensor per source, of its type (sums are kept in float32 for bfloat16), or None.
    """
    given = [source.contiguous() for source in sources if source is not None]
    if not given:
        return None, None
    sums = iter(_sums_triton(given, index, offsets) if use_triton(given[0]) else _sums_torch(given, index, offsets))
    return tuple(None if source is None else next(sums) for source in sources)  # type: ignore[return-value]


def _sums_torch(sources: list[torch.Tensor], index: torch.Tensor, offsets: torch.Tensor) -> list[torch.Tensor]:
    # embedding_bag reads the rows in place: 4 to 7 times faster on CPU than index_add_, 8 than segment_reduce.
    if index.dtype != offsets.dtype:
        index, offsets = index.long(), offsets.long()
    return [F.embedding_bag(index, source, offsets, mode="sum", include_last_offset=True) for source in sources]


@jit
def _segment_of(offsets_ptr, position, num_segments):
    # The last segment that starts at or before the position, which is the one that holds it: bisection.
    low = position * 0
    high = low + num_segments
    while high - low > 1:
        middle = (low + high) // 2
        starts_before = tl.load(offsets_ptr + middle).to(tl.int64) <= position
        low = tl.where(starts_before, middle, low)
        high = tl.where(starts_before, high, middle)
    return low


@jit
def _partial_sums_kernel(
    a_ptr, b_ptr, index_ptr, offsets_ptr, partial_ptr, num_entries, num_segments, dim,
    TWO: constexpr, SPAN: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Sums the head and the tail of one span of entries, where they belong to a segment longer than a span.

    Such a segment always holds the first entry of a span it runs into and the last entry of a span it runs out of, so
    two partial sums per span cover all of them. partial: [spans, head/tail, a/b, D] float32.
    """
    span = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = span * SPAN
    end = tl.minimum(first + SPAN, num_entries)
    head = _segment_of(offsets_ptr, first, num_segments)
    tail = _segment_of(offsets_ptr, end - 1, num_segments)
    head_start = tl.load(offsets_ptr + head).to(tl.int64)
    head_end = tl.load(offsets_ptr + head + 1).to(tl.int64)
    tail_start = tl.load(offsets_ptr + tail).to(tl.int64)
    tail_end = tl.load(offsets_ptr + tail + 1).to(tl.int64)
    wants_head = head_end - head_start > SPAN
    wants_tail = (tail != head) & (tail_end - tail_start > SPAN)
    if wants_head | wants_tail:
        entries = first + tl.arange(0, SPAN)
        live = entries < end
        in_head = live & (entries < head_end)
        in_tail = live & (entries >= tail_start)
        rows = tl.load(index_ptr + entries, mask=live, other=0).to(tl.int64)
        at = rows[:, None] * dim + columns[None, :]
        mask = live[:, None] & (columns < dim)[None, :]
        out = partial_ptr + span * 4 * dim + columns
        a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out, tl.sum(tl.where(in_head[:, None], a, 0.0), axis=0), mask=(columns < dim) & wants_head)
        tl.store(out + 2 * dim, tl.sum(tl.where(in_tail[:, None], a, 0.0), axis=0), mask=(columns < dim) & wants_tail)
        if TWO:
            b = tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + dim, tl.sum(tl.where(in_head[:, None], b, 0.0), axis=0), mask=(columns < dim) & wants_head)
            tl.store(
                out + 3 * dim, tl.sum(tl.where(in_tail[:, None], b, 0.0), axis=0), mask=(columns < dim) & wants_tail
            )


@jit
def _segment_sums_kernel(
    a_ptr, b_ptr, index_ptr, offsets_ptr, partial_ptr, sum_a_ptr, sum_b_ptr, num_segments, dim,
    TWO: constexpr, SPLIT: constexpr, SPAN: constexpr,
    BLOCK_S: constexpr, BLOCK_K: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Sums BLOCK_S segments, BLOCK_K entries at a time: rows of short segments, partial sums of long ones."""
    segment = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = segment < num_segments
    start = tl.load(offsets_ptr + segment, mask=real, other=0).to(tl.int64)
    end = tl.load(offsets_ptr + segment + 1, mask=real, other=0).to(tl.int64)
    first = start
    last = end
    is_long = end - start > SPAN
    if SPLIT:  # a long segment runs over spans instead of entries
        first = tl.where(is_long, start // SPAN, start)
        last = tl.where(is_long, (end - 1) // SPAN + 1, end)
    steps = tl.max(last - first, axis=0)
    sum_a = tl.zeros((BLOCK_S, BLOCK_D), dtype=tl.float32)
    sum_b = tl.zeros((BLOCK_S, BLOCK_D), dtype=tl.float32)
    wide = (columns < dim)[None, None, :]
    for step in range(0, steps, BLOCK_K):
        at = first[:, None] + step + tl.arange(0, BLOCK_K)[None, :]
        live = at < last[:, None]
        short = live
        if SPLIT:
            short = live & (is_long == 0)[:, None]
        rows = tl.load(index_ptr + at, mask=short, other=0).to(tl.int64)
        cells = rows[:, :, None] * dim + columns[None, None, :]
        mask = short[:, :, None] & wide
        sum_a += tl.sum(tl.load(a_ptr + cells, mask=mask, other=0.0).to(tl.float32), axis=1)
        if TWO:
            sum_b += tl.sum(tl.load(b_ptr + cells, mask=mask, other=0.0).to(tl.float32), axis=1)
        if SPLIT:
            is_tail = at * SPAN < start[:, None]
            cells = (at * 4 + tl.where(is_tail, 2, 0))[:, :, None] * dim + columns[None, None, :]
            mask = (live & is_long[:, None])[:, :, None] & wide
            sum_a += tl.sum(tl.load(partial_ptr + cells, mask=mask, other=0.0), axis=1)
            if TWO:
                sum_b += tl.sum(tl.load(partial_ptr + cells + dim, mask=mask, other=0.0), axis=1)
    out = segment[:, None] * dim + columns[None, :]
    mask = real[:, None] & (columns < dim)[None, :]
    tl.store(sum_a_ptr + out, sum_a, mask=mask)
    if TWO:
        tl.store(sum_b_ptr + out, sum_b, mask=mask)


def _sums_triton(sources: list[torch.Tensor], index: torch.Tensor, offsets: torch.Tensor) -> list[torch.Tensor]:
    a, b = sources[0], sources[-1]
    two = len(sources) == 2
    num_entries, num_segments, dim = index.numel(), offsets.numel() - 1, a.shape[1]
    sums = [source.new_empty((num_segments, dim)) for source in sources]
    if num_segments == 0 or dim == 0:
        return sums
    index, offsets = index.contiguous(), offsets.contiguous()
    split = num_entries > _SPAN
    num_spans = cdiv(num_entries, _SPAN) if split else 0
    partial = torch.empty((num_spans, 2, 2, dim), dtype=torch.float32, device=a.device)
    if split:
        block_d = block_of(dim, 16, 32)  # 128 rows of 32 floats: 32 registers a thread
        _partial_sums_kernel[(num_spans, cdiv(dim, block_d))](
            a, b, index, offsets, partial, num_entries, num_segments, dim,
            TWO=two, SPAN=_SPAN, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    # Narrow rows take several segments a program. One warp a program: of 1M entries on an H200, 16, 64 and 128 columns,
    # it takes 0.26, 0.55 and 0.90 ms where two take 1.37 ms at 64 columns and 2.34 at 128.
    block_d = block_of(dim, 16, 128)
    block_s = max(1, 64 // block_d)
    _segment_sums_kernel[(cdiv(num_segments, block_s), cdiv(dim, block_d))](
        a, b, index, offsets, partial, sums[0], sums[-1], num_segments, dim,
        TWO=two, SPLIT=split, SPAN=_SPAN, BLOCK_S=block_s, BLOCK_K=8, BLOCK_D=block_d,
        num_warps=1,
    )  # fmt: skip
    return sums
