"""`make bench`: one table of all records; what did not come to its end is shown as not measured."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from benchmarks import bench, plots
from benchmarks.record import RESULTS, Figure, Record, Row


def test_every_job_is_a_benchmark_of_the_folder_whose_options_exist() -> None:
    for arguments in bench.jobs("configs/demo.toml").values():
        source = (RESULTS.parent / f"{arguments[0]}.py").read_text(encoding="utf-8")
        strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        assert {one for one in arguments if one.startswith("--") and "." not in one} <= strings | {"--output"}


def test_a_job_that_fails_or_has_no_time_left_is_not_measured(tmp_path: Path) -> None:
    failed = bench.run("none", ["bench", "--no-such-option"], tmp_path, 240.0)
    assert failed.rows[0].ours is None and "it ended with 2" in failed.rows[0].name
    assert "no-such-option" in (tmp_path / "none.log").read_text()
    late = bench.run("plan", ["plan"], tmp_path, 0.0)
    assert late.rows[0].ours is None and late.rows[0].name == "plan: no time left"


def test_the_table_holds_all_records_and_a_failure_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Record("Loader", "c", {}, [Row("memory", "rows/s", True, Figure.of("ours", [2.0]))], 1)
    bad = Record("Export", "c", {}, [Row("export: out of time", "", True, None)], 1)
    monkeypatch.setattr(bench, "run", lambda name, *_: good if name == "loader" else bad)
    monkeypatch.setattr(sys, "argv", ["bench", "--folder", str(tmp_path), "--only", "loader"])
    assert bench.main() == 0
    monkeypatch.setattr(sys, "argv", ["bench", "--folder", str(tmp_path), "--only", "loader", "export"])
    assert bench.main() == 1
    shown = capsys.readouterr().out
    assert "memory" in shown and "export: out of time" in shown and "not measured" in shown


def test_plots_are_drawn_of_records_alone(tmp_path: Path) -> None:
    growth = {"tables grow, zipf": {"slope": 0.1}}
    more = {"peak_bytes": 3e9, "table_bytes": 2e9}
    rows = [
        Row("tables grow, zipf", "samples/s", True, Figure.of("ours", [9.0, 8.0, 7.0]), Figure.of("plain", [4.0]),
            config={"rows_per_table": size}, more=more)
        for size in (10, 1000)
    ]  # fmt: skip
    Record("Growth", "c", {"growth": growth, "batch_size": 8}, rows, 1).write(tmp_path / "growth.json")
    (tmp_path / "other.json").write_text("{}")
    made = plots.draw(sorted(tmp_path.glob("*.json")), tmp_path / "plots")
    assert [path.name for path in made] == ["ratios.png", "growth.png"]
    assert all(path.stat().st_size > 5000 for path in made)
