"""`mwuf export --catch-up`: the first export has learned from all of the run's own data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import build, to_dict
from mwuf_dist.launch import local
from mwuf_dist.serving.deltas import reader
from mwuf_dist.serving.deltas.files import delta_files
from mwuf_dist.serving.finished_run import open_run
from tests.serving.own_logs import a_day, config_for, make_logs, write


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
    # A side table lies in the folder of the interactions, in which the catch-up finds the log alone.
    write(logs, tmp_path / "logs" / "log.csv")
    write(pa.table({"user_id": range(1, 41), "age": range(1, 41)}), tmp_path / "logs" / "users.csv")
    of_users = {"users": str(tmp_path / "logs" / "users.csv"), "interactions": str(tmp_path / "logs")}
    config = to_dict(config_for(tmp_path, **of_users))
    config["data"]["logs"]["fields"].append({"name": "age", "side": "user", "kind": "numeric", "buckets": 3})
    local.train(build(config), tmp_path / "run")
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
    _the_next_day(tmp_path, capfd)
    assert mwuf("export", tmp_path / "run", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "items.parquet").read_bytes() == (tmp_path / "first" / "items.parquet").read_bytes()


def _the_next_day(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A delta of the day after a catch-up is number 2, and leads the export of the catch-up to that day's."""
    day = folder / "day.csv"
    pa_csv.write_csv(a_day(), day, pa_csv.WriteOptions(delimiter=";", quoting_style="none"))
    assert mwuf("warm", folder / "all", "--interactions", day, "--output", folder / "day1") == 2
    assert "is ';' what stands between two columns? Say it with data.logs.delimiter" in capfd.readouterr().err
    job = ["warm", folder / "all", "--interactions", day, "--output", folder / "day1", "--delimiter", ";"]
    assert mwuf(*job, "--context") == 0
    assert "60 rows read" in capfd.readouterr().out
    assert mwuf("export", folder / "day1", "--old-items", "--context", "--output", folder / "expected") == 0
    assert mwuf("export", folder / "all", "--old-items", "--context", "--output", folder / "served") == 0
    (delta,) = delta_files([folder / "day1"])
    assert reader.read_delta(delta).header["number"] == 2
    table = reader.ItemTable.of_export(folder / "served")
    table.apply(reader.read_delta(delta))
    assert mwuf("apply", folder / "served", folder / "day1" / "deltas") == 0
    about = [json.loads((folder / name / "export.json").read_text()) for name in ("served", "expected")]
    assert about[0]["state"] == about[1]["state"] and about[0]["num_items"] == about[1]["num_items"] == 53
    assert table.state == about[0]["state"]["hash"] and table.number == 2
    ours, theirs = ({row["item_id"]: row for row in pq.read_table(folder / name / "items.parquet").to_pylist()} for name
                    in ("served", "expected"))  # fmt: skip
    assert {**ours} == {**theirs}
    _, is_there, rows = table.rows([*theirs])
    assert is_there.all()
    np.testing.assert_array_equal(rows["embedding"], np.array([row["embedding"] for row in theirs.values()], "<f4"))
    # The catch-up is a delta too, number 1: it leads the first export there.
    assert mwuf("export", folder / "run", "--old-items", "--context", "--output", folder / "before") == 0
    assert mwuf("apply", folder / "before", folder / "all" / "deltas", folder / "day1" / "deltas") == 0
    assert json.loads((folder / "before" / "export.json").read_text())["state"] == about[0]["state"]
    capfd.readouterr()


def test_other_data_bring_their_test_set_in(run_folder: Path, tmp_path: Path) -> None:
    assert mwuf("export", run_folder, "--catch-up", tmp_path / "all", "--format", "npy") == 0
    with open_run(tmp_path / "all") as run:
        new = run.num_interactions[run.num_old_items :]
        assert new.sum() == 24 * len(new) + run.prepared.num_rows("test") and run.state is not None
        assert len(run.state.ids) == 0, "items that prepare drops are not in prepared data"
