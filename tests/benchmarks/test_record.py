"""The record of a benchmark: what is written is read again, and the table says what was and what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import RESULTS, Figure, Record, Row, command_line, interleaved, is_record, read, table


def rate(value: float) -> Figure:
    return Figure.of("x", [value])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    row = Row("a", "rows/s", True, Figure.of("ours", [1, 2, 3]), rate(1), None, {"batch": 2}, {"cold": 0.7}, {"b_s": 1})
    record = Record("How?", "python -m how", {"data": "none"}, [row, Row("b", "s", False, None)], 1)
    record.write(tmp_path / "record.json")
    assert read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_something_else_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"schema": 1, "question": "?"}))
    with pytest.raises(ValueError, match="is no record of a benchmark"):
        read(tmp_path / "old.json")


def test_the_command_is_what_it_was_called_with_but_for_the_records_place() -> None:
    called = ["configs/a.toml", "--output", "x.json", "--steps", "6"]
    assert command_line("train_step", called) == "python -m benchmarks.train_step configs/a.toml --steps 6"


def test_quantiles_are_those_of_the_values() -> None:
    figure = Figure.of("ours", list(range(101)))
    assert (figure.p10, figure.p50, figure.p90, figure.runs) == (10, 50, 90, 101)
    assert Figure.of("one", [4.0]) == Figure("one", 4.0, 4.0, 4.0, 1)


def test_a_ratio_is_above_one_where_ours_is_better_whatever_the_unit() -> None:
    assert Row("rate", "rows/s", True, rate(30)).ratio(rate(10)) == 3
    assert Row("time", "s", False, rate(10)).ratio(rate(30)) == 3
    assert Row("none", "s", False, None).ratio(rate(30)) is None


def test_the_table_has_both_ratios_the_aucs_and_says_what_was_not_measured() -> None:
    aucs = dict.fromkeys(("cold", "warm-a", "warm-b", "warm-c"), 0.75)
    rows = [Row("step", "rows/s", True, rate(300), rate(100), rate(600), {"batch": 8}, aucs)]
    rows += [Row("kernel, cuda", "us", False, None, config={"batch": size}) for size in (1, 2, 3)]
    lines = table([Record("How fast?", "c", {}, rows, 1)]).splitlines()
    assert lines[1] == "How fast?" and lines[2].split() == (
        ["step", "(batch", "8)", "300", "100", "600", "rows/s", "3.00", "50%", *["0.7500"] * 4]
    )
    assert lines[3:] == [lines[3]] and lines[3].split() == ["kernel,", "cuda", "(3", "sizes)", "not", "measured"]


def test_contestants_take_turns_and_only_the_clock_given_counts() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    seconds = interleaved(steps, num_steps=2, rounds=3, clock=lambda: float(next(ticks)))
    assert calls == ["a", "a", "b", "b"] * 3 and seconds == {"a": [0.5] * 3, "b": [0.5] * 3}


def test_every_stored_result_is_of_this_schema_or_of_a_study() -> None:
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        is_study = {"dataset", "rows"} <= set(content) or {"shared", "cells"} <= set(content)  # its table, or its cells
        is_pass = {"processor", "parts"} <= set(content)  # of tools/play_processors.py
        assert is_record(content) or is_study or is_pass, path
        listed = (RESULTS / "README.md").read_text(encoding="utf-8")
        if is_record(content):
            assert read(path).rows
            assert f"| `{path.name}` | `{content['command']}` |" in listed
        if is_pass:
            assert (
                f"| `{path.name}` | `python tools/play_processors.py --record benchmarks/results/{path.name}` |"
                in listed
            )
            assert not any(part["failed"] for part in content["parts"].values())


def test_a_record_says_how_wide_the_vectors_of_its_processor_are() -> None:
    assert record._vectors(["sse2", "avx", "avx2"]) == "avx2"
    assert record._vectors(["avx512_bf16", "avx2", "avx512f"]) == "avx512f avx512_bf16"
    assert record._vectors(["fp", "asimd"]) == "asimd" and record._vectors([]) == ""
