"""`mwuf warm --old-items`: rows of old items move by the rule too, from where pretraining has left them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.training.item_rule.rule import WarmRule, frozen_double
from tests.bounds import assert_float32_close

NAMES = ("items.parquet", "log.parquet", "rows.parquet")


@pytest.fixture(scope="module")
def day(opened: FinishedRun) -> pa.Table:
    """Later rows: 90 of the old items 0 and 1, 200 of old and new items."""
    random = np.random.default_rng(0)
    item = np.concatenate([np.repeat([0, 1], 45), random.integers(opened.num_items, size=200)])
    columns = {
        "user_id": opened.user_ids.to_numpy()[random.integers(opened.prepared.num_users, size=290)],
        "item_id": opened.item_ids.to_numpy()[item],
        "label": random.integers(2, size=290),
        "timestamp": 10**9 + random.permutation(290),
    }
    return pa.table(columns)


def job(folder: Path, table: pa.Table, output: Path, runtime: Runtime, old_items: bool = True) -> WarmReport:
    path = output.with_name(f"{output.name}.parquet")
    pq.write_table(table, path)
    return warm(folder, path, output, runtime, old_items=old_items)


@pytest.fixture(scope="module")
def warmed(run_folder: Path, day: pa.Table, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("old") / "run2"
    job(run_folder, day, output, runtime)
    return output


def state_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "warm" / name).read_bytes() for name in NAMES}


@given(st.integers(1, 7), st.lists(st.integers(0, 3_000), max_size=8))
def test_an_item_stands_at_the_last_block_that_its_rows_fill(block_rows: int, counts: list[int]) -> None:
    rule = WarmRule(block_rows, 1, 0.1)
    ends = [0, *(rule.block_end(block) for block in range(20))]
    expected = [max(end for end in ends if end <= count) for count in counts]
    assert rule.last_end(np.array(counts, dtype=np.int64)).tolist() == expected


def test_the_row_is_that_of_torchs_adam_in_minibatches_of_the_block_that_pretraining_has_reached(
    warmed: Path, day: pa.Table, opened: FinishedRun, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    settings, block = run.config.warm_up, run.config.data.warm_rows
    seen = int(np.bincount(opened.prepared.columns("pretrain", ("item",))["item"])[0])
    begin = max(end for end in (3 * block << power for power in range(12)) if end <= seen)
    size = 3 * begin // (3 * block)  # K steps for as many interactions as the block holds
    own = [row for row in day.to_pylist() if row["item_id"] == opened.item_ids[0].as_py()]
    assert size < len(own) < begin, "several steps, in one block"
    own.sort(key=lambda row: row["timestamp"])
    users = torch.tensor([opened.index_of(row["user_id"], "user") for row in own])
    label = torch.tensor([float(row["label"]) for row in own]).double()
    backbone = frozen_double(opened.model.backbone)
    context = opened.context(users, torch.zeros_like(users)).double()
    parameter = torch.nn.Parameter(opened.embeddings([0])[0].double())
    adam = torch.optim.Adam([parameter], lr=settings.learning_rate)
    for _ in range(settings.epochs):
        for first in range(0, len(own), size):
            part = slice(first, first + size)
            logit = backbone(parameter.expand(len(label[part]), -1), context[part])
            adam.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logit, label[part]).backward()
            adam.step()
    expected = parameter.detach().float()
    assert not torch.equal(expected, opened.embeddings([0])[0])
    assert_float32_close(run.embeddings([0])[0], expected, num_terms=8, size=max(1.0, float(expected.abs().max())))


def test_days_one_after_another_leave_what_all_at_once_leaves(
    warmed: Path, day: pa.Table, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    random, folder = np.random.default_rng(1), run_folder
    cut = random.integers(3, size=day.num_rows)
    for number in range(3):
        rows = np.flatnonzero((cut == number) | (random.random(day.num_rows) < 0.1))  # late and repeated ones too
        job(folder, day.take(pa.array(random.permutation(rows))), tmp_path / f"day-{number}", runtime)
        folder = tmp_path / f"day-{number}"
    job(folder, day, tmp_path / "again", runtime)
    assert state_of(tmp_path / "again") == state_of(warmed)


def test_old_items_that_were_not_met_stay_and_the_export_has_those_that_moved(
    warmed: Path, day: pa.Table, opened: FinishedRun, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    met = {opened.index_of(item) for item in day["item_id"].to_pylist()}
    still = torch.tensor([item for item in range(opened.num_items) if item not in met])
    assert torch.equal(run.embeddings(still), opened.embeddings(still))
    moved = torch.tensor([item for item in sorted(met) if item < opened.num_old_items])
    assert bool((run.embeddings(moved) != opened.embeddings(moved)).any(dim=1).all()) and len(moved) > 20
    export = pq.read_table(warmed / "export" / "items.parquet")
    assert export["item_id"].to_pylist() == [opened.item_ids[item].as_py() for item in sorted(met)]
    rows = np.array(export["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(rows, run.embeddings(torch.tensor(sorted(met))).numpy())
    assert set(export["phase"].to_pylist()[: len(moved)]) == {"old"}
    before = opened.num_interactions[moved.numpy()]
    counted = np.array([day["item_id"].to_pylist().count(opened.item_ids[int(item)].as_py()) for item in moved])
    assert export["interactions"].to_pylist()[: len(moved)] == (before + counted).tolist()
    users = torch.zeros_like(moved)
    expected = run.model.backbone(run.embeddings(moved), run.context(users, moved))
    torch.testing.assert_close(run.scores(users, moved), expected, rtol=0, atol=1e-5)


def test_rows_of_pretraining_are_known_and_without_the_option_old_rows_stay(
    opened: FinishedRun, warmed: Path, day: pa.Table, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    part = opened.prepared.read_rows("pretrain", 100, 160, ("user", "item", "label", "time"))
    users, ids = opened.user_ids.to_numpy(), opened.item_ids.to_numpy()
    columns = {"user_id": users[part["user"]], "item_id": ids[part["item"]]}
    table = pa.table(columns | {"label": part["label"], "timestamp": part["time"]})
    report = job(run_folder, table, tmp_path / "run2", runtime)
    assert (report.change.num_known, report.change.num_of_old_items, report.num_changed) == (60, 60, 0)
    later = day.set_column(3, "timestamp", pa.array(day["timestamp"].to_numpy() + 10**6))
    report = job(warmed, later, tmp_path / "run3", runtime, old_items=False)
    assert report.change.num_of_old_items > 90 and "of old items (frozen)" in report.text()
    old = torch.arange(opened.num_old_items)
    assert torch.equal(load_run(tmp_path / "run3", runtime).embeddings(old), load_run(warmed, runtime).embeddings(old))
