"""The order of an epoch: every row once, the same global batches on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwuf_dist.config import UserError
from mwuf_dist.data.batches import loader as loader_module
from mwuf_dist.data.batches import order as order_module
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.batches.order import Order, num_lanes, stable_order
from mwuf_dist.runtime import Runtime


class FakePrepared:
    """Rows whose user is their own number, so that a batch says which rows it holds."""

    row_columns = ()

    def __init__(self, sizes: dict[str, int], group: int) -> None:
        self.sizes, self.group = sizes, group
        first = np.cumsum([0, *sizes.values()])
        self.rows = {name: np.arange(a, a + n) for (name, n), a in zip(sizes.items(), first, strict=False)}

    def num_rows(self, split: str) -> int:
        return self.sizes[split]

    def row_group_rows(self, split: str) -> int:
        return self.group

    def columns(self, split: str, names: Any) -> dict[str, np.ndarray]:
        return self.read_rows(split, 0, self.sizes[split], names)

    def read_rows(self, split: str, start: int, stop: int, names: Any) -> dict[str, np.ndarray]:
        user = self.rows[split][start:stop].astype(np.int32)
        values = {"user": user, "item": user % 7, "label": (user % 2).astype(np.int8)}
        return {name: values[name] for name in names}


def make(
    prepared: FakePrepared,
    batch: int,
    rank: int,
    world: int,
    order: Order = "shuffled",
    seed: int = 3,
    threads: int = 1,
) -> Loader:
    runtime = Runtime(rank, world, torch.device("cpu"), False, threads=threads)
    return Loader(prepared, list(prepared.sizes), batch, seed, runtime, order)  # type: ignore[arg-type]


shapes = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 700), min_size=1, max_size=3),
        "group": st.integers(1, 90),
        "batch": st.sampled_from([4, 12, 16, 64, 128]),
        "window": st.sampled_from([1, 64, 200, 1 << 22]),
        "block": st.sampled_from([(1, 1), (9, 2), (2048, 16)]),
        "order": st.sampled_from(["shuffled", "blocks", "time"]),
        "in_memory": st.booleans(),
    }
)


@settings(max_examples=60)
@given(shapes, st.integers(0, 2))
def test_every_row_is_in_an_epoch_once_and_global_batches_do_not_depend_on_the_ranks(
    shape: dict[str, Any], epoch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_ROWS", shape["window"])
        patch.setattr(order_module, "BLOCK_ROWS", shape["block"][0])
        patch.setattr(order_module, "BLOCK_STEPS", shape["block"][1])
        if not shape["in_memory"]:
            patch.setattr(loader_module, "IN_MEMORY_ROWS", 0)
        prepared = FakePrepared({f"s{i}": n for i, n in enumerate(shape["sizes"])}, shape["group"])
        alone = list(make(prepared, shape["batch"], 0, 1, shape["order"]).epoch(epoch))
        rows = torch.cat([batch.user[batch.weight > 0] for batch in alone])
        assert sorted(rows.tolist()) == list(range(sum(shape["sizes"])))
        assert all(batch.is_full for batch in alone[:-1])
        for batch in alone:
            assert int(batch.weight.sum()) == batch.num_rows and len(batch.user) == shape["batch"]
            assert torch.equal(batch.item[batch.weight > 0], batch.user[batch.weight > 0] % 7)
        if shape["order"] == "time":
            assert rows.tolist() == list(range(sum(shape["sizes"])))
        for world in (2, 3, 4):
            ranks = [list(make(prepared, shape["batch"], r, world, shape["order"]).epoch(epoch)) for r in range(world)]
            assert {len(batches) for batches in ranks} == {len(alone)}, "a rank would wait for a batch"
            for step, batch in enumerate(alone):
                parts = [batches[step] for batches in ranks]
                assert len({len(part.user) for part in parts}) == 1, "lookups take equally many rows on every rank"
                assert all(part.is_full == all(bool(p.weight.all()) for p in parts) for part in parts)
                for name in ("user", "item", "label"):
                    joined = torch.cat([getattr(part, name)[part.weight > 0] for part in parts])
                    assert torch.equal(joined, getattr(batch, name)[batch.weight > 0]), (world, step, name)


@settings(max_examples=30)
@given(shapes, st.data())
def test_an_epoch_entered_in_the_middle_goes_on_with_the_same_batches(shape: dict[str, Any], data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_ROWS", shape["window"])
        patch.setattr(order_module, "BLOCK_ROWS", shape["block"][0])
        patch.setattr(order_module, "BLOCK_STEPS", shape["block"][1])
        prepared = FakePrepared({f"s{i}": n for i, n in enumerate(shape["sizes"])}, shape["group"])
        loader = make(prepared, shape["batch"], 0, 1, shape["order"])
        whole = list(loader.epoch(1))
        assert len(whole) == loader.num_steps
        start = data.draw(st.integers(0, len(whole)))
        rest = list(loader.epoch(1, start))
        assert [batch.step for batch in rest] == [batch.step for batch in whole[start:]]
        assert all(torch.equal(a.user, b.user) for a, b in zip(rest, whole[start:], strict=True))


@settings(max_examples=20)
@given(shapes)
def test_batches_are_the_same_on_any_number_of_threads(shape: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_ROWS", shape["window"])
        patch.setattr(loader_module, "_SHARED_ROWS", 0)
        if not shape["in_memory"]:
            patch.setattr(loader_module, "IN_MEMORY_ROWS", 0)
        prepared = FakePrepared({f"s{i}": n for i, n in enumerate(shape["sizes"])}, shape["group"])
        one, *others = (
            [[batch.user, batch.item, batch.label, batch.weight] for batch in loader.epoch(1)]
            for loader in (make(prepared, shape["batch"], 0, 1, shape["order"], threads=n) for n in (1, 2, 3, 8))
        )
        for batches in others:
            for found, expected in zip(batches, one, strict=True):
                assert all(map(torch.equal, found, expected))


@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 1 << 17), st.integers(0, (1 << 40) - 1))))
def test_ids_are_sorted_by_digits_as_by_comparing(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()
    narrow = (array & 0x7FFFFFFF).astype(np.int32)
    assert stable_order(narrow).tolist() == np.argsort(narrow, kind="stable").tolist()


@pytest.mark.parametrize("order", ["shuffled", "blocks"])
def test_a_shuffled_batch_is_spread_over_the_whole_data_and_epochs_differ(order: Order) -> None:
    prepared = FakePrepared({"pretrain": 64_000}, 125)
    loader = make(prepared, 640, 0, 1, order)
    first, again, second = (next(iter(loader.epoch(e))).user for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    spread = np.histogram(first.numpy(), bins=8, range=(0, 64_000))[0]
    assert spread.min() > 40  # 80 expected in each eighth
    other_seed = next(iter(make(prepared, 640, 0, 1, order, seed=4).epoch(0))).user
    assert not torch.equal(first, other_seed)


def test_neighbours_in_the_data_are_not_neighbours_in_batches_of_blocks_and_each_row_group_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader_module, "IN_MEMORY_ROWS", 0)
    prepared = FakePrepared({"pretrain": 64 * 8192}, 8192)  # a group for each lane
    reads = []
    read_rows = prepared.read_rows
    monkeypatch.setattr(prepared, "read_rows", lambda *a: reads.append(a[1:3]) or read_rows(*a))
    first = next(batches := make(prepared, 2048, 0, 1, "blocks").epoch(0)).user.view(64, 32)  # [lanes, rows of a lane]
    assert len({int(row) // 8192 for row in first[:, 0]}) == 64, "from as many row groups as there are lanes"
    spans = first.amax(dim=1) - first.amin(dim=1)
    assert spans.max() < 4096 and spans.min() > 2048, "anywhere in the window: 32 of 4096 rows span 3,848"
    assert (first.diff(dim=1) == 1).sum() < 64, "1 of 4096 pairs by chance"
    assert sum(1 for _ in batches) == 255
    assert len(reads) == len(set(reads)) == 64


def test_lanes_divide_the_batch_and_ranks_without_a_lane_are_refused_with_the_way_out() -> None:
    assert [num_lanes(b) for b in (2048, 256, 96, 7, 1)] == [64, 64, 48, 7, 1]
    with pytest.raises(UserError, match="multiple of 8"):
        make(FakePrepared({"pretrain": 20}, 10), 6, 0, 8)
