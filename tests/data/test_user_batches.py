"""Batches of users' parts: every row once, no row in its own history, the same whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.data.batches.user_batches import UserLoader
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime
from tests.tiny import tiny

SIZE = 300


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny().data)


def batches(prepared: Prepared, rank: int = 0, world_size: int = 1, epoch: int = 0, start: int = 0) -> list[Batch]:
    runtime = Runtime(rank, world_size, torch.device("cpu"), show_progress=False)
    return list(UserLoader(prepared, SIZE, 7, runtime, "all").epoch(epoch, start))


def triples(batch: Batch) -> list[tuple[int, int, int]]:
    kept = batch.weight > 0
    rows = torch.stack([batch.user, batch.item, batch.label.long()])[:, kept]
    return [tuple(row) for row in rows.t().tolist()]


def events(batch: Batch) -> list[list[tuple[int, int, int]]]:
    """The history of each row that is not padding, as sorted triples of the row's user."""
    assert batch.history is not None
    history = batch.history
    pairs = list(zip(history.items.tolist(), history.labels.long().tolist(), strict=True))
    bounds = history.offsets.tolist()
    out = []
    for row in range(int((batch.weight > 0).sum())):
        group = int(history.group[row])
        user = int(batch.user[row])
        out.append(sorted((user, *pair) for pair in pairs[bounds[group] : bounds[group + 1]]))
    return out


def earlier(batch: Batch) -> list[int]:
    """How many events are before each row that is not padding."""
    assert batch.history is not None
    return batch.history.earlier[batch.weight > 0].tolist()


def all_rows(prepared: Prepared) -> list[tuple[int, int, int]]:
    columns = prepared.columns("pretrain", ("user", "item", "label"))
    return sorted(zip(*(columns[name].tolist() for name in ("user", "item", "label")), strict=True))


def test_every_row_is_in_an_epoch_exactly_once(prepared: Prepared) -> None:
    for epoch in (0, 1):
        assert sorted(row for batch in batches(prepared, epoch=epoch) for row in triples(batch)) == all_rows(prepared)


def test_a_part_and_its_history_are_rows_of_one_user_and_never_the_same_row(prepared: Prepared) -> None:
    of_user: dict[int, list[tuple[int, int, int]]] = {}
    for row in all_rows(prepared):
        of_user.setdefault(row[0], []).append(row)
    for batch in batches(prepared)[:5]:
        assert batch.history is not None
        for group in range(len(batch.history.offsets) - 1):
            rows = [row for row, own in zip(triples(batch), batch.history.group.tolist(), strict=False) if own == group]
            (user,) = {row[0] for row in rows}
            seen = events(batch)[batch.history.group.tolist().index(group)]
            # Users interact with an item more than once here, so the rows are compared as multisets.
            left = list(of_user[user])
            for row in [*rows, *seen]:
                left.remove(row)
            assert len(seen) == min(256, len(of_user[user]) - len(rows))


def test_a_history_is_in_order_of_time_and_says_how_much_of_it_is_before_each_row(prepared: Prepared) -> None:
    columns = prepared.columns("pretrain", ("user", "item", "label", "time", "row"))
    moments: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for user, item, *moment in zip(*(columns[name].tolist() for name in ("user", "item", "time", "row")), strict=True):
        moments.setdefault((user, item), []).append((moment[0], moment[1]))
    num_before = num_behind = 0
    for batch in batches(prepared)[:5]:
        assert batch.history is not None
        history = batch.history
        for row in range(int((batch.weight > 0).sum())):
            user = int(batch.user[row])
            own = moments[user, int(batch.item[row])]
            first, stop = history.offsets[history.group[row] :][:2].tolist()
            # An item that the user has met again does not say which of its rows it is.
            seen = [moments[user, one] for one in history.items[first:stop].tolist()]
            seen = [of_item[0] if len(of_item) == 1 else None for of_item in seen]
            assert (times := [one for one in seen if one]) == sorted(times)
            if len(own) == 1:
                earlier = int(history.earlier[row])
                before, behind = ([one for one in part if one] for part in (seen[:earlier], seen[earlier:]))
                assert all(moment < own[0] for moment in before) and all(moment > own[0] for moment in behind)
                num_before, num_behind = num_before + len(before), num_behind + len(behind)
    assert num_before > 100 and num_behind > 100


def test_parts_are_at_most_a_fifth_of_a_users_rows_and_64(prepared: Prepared) -> None:
    counts = np.bincount(prepared.columns("pretrain", ("user",))["user"])
    for batch in batches(prepared)[:5]:
        assert batch.history is not None
        for group in range(len(batch.history.offsets) - 1):
            users = batch.user[(batch.history.group == group) & (batch.weight > 0)]
            assert len(users) <= min(64, -(-int(counts[users[0]]) // 5))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_batch_that_one_rank_would_have(prepared: Prepared, world_size: int) -> None:
    whole = batches(prepared)
    ranks = [batches(prepared, rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert [row for part in parts for row in triples(part)] == triples(batch)
        assert [seen for part in parts for seen in events(part)] == events(batch)
        assert [one for part in parts for one in earlier(part)] == earlier(batch)
        assert {part.num_rows for part in parts} == {batch.num_rows}
        assert len({len(part.user) for part in parts}) == 1, "every rank has equally many rows, padding included"


def test_an_epoch_goes_on_from_any_step_with_the_same_batches(prepared: Prepared) -> None:
    whole, rest = batches(prepared), batches(prepared, start=4)
    assert len(rest) == len(whole) - 4
    for ours, theirs in zip(rest, whole[4:], strict=True):
        assert torch.equal(ours.item, theirs.item) and ours.step == theirs.step
        assert ours.history is not None and theirs.history is not None
        assert torch.equal(ours.history.items, theirs.history.items)


def test_epochs_differ(prepared: Prepared) -> None:
    assert triples(batches(prepared)[0]) != triples(batches(prepared, epoch=1)[0])
