"""Retired items are nowhere; their IDs may come back, as new items that know nothing of the old ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.vectors import column_of
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.deltas import hashes, replay
from mwuf_dist.serving.deltas.reader import Delta, ItemTable
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.served_log import empty_log
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import Retired, WarmState
from mwuf_dist.serving.warm import retire as retire_module
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.serving.warm.retire import Retiring
from tests.serving.own_logs import NUM_OLD, config_for, make_logs, write

DAY_S = 86_400


@pytest.fixture(scope="module")
def logs_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of own logs."""
    folder = tmp_path_factory.mktemp("retire")
    write(make_logs(), folder / "log.csv")
    local.train(config_for(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def runtime(logs_run: Path) -> Iterator[Runtime]:
    with start(read_run(logs_run)[0]) as runtime:
        yield runtime


def clicks(items: list[int], day: int, users: int = 6) -> pa.Table:
    """Clicks of the first users on each of these items, so many days after the run's first row."""
    item = np.repeat(items, users)
    user = np.tile(np.arange(1, users + 1), len(items))
    time = 1_600_000_000 + DAY_S * day + np.arange(len(item))
    return pa.table({"user_id": user, "item_id": item, "timestamp": time, "label": (user + item) % 2})


class Days:
    """Jobs one after another, in folders of one folder."""

    def __init__(self, run: Path, runtime: Runtime, folder: Path) -> None:
        self.folder, self.runtime, self.last = folder, runtime, run

    def job(self, table: pa.Table | None, name: str, **options: Any) -> WarmReport:
        path = None if table is None else self.folder / f"{name}.parquet"
        if table is not None:
            pq.write_table(table, path)
        report = warm(self.last, path, self.folder / name, self.runtime, **options)
        self.last = self.folder / name
        return report

    def retire(self, items: list[Any], name: str, table: pa.Table | None = None) -> WarmReport:
        path = self.folder / f"{name}-ids.parquet"
        pq.write_table(pa.table({"item_id": items}), path)
        return self.job(table, name, retiring=Retiring(path))

    def exported(self, name: str) -> dict[int, list[float]]:
        run = load_run(self.last, self.runtime)
        table = pq.read_table(export(run, "parquet", self.folder / name, old_items=True) / "items.parquet")
        assert len(set(table["item_id"].to_pylist())) == table.num_rows == table["item_id"].length()
        return dict(zip(table["item_id"].to_pylist(), table["embedding"].to_pylist(), strict=True))


@pytest.fixture
def days(logs_run: Path, runtime: Runtime, tmp_path: Path) -> Days:
    return Days(logs_run, runtime, tmp_path)


def test_retired_items_are_nowhere_and_all_others_stay_to_the_bit(days: Days) -> None:
    days.job(clicks([901, 950, 951], day=2), "first")
    before = days.exported("before")
    report = days.retire([951, 902, 100, 12345], "gone")
    after = days.exported("after")
    assert set(before) - set(after) == {951, 902, 100} and report.num_retired == 3
    assert "1 of the 4 IDs to retire are of no item" in report.text()
    assert all(after[item] == before[item] for item in after)
    run = load_run(days.last, days.runtime)
    for item in (951, 902, 100):
        with pytest.raises(UserError, match="no item"):
            run.index_of(item)
    # The others can still be explained, beside a neighbour that is gone.
    assert None not in [one for one, _ in explain(run, 950, num_nearest=NUM_OLD).nearest]


def test_an_id_comes_back_as_a_new_item_that_starts_where_one_never_seen_does(
    days: Days, logs_run: Path, runtime: Runtime
) -> None:
    days.job(clicks([901, 950], day=2, users=9), "first")
    days.retire([901, 950], "gone")
    later = clicks([901, 950], day=3, users=5)
    report = days.job(later, "back")
    assert report.change.num_new_items == 2 and report.change.num_new == 10
    run = load_run(days.last, runtime)
    # What a run without these items makes of the same clicks under names that nobody knows.
    renamed = pc.if_else(pc.equal(later["item_id"], 901), 7901, 7950)
    plain = Days(logs_run, runtime, days.folder)
    plain.job(later.set_column(1, "item_id", renamed), "plain")
    expected = load_run(plain.last, runtime)
    for item, name in ((901, 7901), (950, 7950)):
        index, other = (torch.tensor([one.index_of(of)]) for one, of in ((run, item), (expected, name)))
        assert torch.equal(run.model.new_ids.rows(index), expected.model.new_ids.rows(other))
        assert torch.equal(run.embeddings(index), expected.embeddings(other))
        assert run.num_interactions[index] == 5 and run.phase_codes(index) == expected.phase_codes(other)


def test_interactions_from_before_do_not_bring_a_retired_item_back_and_neither_does_a_list(
    days: Days, tmp_path: Path
) -> None:
    first = clicks([901, 950, 951], day=2)
    days.job(first, "first")
    days.retire([901, 950], "gone")
    before = days.exported("before")
    (tmp_path / "items.csv").write_text("item_id,color,price\n950,red,3\n952,blue,1\n")
    report = days.job(pa.concat_tables([first, clicks([901], day=1)]), "again", items=tmp_path / "items.csv")
    assert "18 interactions are of items that had been retired by then" in report.text()
    after = days.exported("after")
    assert set(after) - set(before) == {952} and all(after[item] == before[item] for item in before)
    days.job(clicks([950], day=4), "back", items=tmp_path / "items.csv")
    assert set(days.exported("back-export")) - set(after) == {950}


def test_items_without_a_click_for_so_many_days_leave_and_old_items_do_not(days: Days) -> None:
    days.job(clicks([901, 950], day=10), "first")
    report = days.job(clicks([903, 951], day=39), "then", retiring=Retiring(after_days=30))
    left = set(days.exported("left"))
    assert {901, 950, 903, 951} | set(range(100, 100 + NUM_OLD)) == left and report.num_retired == 28
    days.job(clicks([903], day=41), "last", retiring=Retiring(after_days=30))
    assert left - set(days.exported("last-export")) == {901, 950}


def test_days_are_refused_where_times_are_no_dates() -> None:
    assert retire_module._as_time(2, 10**9, is_logs=False) == 2 * DAY_S
    assert retire_module._as_time(0.5, 10**15, is_logs=True) == DAY_S // 2 * 10**6
    with pytest.raises(UserError, match="the times of this run's data are no dates"):
        retire_module._as_time(2, 50_000, is_logs=False)


# States as jobs make them, without a model.
RUN_IDS = pa.array(np.arange(500), pa.int64())
DIM = 4


def empty_state() -> WarmState:
    ids = pa.array([], pa.int64())
    fields = pa.table({"color": pa.array([], pa.int32()), "tags": pa.array([], pa.list_(pa.int32()))})
    nobody = Retired.none(ids.type)
    return WarmState(len(RUN_IDS), ids, fields, np.empty(0, bool), empty_log(), Rows.none(DIM), {}, nobody)


def random_parts(random: np.random.Generator, alive: dict[int, bytes], step: int) -> dict[str, pa.Table]:
    """A delta: some items change, some are born or come back, some die."""
    living = np.array(sorted(alive))
    changed = random.choice(living, min(len(living), 60), replace=False) if len(living) else living
    born = np.setdiff1d(random.integers(500, 4000, size=150), living)
    own = np.setdiff1d(random.integers(500, size=20), living)  # of the run: moved for the first time
    ids = np.unique(np.concatenate([changed, born, own])).astype(np.int64)
    dead = np.setdiff1d(random.choice(living, min(len(living), 110), replace=False), ids) if len(living) else living
    rows = random.normal(size=(len(ids), DIM)).astype(np.float32)
    others = ids
    tags = pa.array([[int(one) % 7, step % 5] for one in others], pa.list_(pa.int32()))
    items = {"item_id": others, "color": pa.array((others + step) % 9, pa.int32()), "tags": tags}
    log = {"item_id": ids, "user": pa.array(ids % 50, pa.int32()), "user_key": pa.array(ids, pa.uint64())}
    log |= {"time": np.full(len(ids), step), "label": pa.array(ids % 2, pa.int8())}
    return {
        "items": pa.table(items | {"fields_given": np.ones(len(others), bool)}),
        "rows": pa.table(
            {"item_id": ids, "row": column_of(rows), "row_at_boundary": column_of(-rows), "boundary": ids}
        ),
        "log": pa.table(log),
        "retired": pa.table({"item_id": dead.astype(np.int64), "time": np.full(len(dead), step)}),
        "changed": pa.table({"item_id": ids, "embedding": column_of(rows)}),
    }


def of_others(parts: dict[str, pa.Table], gone: set[int]) -> dict[str, pa.Table]:
    """The run's own items have no line in `items`, until they have been retired."""
    ids = parts["items"]["item_id"].to_pylist()
    kept = pa.array([one >= len(RUN_IDS) or one in gone for one in ids])
    return parts | {"items": parts["items"].filter(kept)}


def test_ten_thousand_births_and_deaths_leave_the_survivors_to_the_bit_and_nobody_else() -> None:
    random = np.random.default_rng(0)
    alive: dict[int, bytes] = {}
    gone: set[int] = set()
    table = ItemTable([], {"embedding": np.zeros((0, DIM), np.float32)}, "c", 0, "0")
    state, all_parts, num_events, comebacks = empty_state(), [], 0, 0
    for step in range(1, 60):
        parts = of_others(random_parts(random, alive, step), gone)
        all_parts.append(parts)
        header = {"chain": "c", "number": step, "before": str(step - 1), "after": str(step)}
        table.apply(Delta("d", header, parts))
        state = replay.replayed(state, [parts], RUN_IDS)
        dead, ids = parts["retired"]["item_id"].to_pylist(), parts["rows"]["item_id"].to_pylist()
        num_events += len(dead) + len(set(ids) - set(alive))
        comebacks += len(gone & (set(ids) - set(alive)))
        for one in dead:
            del alive[one]
        gone |= set(dead)
        rows = np.stack(parts["rows"]["row"].to_numpy())
        alive |= {one: row.tobytes() for one, row in zip(ids, rows, strict=True)}
        found, columns = table.items()
        assert {one: row.tobytes() for one, row in zip(found, columns["embedding"], strict=True)} == alive
    assert num_events > 10_000 and comebacks > 1000
    ids = replay.ids_of(state.rows.item, state, RUN_IDS).to_pylist()
    assert {one: row.tobytes() for one, row in zip(ids, state.rows.served, strict=True)} == alive
    assert set(state.retired.ids.to_pylist()) == gone
    # No interaction of a dead item, and none from before a comeback.
    died = dict(zip(state.retired.ids.to_pylist(), state.retired.time.tolist(), strict=True))
    for one, time in zip(replay.ids_of(state.log["item"], state, RUN_IDS).to_pylist(), state.log["time"], strict=True):
        assert one in alive and time > died.get(one, 0)
    # All at once, in two parts, or one by one: the same state.
    at_once = replay.replayed(empty_state(), all_parts, RUN_IDS)
    halves = replay.replayed(replay.replayed(empty_state(), all_parts[:30], RUN_IDS), all_parts[30:], RUN_IDS)
    for other in (at_once, halves):
        assert all(ours.equals(other.tables()[name]) for name, ours in state.tables().items())
    assert hashes.text_of(hashes.hash_of(at_once, RUN_IDS)) == hashes.text_of(hashes.hash_of(state, RUN_IDS))


def test_the_hash_is_a_sum_over_items_and_tells_any_change() -> None:
    random = np.random.default_rng(1)
    parts = of_others(random_parts(random, {}, 1), set())
    state = replay.replayed(empty_state(), [parts], RUN_IDS)
    whole = hashes.hash_of(state, RUN_IDS)
    ids = pa.concat_arrays([RUN_IDS, state.ids])
    halves = [replay.restricted(state, ids.filter(pa.array(np.arange(len(ids)) % 2 == one)), RUN_IDS) for one in (0, 1)]
    np.testing.assert_array_equal(whole, sum(hashes.hash_of(half, RUN_IDS) for half in halves))
    log, rows = state.log, state.rows
    other = rows.served.copy()
    other[3, 1] = np.nextafter(other[3, 1], np.float32(9))
    changes = [
        {"rows": dataclasses.replace(rows, served=other)},
        {"rows": dataclasses.replace(rows, served=rows.at_boundary, at_boundary=rows.served)},
        {"log": log | {"label": 1 - log["label"]}},
        {"log": log | {"time": log["time"] + (np.arange(len(log["time"])) == 5)}},
        {"listed": ~state.listed},
        {"fields": state.fields.set_column(0, "color", pc.add(state.fields["color"], pa.scalar(1, pa.int32())))},
        {"retired": Retired(pa.array([7]), np.array([3]))},
    ]
    for change in changes:
        changed = hashes.hash_of(dataclasses.replace(state, **change), RUN_IDS)
        assert (changed != whole).all(), change.keys()
