"""Sums over the ranks, on a CPU in one round of messages between every two of them."""

from __future__ import annotations

import torch
import torch.distributed as dist

# What a rank sends at most in that one round; more goes through gloo's all-reduce, which sends less in all.
_ONE_ROUND_BYTES = 1 << 20
_TAG = 77


def sum_over_ranks_(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a contiguous tensor over the ranks in place, with the same bits on each; returns it. A collective.

    Gloo's all-reduce hands its work to threads and goes round the ranks twice: between two cores 390 microseconds for
    16 KB and 645 for 900 KB (medians), where the same as messages takes 121 and 379.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return tensor
    assert tensor.is_contiguous()
    one_round = world_size == 2 or (world_size - 1) * tensor.numel() * tensor.element_size() <= _ONE_ROUND_BYTES
    if tensor.device.type != "cpu" or not one_round:
        dist.all_reduce(tensor)
        return tensor
    group, rank = dist.group.WORLD, dist.get_rank()
    assert group is not None
    parts = [tensor if other == rank else torch.empty_like(tensor) for other in range(world_size)]
    others = [other for other in range(world_size) if other != rank]
    receives = [group.recv([parts[other]], other, _TAG) for other in others]
    sends = [group.send([tensor], other, _TAG) for other in others]
    for work in (*receives, *sends):
        work.wait()
    # In the order of the ranks, for the same bits everywhere.
    total = torch.add(parts[0], parts[1])
    for part in parts[2:]:
        total += part
    return tensor.copy_(total)
