"""benchmarks/ranks: both programs take their turns on every stage, and the plain one learns from all ranks' rows."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from benchmarks import ranks
from benchmarks.record import read
from mwuf_dist.config import UserError, to_toml
from tests.tiny import tiny
from tests.waiting import LONGEST_S


def test_every_stage_is_timed_on_each_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(tiny()))
    record = tmp_path / "record.json"
    sizes = ["--ranks", "1", "2", "--batch-sizes", "256", "--steps", "1", "--rounds", "2", "--output", str(record)]
    monkeypatch.setattr("sys.argv", ["ranks", str(tmp_path / "tiny.toml"), *sizes])
    ranks.main()
    rows = read(record).rows
    found = [(row.config, row.name) for row in rows]
    stages = ("pretrain", "meta_train", "warm_up")
    num_scored = found[-1][0]["batch_size"]
    batches = [*((stage, 256) for stage in stages), ("evaluate", num_scored)]
    assert num_scored != 256
    assert found == [({"ranks": ranks, "batch_size": batch}, stage) for ranks in (1, 2) for stage, batch in batches]
    assert all(row.ratio(row.alternative) for row in rows)
    assert json.loads(record.read_text())["command"].startswith("python -m benchmarks.ranks")


def test_programs_work_one_at_a_time_in_a_ring(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    for path in (tmp_path / "alive", *paths):
        os.mkfifo(path)
    order: list[int] = []

    def work(number: int) -> None:
        baton = ranks.Baton(paths[number])
        for _ in range(4):
            baton.take()
            order.append(number)
        baton.give()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with paths[0].open("r+b", buffering=0) as first, (tmp_path / "alive").open("r+b", buffering=0):
        first.write(b".")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST_S)
        assert order == [0, 1, 2] * 4
        left = ranks.Baton(paths[1])
    with pytest.raises(UserError, match="has ended"):
        left.take()


def test_data_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="take another"):
        ranks.measure(tiny(), batch_size=1 << 24, num_steps=1, rounds=1, baton=None)
