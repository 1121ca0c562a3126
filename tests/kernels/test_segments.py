"""segments and segment_sums: the sorted order of a batch and sums over it."""

from pathlib import Path

import mwuf_kernels
import pytest
import torch
from mwuf_kernels import segment_sums, segments
from mwuf_kernels._triton import INTERPRETED, use_triton


def test_only_the_interpreter_sends_cpu_tensors_through_triton():
    assert use_triton(torch.zeros(1)) == INTERPRETED
    assert not use_triton(torch.zeros(1, dtype=torch.float64))


def test_no_kernel_adds_with_atomics():
    for path in Path(mwuf_kernels.__file__).parent.glob("*.py"):
        assert "tl.atomic" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_places", "num_unique"), [(0, 0), (0, 3), (500, 7), (300, 70000), (40000, 70000)])
def test_segments_list_each_rows_places_in_order(device, num_places, num_unique, index_type):
    inverse = torch.randint(max(num_unique, 1), (num_places,), dtype=index_type)
    order, offsets = (made.cpu() for made in segments(inverse.to(device), num_unique))
    assert offsets.shape == (num_unique + 1,) and offsets[0] == 0 and offsets[-1] == num_places
    assert torch.equal(order, torch.argsort(inverse.long() * num_places + torch.arange(num_places)))
    assert torch.equal(torch.repeat_interleave(torch.arange(num_unique), offsets.diff()), inverse[order].long())


# 128 is the span at which a long segment is cut into partial sums.
@pytest.mark.parametrize("lengths", [[127, 128, 129], [0, 1, 0, 700, 3, 0], [1000], [5, 128, 256, 300, 2, 257]])
@pytest.mark.parametrize("dim", [3, 40])
def test_segments_of_any_length_are_summed_exactly(device, lengths, dim):
    num_entries = sum(lengths)
    # Whole numbers below 2^24: their sums are exact in float32 whatever the order.
    source = torch.randint(-1000, 1000, (2 * num_entries, dim)).float()
    index = torch.randint(2 * num_entries, (num_entries,))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    expected = torch.stack([part.sum(0) for part in source[index].split(lengths)])
    source, index, offsets = source.to(device), index.to(device), offsets.to(device)
    one, nothing = segment_sums((source, None), index, offsets)
    assert one is not None and nothing is None and torch.equal(one.cpu(), expected)
    both = segment_sums((source, 2 * source), index.int(), offsets)
    assert both[0] is not None and both[1] is not None
    assert torch.equal(both[0], one) and torch.equal(both[1], 2 * one)


def test_bfloat16_sums_are_kept_in_float32(device):
    # Added one by one in bfloat16, ones stop counting at 256.
    ones = torch.ones((1000, 4), dtype=torch.bfloat16, device=device)
    offsets = torch.tensor([0, 1000], device=device)
    total, _ = segment_sums((ones, None), torch.arange(1000, device=device), offsets)
    assert total is not None and (total == 1000).all()
