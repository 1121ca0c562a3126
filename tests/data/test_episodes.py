"""Episodes: 2K rows of one item each, every row at most once an epoch, the same order on any number of ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.batches.episodes import EpisodeLoader
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.runtime import Runtime

HALF = 3
ITEM = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [30, 6, 5, 13, 40])).astype(np.int32)
# A row's user is its number, so that a batch tells which rows it holds.
PREPARED: Any = SimpleNamespace(
    columns=lambda split, names: {"user": np.arange(len(ITEM), dtype=np.int32), "item": ITEM, "label": ITEM % 2},
    row_columns=(),
)


def batches(rank: int = 0, world: int = 1, size: int = 30, epoch: int = 0, start: int = 0, items: Any = None) -> Any:
    loader = EpisodeLoader(PREPARED, HALF, size, 7, Runtime(rank, world, torch.device("cpu"), False), items)
    return loader, list(loader.epoch(epoch, start))


def episodes(batch: Batch) -> torch.Tensor:
    """Rows of the episodes that are no padding [E, 2K]."""
    return batch.user[batch.weight > 0].view(-1, 2 * HALF)


def test_an_episode_is_rows_of_one_item_and_an_epoch_has_every_row_at_most_once() -> None:
    loader, found = batches()
    rows = torch.cat([episodes(batch) for batch in found])
    item = torch.from_numpy(ITEM)[rows]
    assert (item == item[:, :1]).all()
    assert len(rows.unique()) == rows.numel() == loader.num_rows
    # floor(rows / 2K) episodes of each item: one with 5 rows has none.
    assert torch.bincount(item[:, 0], minlength=5).tolist() == [5, 1, 0, 2, 6]
    for batch in found:
        assert torch.equal(batch.item, torch.from_numpy(ITEM)[batch.user].long())
        assert torch.equal(batch.label, (batch.item % 2).float())
        assert batch.num_rows == int(batch.weight.sum()) and batch.is_full == (batch.num_rows == loader.batch_size)


def test_epochs_cut_the_rows_anew_and_the_order_goes_on_from_any_step() -> None:
    _, first = batches(epoch=0)
    loader, second = batches(epoch=1)
    assert loader.num_steps == len(first) == 3
    assert not torch.equal(first[0].user, second[0].user)
    _, rest = batches(epoch=1, start=2)
    assert [batch.step for batch in rest] == [2]
    assert torch.equal(rest[0].user, second[2].user) and torch.equal(rest[0].weight, second[2].weight)


@pytest.mark.parametrize(("world", "size"), [(2, 24), (2, 30), (3, 30), (5, 30)])
def test_any_number_of_ranks_sees_the_global_batches_of_one(world: int, size: int) -> None:
    """So that a cursor within an epoch means the same on another number of ranks, whether or not it divides a batch."""
    _, alone = batches(size=size)
    ranks = [batches(rank=rank, world=world, size=size)[1] for rank in range(world)]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(episodes(one), torch.cat([episodes(part) for part in parts]))
        assert {part.num_rows for part in parts} == {one.num_rows}
        assert len({len(part.user) for part in parts}) == 1
        assert {part.is_full for part in parts} == {all(part.weight.all() for part in parts)}


def test_only_the_chosen_items_play() -> None:
    items = np.array([True, False, False, True, False])
    _, found = batches(items=items)
    assert set(torch.cat([batch.item[batch.weight > 0] for batch in found]).tolist()) == {0, 3}


def test_too_few_rows_are_the_users_error() -> None:
    with pytest.raises(UserError, match="no old item has 6 rows, 2 x data.warm_rows"):
        batches(items=np.array([False, False, True, False, False]))
    with pytest.raises(UserError, match="meta_train.batch_size = 11: .* 2 ranks need at least 12"):
        batches(world=2, size=11)
