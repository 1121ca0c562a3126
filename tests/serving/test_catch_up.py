"""`mwuf export --catch-up`: the first export has learned from all of the run's own data."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.launch import local
from mwuf_dist.serving.finished_run import open_run
from tests.serving.own_logs import config_for, make_logs, write


def mwuf(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    return int(end.value.code or 0)


def test_the_export_has_the_items_under_3k_and_the_rows_beyond_of_own_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {
        "user_id": [1, 2, 3, 4, 5],
        "item_id": [940] * 3 + [941] * 2,
        "timestamp": [1_600_090_000 + n for n in range(5)],
    }
    few |= {"label": [1, 0, 1, 1, 0], "color": ["green"] * 3 + ["mauve"] * 2, "price": [3] * 5}
    logs = pa.concat_tables([make_logs(), pa.table(few)])
    write(logs, tmp_path / "log.csv")
    local.train(config_for(tmp_path), tmp_path / "run")
    assert mwuf("export", tmp_path / "run", "--output", tmp_path / "first") == 0
    said = capfd.readouterr().out
    assert "note: 90 later rows of the new items (set test) and the items with fewer than 12 rows" in said
    assert mwuf("export", tmp_path / "run", "--catch-up", tmp_path / "all", "--old-items") == 0
    said = capfd.readouterr().out
    assert "95 new interactions, 360 known already, 1,200 of old items (frozen)" in said and "note: 90" not in said
    found = {row["item_id"]: row for row in pq.read_table(tmp_path / "all" / "export" / "items.parquet").to_pylist()}
    assert {one: found[one]["interactions"] for one in (100, 900, 929, 940, 941)} == {
        100: 60, 900: 15, 929: 15, 940: 3, 941: 2
    }  # fmt: skip
    before = pq.read_table(tmp_path / "first" / "items.parquet").to_pylist()
    assert len(before) == 30 and all(row["interactions"] == 12 for row in before)
    assert all(row["embedding"] != found[row["item_id"]]["embedding"] for row in before)
    with open_run(tmp_path / "all") as run:  # with the fields that they have in the log, by the run's words
        known, unknown, green = (run.index_of(one) for one in (940, 941, 902))
        assert (run.item_context([known])[0, :8] == run.item_context([green])[0, :8]).all()
        assert (run.item_context([unknown])[0, :8] != run.item_context([green])[0, :8]).any()
    assert mwuf("export", tmp_path / "run", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "items.parquet").read_bytes() == (tmp_path / "first" / "items.parquet").read_bytes()


def test_other_data_bring_their_test_set_in(run_folder: Path, tmp_path: Path) -> None:
    assert mwuf("export", run_folder, "--catch-up", tmp_path / "all", "--format", "npy") == 0
    with open_run(tmp_path / "all") as run:
        new = run.num_interactions[run.num_old_items :]
        assert new.sum() == 24 * len(new) + run.prepared.num_rows("test") and run.state is not None
        assert len(run.state.ids) == 0, "items that prepare drops are not in prepared data"
