"""benchmarks/ranks: both programs take their turns on every stage, and the plain one learns from all ranks' rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ranks
from benchmarks.record import read
from mwuf_dist.config import UserError, to_toml
from tests.tiny import tiny


def test_every_stage_is_timed_on_each_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(tiny()))
    record = tmp_path / "record.json"
    sizes = ["--ranks", "2", "--batch-sizes", "256", "--steps", "1", "--rounds", "2", "--output", str(record)]
    monkeypatch.setattr("sys.argv", ["ranks", str(tmp_path / "tiny.toml"), *sizes])
    ranks.main()
    rows = read(record).rows
    assert [row.name for row in rows] == ["pretrain", "meta_train", "warm_up"]
    assert all(row.ratio(row.alternative) and row.config == {"ranks": 2, "batch_size": 256} for row in rows)
    assert json.loads(record.read_text())["command"].startswith("python -m benchmarks.ranks")


def test_data_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="take another"):
        ranks.measure(tiny(), batch_size=1 << 24, num_steps=1, rounds=1)
