"""benchmarks/growth: steps spread over an epoch, IDs as frequent as it says, slopes of what it measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth import _draw, make_data, summary, time_steps
from benchmarks.record import Figure, Row


def test_a_size_has_its_steps_and_its_tables(tmp_path: Path) -> None:
    make_data(tmp_path, table_size=500, num_rows=10_000, ids="zipf")
    found = time_steps(tmp_path, turns=1)
    assert len(found["step_us"]) == 1 and found["step_us"][0] > 0
    # Users and their unknown one, old and new items, 1,000 categories: 16 cells and a state each.
    assert found["table_bytes"] == (501 + 500 + 500 + 1_000) * (16 + 1) * 4
    assert found["peak_bytes"] > found["table_bytes"]


def test_zipf_ids_fall_as_one_over_the_rank_and_all_ids_are_in_the_table() -> None:
    drawn = _draw(np.random.default_rng(0), 1000, 200_000, "zipf")
    counts = np.sort(np.bincount(drawn, minlength=1000))[::-1]
    assert len(counts) == 1000
    # Counts of some 2,670 and 267: their quotient has a standard error of 6 %.
    assert counts[9] / counts[99] == pytest.approx(10, rel=3 * (1 / 2670 + 1 / 267) ** 0.5)


def test_a_time_that_doubles_with_every_tenfold_has_the_slope_of_log_two() -> None:
    rows = [
        Row("tables grow, zipf", "samples/s", True, Figure.of("ours", [rate]), config={"rows_per_table": size},
            more={"peak_bytes": 5e6, "table_bytes": 1e6})
        for size, rate in ((10, 400.0), (100, 200.0), (1000, 100.0))
    ]  # fmt: skip
    found = summary(rows)["tables grow, zipf"]
    assert found["slope"] == pytest.approx(0.301, abs=1e-3) and found["times_as_long"] == 4.0
    assert found["peak_above_tables_mb"] == [4, 4, 4]
