"""A day whose files write IDs and times in another way than the run's logs is the same day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.alarms import alarms
from mwuf_dist.serving.warm.job import WarmReport, warm
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


def test_one_absurd_time_does_not_change_the_unit_of_its_file(
    folder: Path, plain: WarmReport, runtime: Runtime, tmp_path: Path
) -> None:
    day = a_day()
    times = day["timestamp"].to_numpy().copy()
    times[7] = 99_999_999_999_999
    path = write(day.set_column(2, "timestamp", pa.array(times)), tmp_path / "day.csv")
    with pytest.raises(UserError, match="99999999999999"):
        warm(folder / "tue", path, tmp_path / "wed", runtime)


def test_a_day_of_users_whom_nobody_knows_sounds_an_alarm(folder: Path, runtime: Runtime, tmp_path: Path) -> None:
    day = a_day()
    strangers = day.set_column(0, "user_id", pa.array(np.arange(day.num_rows) + 10**6))
    found = warm(folder / "run", write(strangers, tmp_path / "day.csv"), tmp_path / "tue", runtime)
    assert "ALARM: 100% of the rows are of users never seen" in found.text()


def test_a_fraction_like_that_of_the_days_before_sounds_none() -> None:
    days = [{"of old items": 0.2}, {"of old items": 0.3}]
    assert alarms({"of old items": 0.4}, days) == []
    assert alarms({"of old items": 0.9}, days) == ["ALARM: 90% of the rows are of old items, 25% on the days before"]
