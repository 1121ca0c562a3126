"""Histories against a brute-force reading of the raw rows: what a row may look back at, and never ahead."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwuf_dist.config import Events
from mwuf_dist.data.batches.histories import Histories, History, Scope
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.batches.order import Order
from mwuf_dist.data.prepare.pipeline import write_prepared
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.schema import RawDataset
from mwuf_dist.data.shards import MANIFEST, Prepared
from mwuf_dist.data.split import SPLITS, SplitRule
from mwuf_dist.runtime import Runtime
from tests.data.splits import Split, split_rows
from tests.tiny import tiny

CPU = torch.device("cpu")
RULE = SplitRule(old_above=9, warm_rows=2)
NUM_USERS, NUM_ITEMS = 5, 9
COUNTS = (30, 20, 14, 9, 8, 7, 4, 2, 1)  # three old items, three new, three dropped


@dataclass
class Rows:
    """Raw rows [R] in file order."""

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    time: np.ndarray

    def dataset(self) -> RawDataset:
        columns = {"user": np.int32, "item": np.int32, "label": np.int8, "time": np.int64}
        table = pa.table({name: getattr(self, name).astype(dtype) for name, dtype in columns.items()})
        users, items = (pa.table({"raw_id": np.arange(num)}) for num in (NUM_USERS, NUM_ITEMS))
        return RawDataset(table, users, items, ())

    def split(self, rule: SplitRule = RULE) -> Split:
        return split_rows(self.item, self.time, NUM_ITEMS, rule)


def random_rows(seed: int, times: int = 1) -> Rows:
    """Items with the numbers of rows of COUNTS, many rows of one second."""
    generator = np.random.default_rng(seed)
    item = generator.permutation(np.repeat(generator.permutation(NUM_ITEMS), np.multiply(COUNTS, times)))
    user, label, time = (generator.integers(0, high, len(item)) for high in (NUM_USERS, 2, 15))
    return Rows(user, item, label, time)


class Written:
    """The files of some rows, with what `Histories` needs of a prepared folder."""

    def __init__(self, rows: Rows, folder: Path, rule: SplitRule = RULE) -> None:
        self.rows, self.path, self.split = rows, folder, rows.split(rule)
        folder.mkdir(parents=True, exist_ok=True)
        with mock.patch.object(RawDataset, "check"):  # a test has labels that tell rows apart
            write_prepared(rows.dataset().in_pieces("rows"), rule, folder, {})
        self.manifest = json.loads((folder / MANIFEST).read_text())
        self.files = self.manifest["histories"]

    @property
    def num_items(self) -> int:
        return len(self.split.item_order)

    @property
    def num_users(self) -> int:
        return self.manifest["num_users"]

    num_stored_items, num_stored_users = num_items, num_users
    events: Events = "all"

    def whole(self, name: str) -> Path:
        return self.path / name

    def histories(self, num_finished: int, length: int = 0, scope: Scope = "before") -> Histories:
        return Histories(self, num_finished, length, CPU, scope, self.events)  # type: ignore[arg-type]

    def of_split(self, name: str, num_finished: int, length: int = 0) -> list[list[tuple[int, int]]]:
        """(item, label) of each event of the history of each row of a split."""
        rows, source = self.split.rows[name], self.histories(num_finished, length)
        before = torch.from_numpy(source.before(name, 0, len(rows))).long()
        return lists(source.of(torch.from_numpy(self.rows.user[rows]).long(), before, name == "pretrain"))


def lists(history: History) -> list[list[tuple[int, int]]]:
    """What each row sees."""
    events = list(zip(history.items.tolist(), history.labels.int().tolist(), strict=True))
    bounds = history.offsets.tolist()
    return [events[bounds[group] : bounds[group + 1]] for group in history.group.tolist()]


def brute_force(rows: Rows, split: Split, row: int, num_finished: int, rule: SplitRule = RULE) -> list[tuple[int, int]]:
    """The rule as it is said: earlier rows of the user, of old, finished new and dropped items."""
    new_index = {raw: index for index, raw in enumerate(split.item_order.tolist())}
    allowed = {int(one) for name in SPLITS[: 1 + num_finished] for one in split.rows[name]}
    seen = []
    for other in range(len(rows.user)):
        earlier = (rows.time[other], other) < (rows.time[row], row)
        dropped = int((rows.item == rows.item[other]).sum()) < 3 * rule.warm_rows
        if rows.user[other] == rows.user[row] and earlier and (other in allowed or dropped):
            item = new_index.get(int(rows.item[other]), len(split.item_order))
            seen.append(((rows.time[other], other), (item, int(rows.label[other]))))
    return [event for _, event in sorted(seen)]


seeds = st.integers(0, 10_000)


@settings(max_examples=30)
@given(seeds, st.integers(0, 3), st.sampled_from([0, 1, 4]), st.booleans())
def test_a_history_is_the_last_events_that_are_earlier_and_finished_or_of_dropped_items(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_finished: int, length: int, old_as_new: bool
) -> None:
    rows, rule = random_rows(seed), SplitRule(RULE.old_above, RULE.warm_rows, old_as_new, seed)
    split = rows.split(rule)
    written = Written(rows, tmp_path_factory.mktemp("histories"), rule)
    for name in SPLITS:
        found = written.of_split(name, num_finished, length)
        expected = [brute_force(rows, split, int(row), num_finished, rule) for row in split.rows[name]]
        assert found == [events[-length:] if length else events for events in expected]


def test_random_rows_hold_what_the_brute_force_is_to_tell_apart(tmp_path: Path) -> None:
    """Else the test above would pass on less than it says: ties, dropped items, new items in histories."""
    rows = random_rows(0)
    split = rows.split()
    assert (split.num_old_items, split.num_new_items) == (3, 3)
    played = rows.split(SplitRule(RULE.old_above, RULE.warm_rows, True))
    assert (played.num_old_items, played.num_new_items) == (2, 1)
    assert np.unique(np.stack([rows.user, rows.time]), axis=1).shape[1] < len(rows.user)
    whole = lists(Written(rows, tmp_path).histories(3).whole(torch.arange(NUM_USERS)))
    items = {item for events in whole for item, _ in events}
    assert items == set(range(len(split.item_order) + 1))


def test_rows_that_are_still_to_be_scored_are_in_no_history(tmp_path: Path) -> None:
    """Their events carry a number of their own as label, so that each can be told."""
    rows = random_rows(1)
    rows.label = np.arange(len(rows.user)) % 127  # a raw row's label says which row it is
    written = Written(rows, tmp_path)
    users = torch.arange(NUM_USERS)
    for num_finished in range(4):
        seen = {label for events in lists(written.histories(num_finished).whole(users)) for _, label in events}
        for name in SPLITS[1 + num_finished :]:  # warm sets that are not finished, and `test` always
            assert not seen & set(written.split.rows[name].tolist()), (num_finished, name)
        for name in SPLITS[: 1 + num_finished]:
            assert set(written.split.rows[name].tolist()) <= seen, (num_finished, name)


@settings(max_examples=40)
@given(seeds, st.data())
def test_changing_future_rows_changes_no_earlier_batch(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: Any
) -> None:
    """Time, item and label of every row behind a moment, within what leaves old items old and new ones new."""
    rows = random_rows(seed)
    order = np.lexsort((np.arange(len(rows.user)), rows.time))
    cut = data.draw(st.integers(1, len(order) - 2))
    future = order[cut:]
    moment = int(rows.time[order[cut - 1]])
    generator = np.random.default_rng(seed)
    changed = Rows(rows.user.copy(), rows.item.copy(), rows.label.copy(), rows.time.copy())
    changed.label[future] ^= 1
    changed.item[future] = generator.permutation(rows.item[future])
    changed.time[future] = moment + 1 + generator.integers(0, 9, len(future))
    changed.user[future] = generator.permutation(rows.user[future])
    written = [Written(one, tmp_path_factory.mktemp("future")) for one in (rows, changed)]
    assert (written[0].split.item_order == written[1].split.item_order).all()
    past = set(order[:cut].tolist())
    for name in SPLITS:
        for num_finished in range(4):
            batches = []
            for one in written:
                kept = [row for row in one.split.rows[name].tolist() if row in past]
                # Rows are stored by time, so those of the past are the first of both.
                assert kept == one.split.rows[name][: len(kept)].tolist()
                batches.append((kept, one.of_split(name, num_finished, 4)[: len(kept)]))
            assert batches[0] == batches[1], name


def test_the_scope_all_is_every_pretrain_row_of_the_user_but_the_row_itself(tmp_path: Path) -> None:
    written = Written(random_rows(3), tmp_path)
    rows, source = written.rows, written.histories(0, scope="all")
    order = np.lexsort((np.arange(len(rows.time)), rows.time))
    pretrain = set(written.split.rows["pretrain"].tolist())
    new_index = {int(raw): place for place, raw in enumerate(written.split.item_order)}
    for name in SPLITS:
        chosen = written.split.rows[name]
        before = torch.from_numpy(source.before(name, 0, len(chosen))).long()
        history = source.of(torch.from_numpy(rows.user[chosen]).long(), before, name == "pretrain")
        for row, events, earlier in zip(chosen.tolist(), lists(history), history.earlier.tolist(), strict=True):
            others = [r for r in order.tolist() if r in pretrain and r != row and rows.user[r] == rows.user[row]]
            assert events == [(new_index[int(rows.item[r])], int(rows.label[r])) for r in others]
            assert earlier == sum((rows.time[r], r) < (rows.time[row], row) for r in others)


def test_rows_of_a_user_share_a_whole_history_and_padding_has_none(tmp_path: Path) -> None:
    written = Written(random_rows(2), tmp_path)
    source = written.histories(1, length=3)
    history = source.whole(torch.tensor([3, 1, 3, 3]))
    assert history.group.tolist() == [1, 0, 1, 1] and len(history.offsets) == 3
    everything = lists(written.histories(1).whole(torch.tensor([3, 1, 3, 3])))
    assert lists(history) == [events[-3:] for events in everything]
    assert torch.equal(history.earlier, history.lengths[history.group])
    empty = source.of(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), True)
    assert empty.lengths.tolist() == [0, 0, 0, 0] and len(empty.items) == 0
    assert history.items.dtype == history.offsets.dtype == history.group.dtype == torch.int64
    assert history.labels.dtype == torch.float32


def test_an_event_takes_a_few_bytes_of_disk_however_long_a_history_is(tmp_path: Path) -> None:
    rows = random_rows(3, times=50)
    written = Written(rows, tmp_path, SplitRule(50 * RULE.old_above, 50 * RULE.warm_rows))
    assert set(written.files) == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy")}
    assert all((tmp_path / path).stat().st_size == entry["bytes"] for path, entry in written.files.items())
    headers = 128 * len(written.files) + 8 * (NUM_USERS + 1)
    assert sum(entry["bytes"] for entry in written.files.values()) <= headers + (4 + 1 + 1 + 8 + 4) * len(rows.user)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny().data)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("order", ["shuffled", "blocks", "time"])
def test_batches_carry_the_histories_of_their_rows_on_any_number_of_ranks(
    prepared: Prepared, order: Order, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr("mwuf_dist.data.batches.loader.IN_MEMORY_ROWS", 0)
    source = Histories(prepared, 1, 5, CPU)
    splits = ["warm_a", "warm_b"]
    expected: dict[tuple[int, ...], list[list[tuple[int, int]]]] = {}  # a pair may have several rows
    for split in splits:
        rows = prepared.columns(split, ("user", "item", "label"))
        before = torch.from_numpy(source.before(split, 0, prepared.num_rows(split))).long()
        histories = lists(source.of(torch.from_numpy(rows["user"]).long(), before, split == "pretrain"))
        keys = zip(*(rows[name].tolist() for name in ("user", "item", "label")), strict=True)
        for key, events in zip(keys, histories, strict=True):
            expected.setdefault(key, []).append(events)

    def batches(rank: int, world: int) -> list[tuple[list[int], list[list[tuple[int, int]]]]]:
        loader = Loader(prepared, splits, 256, 0, Runtime(rank, world, CPU, False), order, source)
        out = []
        for batch in loader.epoch(0):
            assert batch.history is not None
            out.append((batch.user.tolist(), lists(batch.history)))
            for row, events in enumerate(out[-1][1]):
                if batch.weight[row] == 0:
                    assert events == []
                    continue
                key = (int(batch.user[row]), int(batch.item[row]), int(batch.label[row]))
                assert events in expected[key]
        return out

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert any(events for _, histories in alone for events in histories)
    for whole, one, two in zip(alone, first, second, strict=True):
        assert (one[0] + two[0], one[1] + two[1]) == whole


def test_a_folder_whose_histories_are_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    from mwuf_dist.data.manifest import read_manifest

    config = tiny(data={"prepared_dir": str(tmp_path)}).data
    folder = prepare(config).path
    path = folder / "histories" / "items.npy"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_manifest(folder) is None
    prepare(config)
    assert read_manifest(folder) is not None


@pytest.mark.parametrize("scope", ["before", "all"])
def test_histories_of_positives_are_those_of_all_events_without_the_others(tmp_path: Path, scope: Scope) -> None:
    """And a row of label 0, which is no event there, takes nothing out of its own history."""
    rows = random_rows(3)
    written = Written(rows, tmp_path)
    for name in ("pretrain", "test"):
        found = {}
        for written.events in ("all", "positives"):
            source = written.histories(1, scope=scope)
            own = written.split.rows[name]
            before = torch.from_numpy(source.before(name, 0, len(own))).long()
            found[written.events] = lists(
                source.of(torch.from_numpy(rows.user[own]).long(), before, name == "pretrain")
            )
        assert found["positives"] == [[event for event in seen if event[1]] for seen in found["all"]]
        assert any(len(few) < len(many) for few, many in zip(found["positives"], found["all"], strict=True))


def test_with_a_gap_earlier_counts_the_events_that_are_older_by_more_than_it(tmp_path: Path) -> None:
    rows = random_rows(4, times=2)
    written = Written(rows, tmp_path)
    prepared = Prepared(tmp_path, json.loads((tmp_path / MANIFEST).read_text()))
    for gap_s in (0, 2, 100):
        source = Histories(prepared, 0, 0, CPU, "all", "all", gap_s)
        own = written.split.rows["pretrain"]
        before = torch.from_numpy(source.before("pretrain", 0, len(own)))
        history = source.of(torch.from_numpy(rows.user[own]).long(), before, in_pretrain=True)
        is_event = np.isin(np.arange(len(rows.user)), own)
        expected = [
            int((is_event & (rows.user == rows.user[row]) & (rows.time < rows.time[row] - gap_s)).sum()) for row in own
        ]
        assert history.earlier.tolist() == expected, gap_s
