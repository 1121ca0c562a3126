"""New interactions of a run of positives only: their negatives are a function of each row and the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import Config, UserError, build
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.served_log import Log, find
from mwuf_dist.serving.warm.interactions import Columns, log_options, read_interactions
from mwuf_dist.serving.warm.job import seen_by_run, warm
from mwuf_dist.serving.warm.negatives import add_negatives
from tests.tiny import TINY

PER_POSITIVE = 2
NUM_USERS = 40
NEVER_SEEN = "z"


@dataclass(frozen=True)
class Positives:
    """A run of positives only, and later rows.

    Attributes:
        folder: of the run.
        config: of the run.
        prepared: its data.
        logs: its logs.
        today: later rows.
    """

    folder: Path
    config: Config
    prepared: Prepared
    logs: pa.Table
    today: pa.Table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Positives:
    folder, random = tmp_path_factory.mktemp("positives"), np.random.default_rng(0)
    item = np.concatenate([np.repeat(np.arange(20), 60), np.repeat(np.arange(20, 60), 15)])
    item = item[random.permutation(len(item))]
    activity = 1 / np.arange(1, NUM_USERS + 1) ** 0.7
    user = random.choice(NUM_USERS, size=len(item), p=activity / activity.sum())
    logs = pa.table({"who": [f"u{n}" for n in user], "what": [f"i{n}" for n in item], "when": np.arange(len(item))})
    pq.write_table(logs, folder / "logs.parquet")
    own = {"interactions": str(folder / "logs.parquet"), "user": "who", "item": "what", "time": "when"}
    own |= {"negatives_per_positive": PER_POSITIVE, "negatives_seed": 3}
    data = {"name": "logs", "old_above": 30, "warm_rows": 3, "prepared_dir": str(folder / "prepared"), "logs": own}
    pretrain = {"epochs": 1, "batch_size": 512}
    config = build(TINY | {"data": data, "pretrain": pretrain, "backbone": {"name": "fm"}})
    local.train(config, folder / "run")
    num = 90
    today = {
        "who": [f"u{n}" for n in random.integers(NUM_USERS + 3, size=num)],  # three of them never seen
        "what": [f"i{n}" for n in random.integers(15, 60, size=num - 30)] + [NEVER_SEEN] * 30,
        "when": len(item) + random.integers(50, size=num),
    }
    return Positives(folder / "run", config, prepare(config.data), logs, pa.table(today))


@pytest.fixture
def runtime(run: Positives) -> Iterator[Runtime]:
    with start(run.config) as runtime:
        yield runtime


def negatives_of(run: Positives, table: pa.Table, path: Path) -> Log:
    """Rows of label 0 for a table, items by their raw ID."""
    pq.write_table(table, path)
    options = log_options(run.config, Columns())
    run_ids, user_ids = (run.prepared.raw_ids(side) for side in ("item", "user"))
    rows = read_interactions(path, options, run.prepared, is_logs=True)
    assert (rows.log["label"] == 1).all()
    items = find(rows.item_ids, run_ids)
    run_log = seen_by_run(run.prepared, items, user_ids)
    made = add_negatives(rows, items, run.prepared, user_ids, run_log, PER_POSITIVE, options.negatives_seed).log
    drawn = made["label"] == 0
    assert not drawn[: rows.num_rows].any() and drawn[rows.num_rows :].all()
    log = {name: values[drawn] for name, values in made.items()}
    return log | {"item": np.array(rows.item_ids.to_pylist(), dtype=object)[log["item"]]}


def as_set(log: Log) -> list[tuple[str, int, int]]:
    return sorted(zip(log["item"].tolist(), log["time"].tolist(), log["user"].tolist(), strict=True))


def test_negatives_are_users_of_the_run_who_never_liked_the_item_there_nor_are_the_rows_own(
    run: Positives, tmp_path: Path
) -> None:
    log = negatives_of(run, run.today, tmp_path / "today.parquet")
    user_ids = run.prepared.raw_ids("user").to_pylist()
    run_ids = run.prepared.raw_ids("item").to_pylist()
    old = set(run_ids[: run.prepared.num_old_items])
    rows = [row for row in run.today.to_pylist() if row["what"] not in old]
    liked = {(row["who"], row["what"]) for row in run.logs.to_pylist()}
    drawn = [(user_ids[user], item) for item, user in zip(log["item"], log["user"], strict=True)]
    assert len(rows) > 40 and len(drawn) == PER_POSITIVE * len(rows)
    assert not set(drawn) & liked
    own = {(row["what"], row["when"] * 1_000_000): row["who"] for row in rows}
    times = [(row["what"], row["when"]) for row in rows]
    alone = {(item, when * 1_000_000) for item, when in times if times.count((item, when)) == 1}
    for item, user, time in zip(log["item"], log["user"], log["time"], strict=True):
        assert (item, time) in own
        if (item, time) in alone:
            assert own[item, time] != user_ids[user]


def test_negatives_of_a_row_depend_on_no_other_row(run: Positives, tmp_path: Path) -> None:
    whole = as_set(negatives_of(run, run.today, tmp_path / "whole.parquet"))
    parts: list[tuple[str, int, int]] = []
    for number in range(3):
        part = run.today.take(pa.array(np.arange(number, run.today.num_rows, 3)[::-1]))
        parts += as_set(negatives_of(run, part, tmp_path / f"part-{number}.parquet"))
    assert sorted(parts) == whole


def test_users_are_drawn_in_proportion_to_their_positive_rows_with_new_items(run: Positives, tmp_path: Path) -> None:
    num = 20_000
    rows = pa.table({"who": ["stranger"] * num, "what": [NEVER_SEEN] * num, "when": np.arange(num)})
    log = negatives_of(run, rows, tmp_path / "rows.parquet")
    activity = np.zeros(run.prepared.num_users)
    for split in run.prepared.manifest["splits"]:
        part = run.prepared.columns(split, ("user", "item", "label"))
        counted = (part["label"] == 1) & (part["item"] >= run.prepared.num_old_items)
        activity += np.bincount(part["user"][counted], minlength=len(activity))
    share, draws = activity / activity.sum(), PER_POSITIVE * num
    found = np.bincount(log["user"], minlength=len(activity))
    chi_squared = float(((found - share * draws) ** 2 / (share * draws)).sum())
    assert chi_squared < len(activity) + 5 * np.sqrt(2 * len(activity))


def test_cuts_repeats_and_rows_of_the_run_itself_do_not_change_the_state(
    run: Positives, runtime: Runtime, tmp_path: Path
) -> None:
    def job(folder: Path, table: pa.Table, name: str):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        return warm(folder, tmp_path / f"{name}.parquet", tmp_path / name, runtime)

    whole = job(run.folder, run.today, "whole")
    assert "positives only" in whole.text() and whole.num_drawn > 80
    first, rest = np.arange(1, 90, 2), np.concatenate([np.arange(0, 90, 2), np.arange(20)])
    job(run.folder, run.today.take(pa.array(first)), "monday")
    tuesday = job(tmp_path / "monday", run.today.take(pa.array(rest)), "tuesday")
    assert tuesday.digest == whole.digest
    again = job(tmp_path / "tuesday", run.today, "again")
    assert again.change.num_new == 0 and again.num_changed == 0 and again.digest == whole.digest
    # Positives that the run was trained on have their negatives there.
    trained = set()
    for split in ("warm_a", "warm_b", "warm_c"):
        part = run.prepared.columns(split, ("time", "label"))
        trained |= set(part["time"][part["label"] == 1].tolist())
    of_run = run.logs.filter(pa.array([time * 1_000_000 in trained for time in run.logs["when"].to_pylist()]))
    assert of_run.num_rows > 100
    known = job(run.folder, of_run, "known")
    assert known.num_drawn == 0 and known.change.num_new == 0


def test_files_whose_names_say_that_other_things_happened_are_no_positives(run: Positives, tmp_path: Path) -> None:
    for name in ("clicks.parquet", "impressions.parquet"):
        (tmp_path / "day").mkdir(exist_ok=True)
        pq.write_table(run.today, tmp_path / "day" / name)
    with start(run.config) as runtime, pytest.raises(UserError, match=r"the names of .* do.*every row is one to this"):
        warm(run.folder, tmp_path / "day", tmp_path / "out", runtime)
