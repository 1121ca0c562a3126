"""Every benchmark that prints a figure of the documentation runs to its end, on a small number of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "arguments", "out", "keys"),  # keys: figures, all of them above zero
    [
        (
            "export",
            ["--items", "3000", "--formats", "npy"],
            "--output",
            {"items_per_s", "items_per_cpu_s", "peak_bytes"},
        ),
        ("warm", ["--clicks", "3000"], "--output", {"clicks", "items", "seconds", "cpu_s"}),
        ("loader", ["--rows", "50000", "--rounds", "1"], "--json", {"rows_per_s", "rows_per_cpu_s"}),
    ],
)
def test_it_measures_what_it_says_and_writes_it(
    name: str, arguments: list[str], out: str, keys: set[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, out, str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text())
    records = found if isinstance(found, list) else found.get("records", [found])
    assert records and all(record[key] > 0 for record in records for key in keys)
