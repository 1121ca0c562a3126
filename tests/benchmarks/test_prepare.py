"""benchmarks/prepare measures the commands that it names, on the rows that it says."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from benchmarks.prepare import measure, measure_data_set


def test_a_record_has_the_rows_the_split_and_the_cost_of_both_commands(tmp_path: Path) -> None:
    row = measure_data_set("taobao-ad", 20_000, tmp_path, ["--data.old-above", "60", "--data.warm-rows", "8"])
    record = row.more
    assert row.name == "taobao-ad (synthesized)" and row.config == {"rows": 20_000}
    assert row.ours is not None and row.ours.p50 == pytest.approx(20_000 / record["prepare"]["cpu_s"])
    assert 0 < record["split"]["pretrain"] < 20_000 and record["split"]["old_items"] > 0
    assert record["raw_bytes"] > 20 * 20_000
    for command in ("synthesize", "prepare"):
        assert record[command]["cpu_s"] > 0 and record[command]["wall_s"] > 0
        # Until it has become the command, a child counts as as large as this process has been.
        ours = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert 20e6 < record[command]["peak_bytes"] < max(1e9, 1.01 * ours)


def test_a_command_that_fails_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="mwuf prepare none.toml: ended with 2"):
        measure(["prepare", "none.toml"], {})
