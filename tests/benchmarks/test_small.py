"""Every benchmark that prints a figure of the documentation runs to its end, on a small number of rows."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "arguments", "keys"),  # keys: figures, all of them above zero
    [
        (
            "export",
            ["--items", "3000", "--formats", "npy"],
            {"items_per_s", "peak_bytes"},
        ),
        ("warm", ["--clicks", "3000"], {"clicks", "items", "seconds", "cpu_s"}),
        ("follow", ["--table", "4000"], {"births_and_deaths", "survivors", "seconds"}),
        ("loader", ["--rows", "50000", "--rounds", "1"], {"rows_per_s"}),
    ],
)
def test_it_measures_what_it_says_and_writes_it(
    name: str,
    arguments: list[str],
    keys: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [name, *arguments, "--output", str(tmp_path / "figures.json")])
    importlib.import_module(f"benchmarks.{name}").main()
    found = record.read(tmp_path / "figures.json")
    assert found.rows and all(row.ours is not None and row.ours.p50 > 0 for row in found.rows)
    assert all(row.more[key] > 0 for row in found.rows for key in keys)
    assert found.command.startswith(f"python -m benchmarks.{name} ") and found.question in capsys.readouterr().out
