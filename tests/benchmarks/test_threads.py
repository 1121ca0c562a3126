"""benchmarks/threads: every stage at every size on one and two threads, and the model that is fitted to them."""

from __future__ import annotations

import os

import pytest

from benchmarks import threads
from benchmarks.processes import descendants, processes, title_of
from benchmarks.train_step import STAGES
from tests.tiny import tiny


def test_every_stage_is_timed_on_one_and_two_threads_and_has_an_estimate() -> None:
    config = tiny(backbone={"batch_norm": False}, method={"name": "mwuf"})
    rows = threads.measure(config, [128], [1, 2], num_steps=1, rounds=2)
    assert [row.name for row in rows] == [f"{stage}, batch 128" for stage in STAGES]
    for row in rows:
        assert set(row.more["samples_per_s_by_threads"]) == {1, 2} and row.more["bytes_per_step"] > 0
        assert set(row.more["estimated_samples_per_s_by_cores"]) == set(threads.CORES)


def test_what_the_machine_allows_stands_beside_it_and_programs_that_keep_it_busy_end() -> None:
    with threads._busy(1):
        (other,) = [one for one in descendants({os.getpid()}) if "while True" in title_of(one)]
        rows = threads._allowed(1)
    assert other not in processes()
    assert [row.name for row in rows] == ["products of matrices", *(f"copies of {size} MB" for size in (4, 16, 64))]
    assert all(figure is not None and figure.p50 > 1e6 for row in rows for figure in (row.ours, row.alternative))


def test_the_model_gives_back_its_two_rates_and_is_bounded_by_the_serial_part_the_bytes_and_the_largest_task() -> None:
    # 10 ms on one core, of which 1 ms is serial: 5.5 ms on two.
    found = threads.scaling(14_400, {1: 1_440_000, 2: 14_400 / 0.0055}, 1e6, 1e12)
    assert found["serial_s"] == pytest.approx(0.001) and found["shared_s"] == pytest.approx(0.009)
    rates = found["estimated_samples_per_s_by_cores"]
    assert rates[1] == pytest.approx(1_440_000) and rates[2] == pytest.approx(14_400 / 0.0055)
    assert rates[64] == pytest.approx(14_400 / (0.001 + 0.009 / 64))
    few = threads.scaling(288, {1: 288 / 0.01, 2: 288 / 0.0055}, 1e6, 1e12)["estimated_samples_per_s_by_cores"]
    assert few[64] == few[2]  # two tasks in all
    slow = threads.scaling(14_400, {1: 1_440_000, 2: 14_400 / 0.0055}, 4e6, 1e9)["estimated_samples_per_s_by_cores"]
    assert slow[64] == pytest.approx(14_400 / 0.005)
