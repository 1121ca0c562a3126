"""Following takes what a job takes besides interactions: fields of items, items that leave, and alarms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.runtime import start
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.reader import read_delta
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm import side_tables
from mwuf_dist.serving.warm.follow import Batch, follow
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.retire import Retiring
from mwuf_dist.serving.warm.side_tables import SideTables
from mwuf_dist.serving.warm.sources import FolderSource
from mwuf_dist.serving.writers import writer_of

NEW = (10**6, 10**6 + 1)


def clicks(users: list[int], items: list[int], first_time: int, num: int = 60, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    rows = {"user_id": random.choice(users, num), "item_id": random.choice(items, num)}
    return pa.table(rows | {"label": random.integers(2, size=num), "timestamp": first_time + np.arange(num)})


def test_fields_and_retired_items_come_as_by_jobs_and_late_clicks_on_the_retired_are_left_out(
    run_folder: Path, tmp_path: Path
) -> None:
    folder, live = tmp_path / "in", tmp_path / "live"
    folder.mkdir()
    seen: list[Batch] = []
    beside = SideTables(tmp_path / "items.parquet", tmp_path / "leaving.csv")
    with start(read_run(run_folder)[0]) as runtime:
        run = load_run(run_folder, runtime)
        users, ids = run.user_ids.to_pylist(), run.item_ids.to_pylist()
        gone = [ids[-1], NEW[0]]  # one of the run's, and one that it has never seen
        first = clicks(users, [*ids[-3:], *NEW], 2 * 10**9)
        later = clicks(users, [ids[-2], *NEW], 2 * 10**9 + 100, seed=1)
        # On both that have left: one click of before that comes late, and for one of them clicks of a new life.
        late = first.slice(0, 1).set_column(1, "item_id", pa.array([gone[0]]))
        late = pa.concat_tables([late, clicks(users, [gone[1]], 2 * 10**9 + 500, num=5, seed=2)])
        fields = run.prepared.entity("item")
        table = {name: [int(column.values[0])] * 2 for name, column in fields.columns.items() if column.offsets is None}
        table |= {name: [[1]] * 2 for name, column in fields.columns.items() if column.offsets is not None}
        pq.write_table(pa.table({"item_id": [NEW[1], 10**6 + 7]} | table), tmp_path / "fields.parquet")

        def followed() -> None:
            given = run_folder, FolderSource(folder), live, runtime
            follow(*given, until_idle=True, told=seen.append, beside=beside)

        pq.write_table(first, folder / "0.parquet")
        followed()
        (tmp_path / "fields.parquet").rename(tmp_path / "items.parquet")
        followed()
        pq.write_table(later, folder / "1.parquet")
        (tmp_path / "leaving.csv").write_text("item_id\n" + "".join(f"{one}\n" for one in [*gone, 5 * 10**6]))
        followed()
        pq.write_table(late, folder / "2.parquet")
        followed()
        assert [batch.number for batch in seen] == [1, 2, 3, 4]
        unknown = "note: 2 of 2 items never seen before have no row in the table of items: their fields are unknown"
        assert [unknown in batch.notes for batch in seen] == [True, False, False, False]
        assert seen[1].num_files == 0 and seen[1].num_changed == 2
        assert "note: 2 items retired" in seen[2].notes
        assert "note: 1 interactions are of items that had been retired by then, and are left out" in seen[3].text()
        followed()
        assert len(seen) == 4, "a table that has not changed is not read again"

        for name, rows in (("first", first), ("later", later), ("late", late)):
            pq.write_table(rows, tmp_path / f"{name}.parquet")
        jobs = [tmp_path / f"job{number}" for number in range(4)]
        retiring = Retiring(tmp_path / "leaving.csv")
        warm(run_folder, tmp_path / "first.parquet", jobs[0], runtime)
        warm(jobs[0], None, jobs[1], runtime, items=tmp_path / "items.parquet")
        warm(jobs[1], tmp_path / "later.parquet", jobs[2], runtime, retiring=retiring)
        warm(jobs[2], tmp_path / "late.parquet", jobs[3], runtime)
        for name in ("items.parquet", "log.parquet", "rows.parquet", "retired.parquet"):
            assert (live / "warm" / name).read_bytes() == (jobs[3] / "warm" / name).read_bytes(), name
        after = [read_delta(path).header["after"] for path in deltas.delta_files([live])]
        assert after == [read_delta(path).header["after"] for path in deltas.delta_files(jobs)]
        served = export(run, "parquet", tmp_path / "export", context=True)
        apply(served, [live])
        expected = export(load_run(jobs[3], runtime), "parquet", tmp_path / "expected", context=True)
    ours, theirs = (sorted(writer_of("parquet").read(path, "item")[0]) for path in (served, expected))
    assert ours == theirs and gone[0] not in ours and gone[1] in ours


def test_a_table_that_cannot_be_read_is_refused_and_taken_once_it_is_mended(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = tmp_path / "leaving.csv"
    table.write_text("other\n1\n")
    seen: list[Batch] = []
    with start(read_run(run_folder)[0]) as runtime:
        item = load_run(run_folder, runtime).new_item_ids[0]
        given = run_folder, FolderSource(tmp_path / "in"), tmp_path / "live", runtime
        for content in ("", f"item_id\n{item}\n"):
            table.write_text(content or table.read_text())
            follow(*given, until_idle=True, told=seen.append, beside=SideTables(retire=table))
    assert list(seen[0].refused) == ["--retire"] and "REFUSED --retire" in seen[0].text()
    assert "note: 1 items retired" in seen[1].notes and not seen[1].refused


def test_kinds_of_rows_are_watched_over_windows_that_outlive_the_process(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_tables, "_WINDOW_ROWS", 100)
    folder = tmp_path / "in"
    folder.mkdir()
    seen: list[Batch] = []
    with start(read_run(run_folder)[0]) as runtime:
        run = load_run(run_folder, runtime)
        users, items = run.user_ids.to_pylist(), run.new_item_ids[-5:]
        strangers = [10**7 + number for number in range(50)]
        for number, who in enumerate((users, users, strangers, strangers)):  # 60 rows each: two make a window
            pq.write_table(clicks(who, items, 2 * 10**9 + 100 * number, seed=number), folder / f"{number}.parquet")
            given = run_folder, FolderSource(folder), tmp_path / "live", runtime
            follow(*given, until_idle=True, told=seen.append)
    assert [[note for note in batch.notes if "ALARM" in note] for batch in seen[:3]] == [[], [], []]
    assert seen[3].notes == ("ALARM: 100% of the rows are of users never seen, 0% on the days before",)
    header = read_delta(deltas.delta_files([tmp_path / "live"])[-1]).header
    assert [day["of users never seen"] for day in header["days"]] == [0.0, 1.0]
