"""Own logs with a mistake in them: each is the user's error, and names its place and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError, build
from mwuf_dist.data.sources import logs
from tests.data.log_files import CLICKS, item_field, read, rows, write


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        read(path, **options)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", CLICKS)
    refused(path, "log.csv", "'user'", "did you mean 'user_id'?", user="user")
    refused(path, "log.csv", "'colour'", fields=item_field("colour"))


def test_a_column_that_a_later_file_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "log/1.csv", CLICKS)
    write(tmp_path, "log/2.csv", CLICKS.replace("clicked", "click"))
    refused(tmp_path / "log", "2.csv", "'clicked'", "did you mean 'click'?")


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_label_that_is_neither_0_nor_1_names_file_and_line(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"log.{ending}", CLICKS + "\nu4,b,7,3\n")
    refused(path, f"log.{ending}:7: clicked is '3', neither 0 nor 1", "label_at_least")


def test_mistakes_in_parquet_name_the_row(tmp_path: Path) -> None:
    columns = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3], "clicked": [0, 1, 2]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    refused(tmp_path / "log.parquet", "row 2 (counted from 0): clicked is 2")


def test_times_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", CLICKS + "u4,b,yesterday,1\n")
    refused(path, "log.csv:6: timestamp is 'yesterday'", "time_format")
    path = write(tmp_path, "log.csv", "user_id,item_id,timestamp,clicked\nu,a,01/02/2020,1\nu,b,2020-02-02,0\n")
    refused(path, "log.csv:3: timestamp is '2020-02-02'", "%d/%m/%Y", time_format="%d/%m/%Y")


@pytest.mark.parametrize("line", [",a,1,1", "u,,1,1", "u,a,,1", "u,a,1,"])
def test_missing_values_are_refused_or_left_out(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", f"{CLICKS}{line}\n")
    refused(path, "log.csv:6", "is missing (1 of 5 rows)", "drop_incomplete")
    assert len(rows(read(path, drop_incomplete=True))) == 4


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "user_id,item_id,timestamp,clicked\nu,a,1,1\nv,b,2,1\n")
    refused(path, "every label", "negatives_per_positive")


def test_a_label_value_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", CLICKS.replace("clicked", "act").replace(",1\n", ",buy\n"))
    refused(path, "'bye'", "did you mean 'buy'?", label_from="act", label_is=("bye",))


def test_lines_of_another_length_are_refused(tmp_path: Path) -> None:
    refused(write(tmp_path, "log.csv", CLICKS + "u4,b,7\n"), "log.csv:6: expected 4 columns, found 3", "'u4,b,7'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("user_id,item_id,timestamp,clicked\n", "no rows"),
        ("user_id,item_id,user_id,clicked\nu,a,1,1\n", "two columns are named 'user_id'"),
    ],
)
def test_files_with_nothing_in_them_are_refused(text: str, words: str, tmp_path: Path) -> None:
    refused(write(tmp_path, "log.csv", text), "log.csv", words)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.csv", "absent.csv", "name a file")
    refused(write(tmp_path, "empty/readme.md", "x").parent, "no file that is read (there are: readme.md, a document)")
    refused(write(tmp_path, "log.parquet", CLICKS), "log.parquet", "complete Parquet file")
    made = pa.BufferOutputStream()
    pq.write_table(pa.table({"user_id": [1], "mmmmmm": [2]}), made)
    (tmp_path / "log.parquet").write_bytes(made.getvalue().to_pybytes().replace(b"mmmmmm", b"\xb4mmmmm"))
    refused(tmp_path / "log.parquet", "log.parquet", "complete Parquet file")
    path = write(tmp_path, "log.csv.gz", CLICKS)
    path.write_bytes(path.read_bytes()[:30])
    refused(path, "log.csv.gz")
    refused(write(tmp_path, "log.csv", CLICKS + "Zoë,a,1,1\n", "latin-1"), "log.csv", "encoding")


def test_a_number_that_is_none_names_its_line(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked,price\nu,a,1,0,3\nu,b,1,1,cheap\n"
    path = write(tmp_path, "log.csv", text)
    refused(path, "log.csv:3: price 'cheap' is no number", fields=item_field("price", kind="numeric"))


def test_a_side_table_of_something_else_is_refused(tmp_path: Path) -> None:
    items = write(tmp_path, "items.csv", "item_id,shop\n1,s\n")
    words = ("items.csv", "none of its 1 items is in the interactions", "'a'", "'1'")
    refused(write(tmp_path, "log.csv", CLICKS), *words, items=str(items), fields=item_field("shop"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interactions": ""}, "mwuf init"),
        ({"label": ""}, "found none of them"),
        ({"label": "a", "label_from": "b"}, "found label and label_from"),
        ({"item": "user_id"}, "name two"),
        ({"fields": [{"name": "clicked", "side": "item"}]}, "is the label"),
        ({"fields": [{"name": "x", "column": "timestamp", "side": "item"}]}, "is the time"),
        ({"fields": [{"name": "item_id", "side": "item"}]}, "is an ID"),
        ({"fields": [{"name": "raw_id", "side": "item"}]}, "is reserved"),
        ({"fields": [{"name": "x", "side": "item"}, {"name": "x", "side": "user"}]}, "fields.1.name"),
        ({"fields": [{"name": "x", "sides": "item"}]}, "did you mean `data.logs.fields.0.side`"),
        ({"fields": [{"name": "x", "side": "items"}]}, "data.logs.fields.0.side"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="data.logs") as error:
        logs.check_options(build({"data": {"logs": {"interactions": "x", "label": "clicked"} | options}}).data.logs)
    assert words in str(error.value)


def test_columns_of_a_type_that_their_use_cannot_have_are_refused(tmp_path: Path) -> None:
    path, times = tmp_path / "log.parquet", pa.array([1, 2, 3], pa.timestamp("s"))
    columns: dict[str, Any] = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]}
    pq.write_table(pa.table(columns | {"clicked": pa.nulls(3)}), path)
    refused(path, "row 0 (counted from 0): clicked is missing (3 of 3 rows)")
    pq.write_table(pa.table(columns | {"clicked": times}), path)
    refused(path, "clicked is datetime.datetime", "no number", label="", label_from="clicked", label_at_least=1)
    columns |= {"clicked": [0, 1, 1], "since": times, "worth": [[1], [2], [3]]}
    pq.write_table(pa.table(columns), path)
    number = item_field("since", kind="numeric")
    refused(path, "since is a time, and field 'since' is numeric", fields=number)
    refused(path, "column 'worth' is a list, which is no weight", weight="worth")
