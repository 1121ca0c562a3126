"""benchmarks/large_tables: tables that are sharded over the ranks take turns with whole ones on one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import large_tables
from benchmarks.record import read


@pytest.mark.dist
def test_both_are_timed_and_the_tables_of_several_ranks_are_sharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.json"
    sizes = ["--table-rows", "200_000", "--batch-sizes", "256", "--steps", "1", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["large_tables", *sizes, "--output", str(record)])
    large_tables.main()
    (row,) = read(record).rows
    assert row.ratio(row.alternative) and row.more == {"sharding": "row_wise"}
