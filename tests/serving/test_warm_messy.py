"""A day whose files write IDs and times in another way than the run's logs is the same day."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm import follow as follow_module
from mwuf_dist.serving.warm.alarms import alarms
from mwuf_dist.serving.warm.follow import Batch, follow
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.serving.warm.sources import FolderSource
from tests.serving.own_logs import a_day, config_for, make_logs, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("messy")
    write(make_logs(), folder / "log.csv")
    local.train(config_for(folder), folder / "run")
    return folder


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[Runtime]:
    with start(read_run(folder / "run")[0]) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def plain(folder: Path, runtime: Runtime) -> WarmReport:
    return warm(folder / "run", write(a_day(), folder / "day.csv"), folder / "tue", runtime)


def with_text(name: str, form: str) -> pa.Table:
    day = a_day()
    place = day.column_names.index(name)
    return day.set_column(place, name, pa.array([form.format(one) for one in day[name].to_pylist()]))


@pytest.mark.parametrize(("name", "form"), [("user_id", "{}.0"), ("item_id", "{:05d}"), ("item_id", "{}.0")])
def test_ids_written_in_another_way_are_the_same_interactions(
    name: str, form: str, folder: Path, plain: WarmReport, runtime: Runtime, tmp_path: Path
) -> None:
    found = warm(folder / "run", write(with_text(name, form), tmp_path / "day.csv"), tmp_path / "tue", runtime)
    assert found.digest == plain.digest and found.num_read == 60
    again = warm(folder / "tue", tmp_path / "day.csv", tmp_path / "wed", runtime)
    assert again.change.num_new == 0 and again.digest == plain.digest


@pytest.mark.parametrize("first", [1000, 10**18])
def test_new_users_written_in_another_way_get_the_same_rows(
    first: int, folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    made = {}
    for form in ("{}", "{}.0", "00{}", " {} "):
        users = [form.format(first + row % 5) for row in range(60)]
        day = a_day().set_column(0, "user_id", pa.array(users))
        output = tmp_path / form
        warm(folder / "run", write(day, tmp_path / f"{form}.csv"), output, runtime, users=True)
        made[form] = (output / "warm/users.parquet").read_bytes()
        found = pq.read_table(output / "warm/users.parquet").column(0)
        assert found.to_pylist() == [first + row for row in range(5)]
    assert len(set(made.values())) == 1


def test_one_absurd_time_does_not_change_the_unit_of_its_file(
    folder: Path, plain: WarmReport, runtime: Runtime, tmp_path: Path
) -> None:
    day = a_day()
    times = day["timestamp"].to_numpy().copy()
    times[7] = 99_999_999_999_999
    path = write(day.set_column(2, "timestamp", pa.array(times)), tmp_path / "day.csv")
    with pytest.raises(UserError, match="99999999999999"):
        warm(folder / "tue", path, tmp_path / "wed", runtime)


def day(seed: int, **columns: Callable[[int, int], object]) -> pa.Table:
    """A day whose columns are changed, value by value, with the number of its row."""
    made = a_day(seed)
    for name, change in columns.items():
        values = [str(change(value, row)) for row, value in enumerate(made[name].to_pylist())]
        made = made.set_column(made.column_names.index(name), name, pa.array(values))
    return made


def write_refused(there: Path, last: str) -> dict[str, str]:
    """Writes a file of each kind that is refused; returns why, by their names."""
    write(day(1, timestamp=lambda one, row: one * 1000), there / "ms.csv")
    write(day(2, timestamp=lambda one, row: one * 1000 if row % 2 else one), there / "mixed.csv")
    write(day(3, item_id=lambda one, row: "sku-9" if row == 5 else one), there / "item.csv")
    write(day(4, label=lambda one, row: "maybe" if row == 5 else one), there / "label.csv")
    write(day(5, item_id=lambda one, row: "" if row == 3 else one), there / "gap.csv")
    lists = a_day(6).set_column(0, "user_id", pa.array([[one] for one in a_day(6)["user_id"].to_pylist()]))
    pq.write_table(lists, there / "list.parquet")
    (there / "cut.parquet").write_bytes((there / "list.parquet").read_bytes()[:-40])
    (there / "cut.csv.gz").write_bytes(gzip.compress(last.encode())[:-20])
    (there / "cut.csv").write_text(last[:-4])
    (there / "semicolons.csv").write_text(last.replace(",", ";"))
    (there / "names.csv").write_text(last.split("\n")[0] + "\n")
    (there / "empty.csv").touch()
    first, *lines = last.splitlines(keepends=True)
    other = first.replace("user_id", "x").replace("item_id", "user_id").replace("x", "item_id")
    (there / "order.csv").write_text(last + other + "".join(lines))
    (there / "nul.csv").write_text(first + "\0" * 40 + "".join(lines))
    (there / "lines.csv").write_text('{"user_id": 3, "item_id": 900}\n')
    return {
        "ms.csv": "are milliseconds, but the data set has seconds",
        "mixed.csv": "its other times are in seconds",
        "item.csv": "item_id is 'sku-9', and all items of the run have whole numbers",
        "label.csv": "label is 'maybe', neither 0 nor 1",
        "gap.csv": "item_id is missing (1 of 60 rows)",
        "list.parquet": "column 'user_id' is a list",
        "cut.parquet": "is it a complete Parquet file?",
        "cut.csv.gz": "cut short",
        "cut.csv": "61: expected 4 columns, found 3",
        "semicolons.csv": "is ';' what stands between two columns?",
        "names.csv": "no rows of interactions",
        "empty.csv": "is empty",
        "order.csv": "order.csv:62: a line of names in another order",
        "nul.csv": "nul.csv:2: user_id holds a NUL",
        "lines.csv": "JSON, which is not read",
    }


def test_a_follower_takes_what_a_job_would_and_refuses_the_rest_by_name(
    folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    there, good = tmp_path / "clicks", tmp_path / "good"
    there.mkdir()
    good.mkdir()
    taken = {
        "forms": day(11, user_id=lambda one, row: f"{one}.0", item_id=lambda one, row: f"{one:06d}"),
        "future": day(12, timestamp=lambda one, row: one + 10**9 * (row == 3)),
        "words": day(13, user_id=lambda one, row: "bob smith" if row == 3 else one + 10**18 * (row == 4)),
    }
    for name, table in taken.items():
        write(table, there / f"{name}.csv")
        write(table, good / f"{name}.csv")
    last = write(a_day(14), good / "last.csv").read_text()
    (there / "last.csv").write_bytes(last.encode("utf-16"))
    refused = write_refused(there, last)
    said: list[Batch] = []
    follow(folder / "run", FolderSource(there), tmp_path / "live", runtime, until_idle=True, told=said.append)
    assert {name: why for name, why in said[0].refused.items() if refused.get(name, "?") not in why} == {}
    assert len(said[0].refused) == len(refused) and said[0].num_files == 4 + len(refused)
    assert any("in the future, up to 2052-05-23, in future.csv" in note for note in said[0].notes)
    warm(folder / "run", good, tmp_path / "job", runtime)
    for name in ("log.parquet", "rows.parquet"):
        assert (tmp_path / "live/warm" / name).read_bytes() == (tmp_path / "job/warm" / name).read_bytes()
    # Once it is mended a file that was refused is taken.
    (there / "names.csv").write_text(last)
    (there / "cut.csv").write_text(last + "1,950,1600100900,1\n")
    follow(folder / "run", FolderSource(there), tmp_path / "live", runtime, until_idle=True, told=said.append)
    assert [batch.num_new for batch in said[1:]] == [1] and not said[1].refused


def test_a_file_that_goes_away_while_it_is_read_is_refused_and_the_others_are_taken(
    folder: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "clicks"
    there.mkdir()
    write(a_day(11), there / "good.csv")
    write(a_day(12), there / "goes.csv")
    (there / "wrong.csv").write_text("a,b\n1,2\n")  # so that the others are read without it first, and then once more
    read = follow_module.read_files

    def read_and_remove(files: tuple[Path, ...], *rest: Any) -> Any:
        found = read(files, *rest)
        if any(one.name == "goes.csv" for one in files):
            (there / "goes.csv").unlink()
        return found

    monkeypatch.setattr(follow_module, "read_files", read_and_remove)
    said: list[Batch] = []
    follow(folder / "run", FolderSource(there), tmp_path / "live", runtime, until_idle=True, told=said.append)
    assert said[0].refused.keys() == {"goes.csv", "wrong.csv"} and said[0].num_changed > 0


def test_a_day_of_users_whom_nobody_knows_sounds_an_alarm(folder: Path, runtime: Runtime, tmp_path: Path) -> None:
    day = a_day()
    strangers = day.set_column(0, "user_id", pa.array(np.arange(day.num_rows) + 10**6))
    found = warm(folder / "run", write(strangers, tmp_path / "day.csv"), tmp_path / "tue", runtime)
    assert "ALARM: 100% of the rows are of users never seen" in found.text()


def test_a_day_of_items_in_another_form_of_both_labels_and_of_items_without_fields_is_told(
    folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    day = a_day()
    negative = day.set_column(1, "item_id", pa.array([-one for one in day["item_id"].to_pylist()]))
    found = warm(folder / "run", write(negative, tmp_path / "day.csv"), tmp_path / "tue", runtime)
    said = found.text()
    assert (
        "ALARM: 100% of the rows are of items whose IDs are written as none of the run's, 0% in the run's own" in said
    )
    assert "note: 100% of the rows are of items that the run has not been trained on" in said
    other = day.set_column(3, "label", pa.array([1 - one for one in day["label"].to_pylist()]))
    both = write(pa.concat_tables([day, other]), tmp_path / "both.csv")
    fields = write(pa.table({"item_id": [951], "color": ["red"], "price": [3]}), tmp_path / "fields.csv")
    found = warm(folder / "run", both, tmp_path / "wed", runtime, items=fields)
    assert "60 times one user, item and time stands with label 0 and with label 1" in found.text()
    assert "1 of 2 items never seen before have no row in the table of items" in found.text()


def test_a_day_of_new_items_alone_sounds_an_alarm_only_where_the_table_of_items_has_none_of_them(
    folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    day = a_day()
    fresh = day.set_column(1, "item_id", pa.array([950 + one % 20 for one in range(day.num_rows)]))
    path = write(fresh, tmp_path / "day.csv")
    said = warm(folder / "run", path, tmp_path / "tue", runtime).text()
    assert "note: 100% of the rows are of items that the run has not been trained on" in said and "ALARM" not in said
    assert "note: 20 items never seen before have unknown fields (color, price): --items FILE gives them" in said
    fields = write(pa.table({"item_id": [2000], "color": ["red"], "price": [3]}), tmp_path / "fields.csv")
    said = warm(folder / "run", path, tmp_path / "wed", runtime, items=fields).text()
    assert "ALARM: 20 of 21 items never seen before have no row in the table of items" in said


def test_a_fraction_like_that_of_the_days_before_sounds_none() -> None:
    days = [{"of old items": 0.2}, {"of old items": 0.3}]
    assert alarms({"of old items": 0.4}, days) == []
    assert alarms({"of old items": 0.9}, days) == ["ALARM: 90% of the rows are of old items, 25% on the days before"]
