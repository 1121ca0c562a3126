"""`mwuf init --check`: what new files have that the logs of a config had not, and whether they can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.init_config.check import Checked, check_logs
from tests.data.log_files import NUM, csv_of, log, write

DAY = 86_400


def checked(folder: Path, new: dict[str, list[Any]], old: dict[str, list[Any]] | None = None, **keys: Any) -> Checked:
    """Of a day's file after the log of `log()`, which has a colour too."""
    colour = {"color": ["red", "blue"] * (NUM // 2)}
    write(folder, "log.csv", csv_of(old or log(**colour)))
    write(folder, "new.csv", csv_of(new))
    fields = (LogsField(name="color", side="item"),) if old is None else ()
    options = LogsConfig(**{"label": "label", "interactions": str(folder / "log.csv"), "fields": fields} | keys)
    return check_logs(options, folder / "new.csv")


def later(**columns: list[Any]) -> dict[str, list[Any]]:
    colour = {"color": ["red", "blue"] * (NUM // 2)}
    return log(timestamp=[1_600_000_000 + DAY + index for index in range(NUM)], **colour) | columns


def test_files_like_the_old_ones_have_no_fault_and_their_times_and_shares_are_told(tmp_path: Path) -> None:
    found = checked(tmp_path, later())
    assert not found.faults
    assert "users: 10 of 10 IDs are known (100.0%), which have 100.0% of the rows" in found.told
    assert "label: 33.3% of the rows were positive, 33.3% are" in found.told
    assert (
        "time: before 2020-09-13 12:26:40 to 2020-09-13 12:27:39, now 2020-09-14 12:26:40 to 2020-09-14 12:27:39"
        in found.told
    )


def test_rows_that_are_not_later_are_counted(tmp_path: Path) -> None:
    found = checked(tmp_path, later(timestamp=[1_600_000_030 + index for index in range(NUM)]))
    assert any(one.endswith("50.0% of the rows are not later than all before") for one in found.told)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (csv_of(later(), sep=";"), r"';' seems to stand between its columns: write it as the run's"),
        (csv_of({name.upper(): values for name, values in later().items()}), "did you mean 'USER_ID'"),
        (csv_of(later()).partition("\n")[2], "first line looks like data"),
    ],
)
def test_a_file_whose_names_are_not_read_is_told_why(text: str, hint: str, tmp_path: Path) -> None:
    log_path, new = write(tmp_path, "log.csv", csv_of(log())), write(tmp_path, "new.csv", text)
    found = check_logs(LogsConfig(label="label", interactions=str(log_path)), new)
    (fault,) = found.faults
    assert re.search(f"columns 'user_id', 'item_id', 'timestamp', 'label' are not in new.csv.*{hint}", fault)


def test_a_column_that_is_gone_is_a_fault_where_it_is_used_and_a_new_one_is_told(tmp_path: Path) -> None:
    new = later(device=["tv"] * NUM)
    del new["color"]
    found = checked(tmp_path, new)
    assert not found.faults  # what a daily job reads has no fields of items
    assert found.told[:2] == [
        "column 'color' is not in new.csv: `mwuf warm` does without, a run on these files does not",
        "column 'device' is new, in new.csv; it is not used",
    ]
    assert any(one.startswith("time: before") for one in found.told)
    for_rows = (LogsField(name="color", side="row"),)
    found = checked(tmp_path, new, later(), fields=for_rows)
    assert found.faults == ["column 'color' is not in new.csv"]
    assert not any("color" in one for one in found.told)  # as that a daily job did without
    del new["label"]
    assert checked(tmp_path, new).faults == ["column 'label' is not in new.csv"]


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"timestamp": [(1_600_086_400 + index) * 1000 for index in range(NUM)]}, "milliseconds"),
        ({"timestamp": ["2020-09-15"] * NUM}, "holds dates, where the data set has numbers"),
        ({"label": ["liked"] * NUM}, "neither 0 nor 1"),
        ({"item_id": [f"sku-{index}" for index in range(NUM)]}, "items: 0 of 60 IDs are known (0.0%)"),
        ({"user_id": [f"{index % 10:08d}" for index in range(NUM)]}, ""),
    ],
)
def test_what_cannot_be_read_as_before_is_a_fault(columns: dict[str, list[Any]], fault: str, tmp_path: Path) -> None:
    found = checked(tmp_path, later(**columns))
    said = " ".join(found.faults if fault else [*found.faults, *found.told])
    assert (fault or "zeros") in said


def test_new_words_of_what_happened_and_new_values_of_fields_are_told(tmp_path: Path) -> None:
    words = {"event": ["buy", "view"] * (NUM // 2)}
    keys = {"label": "", "label_from": "event", "label_is": ("buy",)}
    found = checked(tmp_path, later(event=["view", "purchase"] * (NUM // 2)), log(**words), **keys)
    assert not found.faults
    assert "label: event has values that were not there before: 1 of 2, like 'purchase'" in found.told
    assert "label: no row has event = 'buy', which is positive" in found.told
    found = checked(tmp_path, later(color=["red", "green"] * (NUM // 2)))
    assert "field color: values that were not there before: 1 of 2, like 'green'" in found.told


@pytest.mark.parametrize("side", ["item", "row"])
def test_a_wrong_column_is_a_fault_where_the_daily_job_reads_it_and_else_told(
    side: Literal["item", "row"], tmp_path: Path
) -> None:
    fields = (LogsField(name="price", side=side, kind="numeric"),)
    old = log(price=[index % 7 for index in range(NUM)])
    found = checked(tmp_path, later(price=["cheap"] * NUM), old, fields=fields)
    assert "field price: 'cheap' in column 'price' is no number" in (found.faults if side == "row" else found.told)
    assert bool(found.faults) == (side == "row")
    pq.write_table(pa.table(later(price=[{"of": 1}] * NUM)), tmp_path / "new.parquet")
    options = LogsConfig(interactions=str(tmp_path / "log.csv"), label="label", fields=fields)
    found = check_logs(options, tmp_path / "new.parquet")
    unread = "column 'price' has type struct<of: int64>, which is not read"
    assert unread in (found.faults if side == "row" else found.told) and bool(found.faults) == (side == "row")


def test_new_files_beside_the_old_ones_are_compared_with_the_others(tmp_path: Path) -> None:
    write(tmp_path, "logs/1.csv", csv_of(log()))
    new = write(tmp_path, "logs/2.csv", csv_of({**later(), "user_id": [50 + index % 10 for index in range(NUM)]}))
    options = LogsConfig(interactions=str(tmp_path / "logs"), label="label")
    assert any("users: 0 of 10 IDs are known" in one for one in check_logs(options, new).faults)
    with pytest.raises(UserError, match="name the new files"):
        check_logs(options, tmp_path / "logs")
