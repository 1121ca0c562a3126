"""Leases: whatever becomes of the ranks, the same global batches are trained, each row once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mwuf_dist.data.batches import order as order_module
from mwuf_dist.data.batches.lanes import LaneCoordinator
from mwuf_dist.data.batches.loader import Batch
from tests.data.test_order import FakePrepared, make


@dataclass(frozen=True)
class Generation:
    """Some ranks and their end: after `steps` steps, of which those since the last save are lost."""

    world_size: int
    prefetch: int
    save_every: int
    steps: int


generations = st.builds(Generation, st.integers(1, 7), st.integers(0, 5), st.integers(1, 4), st.integers(0, 9))


def ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, read `depth` ahead of the one that is trained."""
    waiting = deque(itertools.islice(batches, depth + 1))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(batches, 1))


def train(prepared: FakePrepared, size: int, shuffled: bool, plan: list[Generation]) -> list[list[int]]:
    """The rows of each global batch that counts, over one epoch; the generation after the last of the plan ends it."""
    trained: list[list[int]] = []
    saved = 0
    for generation in [*plan, Generation(2, 1, 1, 1 << 30)]:
        del trained[saved:]  # what was not saved is rolled back
        world = generation.world_size
        ranks = [
            ahead(make(prepared, size, r, world, shuffled).epoch(0, saved), generation.prefetch) for r in range(world)
        ]
        for parts in itertools.islice(zip(*ranks, strict=True), generation.steps):
            assert {part.step for part in parts} == {len(trained)}, "ranks are at different steps"
            trained.append([row for part in parts for row in part.user[part.weight > 0].tolist()])
            if len(trained) % generation.save_every == 0:
                saved = parts[0].step + 1  # the cursor that the batch carries
    return trained


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=2),
    size=st.sampled_from([8, 12, 64, 128]),
    group=st.integers(1, 90),
    window=st.sampled_from([1, 64, 200, 1 << 22]),
    shuffled=st.booleans(),
    plan=st.lists(generations, max_size=5),
)
def test_every_row_is_trained_once_in_the_same_global_batches_whatever_the_ranks_and_their_ends(
    sizes: list[int], size: int, group: int, window: int, shuffled: bool, plan: list[Generation]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_ROWS", window)
        prepared = FakePrepared({f"s{i}": n for i, n in enumerate(sizes)}, group)
        undisturbed = train(prepared, size, shuffled, [])
        assert sorted(itertools.chain(*undisturbed)) == list(range(sum(sizes)))
        assert train(prepared, size, shuffled, plan) == undisturbed


@given(st.integers(1, 64), st.integers(1, 64))
def test_each_lane_is_leased_to_one_rank_and_no_rank_has_two_more_than_another(num_lanes: int, world_size: int) -> None:
    coordinator = LaneCoordinator()
    leases = [coordinator.lease(rank, world_size, num_lanes) for rank in range(world_size)]
    assert list(itertools.chain(*leases)) == list(range(num_lanes))
    assert max(map(len, leases)) - min(map(len, leases)) <= 1


def test_ranks_are_asked_to_leave_at_a_checkpoint_until_they_have() -> None:
    coordinator = LaneCoordinator()
    assert coordinator.renew()
    coordinator.move()
    assert not coordinator.renew() and not coordinator.renew()
    assert LaneCoordinator().renew(), "the next generation stays"
