"""Files of every form: each is read with the right values, or refused with the way out."""

from __future__ import annotations

import bz2
import datetime
import gzip
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.init_config.propose import propose
from mwuf_dist.data.readers import arrow_types, gate, log_files
from tests.data.log_files import CLICKS, NUM, csv_of, log, proposed, read, write


def test_lists_of_every_arrow_kind_are_joined(tmp_path: Path) -> None:
    tags = [["a", "b"] if index % 2 else None for index in range(NUM)]
    kinds = [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.field("element", pa.string(), False))]
    (tmp_path / "logs").mkdir()
    for place, kind in enumerate(kinds):
        pq.write_table(pa.table(log() | {"tags": pa.array(tags, kind)}), tmp_path / "logs" / f"{place}.parquet")
    pq.write_table(pa.table(log() | {"tags": pa.nulls(NUM)}), tmp_path / "logs" / "4.parquet")
    found = propose(str(tmp_path / "logs"))
    assert found.rows is not None and found.rows.table.columns["tags"].type == pa.list_(pa.string())


@pytest.mark.parametrize("name", ["user_id", "timestamp", "label", "color", "tags"])
def test_text_of_parquet_that_is_not_utf_8_is_refused_by_its_column(name: str, tmp_path: Path) -> None:
    made = pa.table(log(color=["red"] * NUM, tags=[["a", "b"]] * NUM))
    text = pa.array([b"caf\xe9" if index == 7 else b"1" for index in range(NUM)])
    bad: pa.Array = pa.Array.from_buffers(pa.string(), NUM, text.buffers())
    bad = pa.ListArray.from_arrays(pa.array(range(NUM + 1), pa.int32()), bad) if name == "tags" else bad
    pq.write_table(made.set_column(made.column_names.index(name), name, bad), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=f"log.parquet: column '{name}' cannot be read .Invalid UTF8 sequence.*UTF-8"):
        propose(str(tmp_path / "log.parquet"))


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the name of column 'item_id\\x00' holds a NUL"):
        proposed(tmp_path, csv_of(log()).replace("item_id", "item_id\0"))


def test_columns_of_odd_types_are_left_out_with_a_reason(tmp_path: Path) -> None:
    odd = {
        "a": pa.array([[{"x": 1}]] * NUM),
        "b": pa.array([[0.5, 0.25]] * NUM, pa.list_(pa.float32(), 2)),
        "c": pa.array([datetime.time(1)] * NUM),
        "d": pa.array([2**63 + k for k in range(NUM)], pa.uint64()),
    }
    pq.write_table(pa.table(log() | odd), tmp_path / "log.parquet")
    assert set(propose(str(tmp_path / "log.parquet")).left_out) >= {"a", "b", "c"}


def test_files_are_read_by_their_content_and_the_others_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "logs/1.csv", csv_of(log()))
    (tmp_path / "logs/2.csv.BZ2").write_bytes(bz2.compress(csv_of(log(user_id=[50] * NUM)).encode()))
    write(tmp_path, "logs/part-00003", csv_of(log(user_id=[51] * NUM)))
    pq.write_table(pa.table(log(user_id=[52] * NUM)), tmp_path / "logs/4.parquet.gzip")
    write(tmp_path, "elsewhere/5.csv", csv_of(log(user_id=[53] * NUM)))
    (tmp_path / "logs/more").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "logs/README.txt", "These are the logs.")
    write(tmp_path, "logs/6.jsonl", "{}")
    # Links to what is there already, to a file and to folders, one of them above.
    (tmp_path / "logs/0.csv").symlink_to(tmp_path / "logs/1.csv")
    (tmp_path / "logs/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "logs/up").symlink_to(tmp_path)
    with tarfile.open(tmp_path / "logs/7.csv.gz", "w:gz") as tar:
        tar.add(tmp_path / "logs/1.csv", "1.csv")
    (tmp_path / "logs/8.parquet.gz").write_bytes(gzip.compress((tmp_path / "logs/4.parquet.gzip").read_bytes()))
    (tmp_path / "logs/9.csv.gz").write_bytes(gzip.compress(b""))
    found = propose(str(tmp_path / "logs"))
    assert found.rows is not None and found.rows.table.num_rows == 5 * NUM
    assert not [note for note in found.rows.notes() if "repeat" in note]
    said = {one.partition(" is not read: ")[0].rpartition("/")[2]: one.partition(": ")[2] for one in found.remarks}
    assert said == {
        "0.csv": "the same file as 1.csv",
        "6.jsonl": "JSON lines, which is not read: write it as CSV or Parquet",
        "7.csv.gz": "a tar archive: unpack it",
        "8.parquet.gz": "Parquet within gzip: unpack it",
        "9.csv.gz": "empty",
        "README.txt": "a document",
    }


def test_bytes_are_text_or_digits_by_each_value_alone(tmp_path: Path) -> None:
    """So a file whose few IDs could be text and one whose IDs could not agree."""
    of_ten = [b"AAAA", b"BBB\0", b"CC\0\0", *(bytes([0, 0, 0, one]) for one in range(3, 10))]
    users = [of_ten[index % 10] for index in range(NUM)]
    for start, stop in ((0, 3), (3, NUM)):
        part = {name: values[start:stop] for name, values in log(user_id=users).items()}
        made = pa.table(part).set_column(0, "user_id", pa.array(part["user_id"], pa.binary(4)))
        pq.write_table(made, tmp_path / f"{start}.parquet")
    found = propose(str(tmp_path))
    assert found.rows is not None
    assert found.rows.user_ids.to_pylist() == [*(f"0x{k:08x}" for k in range(3, 10)), "AAAA", "BBB", "CC"]


@pytest.mark.parametrize("order", ["<u4", ">u4"])
def test_numbers_that_were_written_as_bytes_stay_apart(order: str) -> None:
    """As little-endian ones 65, 2369 and 8257 were all `A`, and 16718, `NA`, was missing."""
    numbers = np.arange(20_000, dtype=order)
    column = pa.array([one.tobytes() for one in numbers], pa.binary(4))
    found = arrow_types.simple(pa.chunked_array([column]), LogsConfig.missing)
    assert found.null_count == 0 and len(found.unique()) == len(numbers)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.binary(), [b"ff01", b"\xff\x01", b"A\0", b"A"]),
        (pa.binary(4), [b"A   ", b"   A", b"A\0\0\0", b"null", b"\0\0\0\0", b"    ", b"N/A\0", b"A\t\0\0"]),
        (pa.binary(2), [one.to_bytes(2, "little") for one in range(1 << 16)]),
    ],
)
def test_no_bytes_become_those_of_another_whichever_file_has_them(kind: pa.DataType, values: list[bytes]) -> None:
    def of(some: list[bytes]) -> list[Any]:
        return arrow_types.simple(pa.chunked_array([pa.array(some, kind)]), LogsConfig.missing).to_pylist()

    together = of(values)
    assert None not in together and len(set(together)) == len(values)
    assert [of([one])[0] for one in values[:300]] == together[:300]


def test_bytes_that_are_text_are_the_ids_that_text_has() -> None:
    column = pa.chunked_array([pa.array([b"u1", b" u1 ", b"", b"nan"], pa.binary())])
    assert arrow_types.simple(column, LogsConfig.missing).to_pylist() == ["u1", "u1", None, None]


def test_bytes_that_a_database_fills_up_with_blanks_are_text() -> None:
    values = [b"item-0 ", b"item-11", b"  x    ", b"null   ", b"       ", b"ab \0\0\0\0"]
    column = pa.chunked_array([pa.array(values, pa.binary(7))])
    digits = [f"0x{one.hex()}" for one in values[2:]]
    assert arrow_types.simple(column, LogsConfig.missing).to_pylist() == ["item-0", "item-11", *digits]


def test_the_file_whose_column_has_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        users = pa.array([{"of": 1}] * NUM) if number == 2 else pa.array([1] * NUM)
        pq.write_table(pa.table(log() | {"user_id": users}), tmp_path / f"{number}.parquet")
    for skip in (False, True):
        with pytest.raises(UserError, match=r"2.parquet: column 'user_id' has type struct"):
            gate.read_rows(log_files.find(str(tmp_path), "LOGS").files, LogsConfig(label="label"), skip_unread=skip)


def test_a_folder_is_read_under_its_own_name_and_a_linked_file_where_its_target_is_not_read(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, f"logs/archive/day=2020-09-0{day}/x.csv", CLICKS)
    (tmp_path / "logs/a-latest").symlink_to(tmp_path / "logs/archive/day=2020-09-02")
    write(tmp_path, "elsewhere/day=2020-09-03/x.csv", CLICKS)
    (tmp_path / "logs/b-latest").symlink_to(tmp_path / "elsewhere/day=2020-09-03")
    (tmp_path / "logs/c-all").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "logs/.clicks-v3.csv", CLICKS)
    (tmp_path / "logs/clicks.csv").symlink_to(tmp_path / "logs/.clicks-v3.csv")
    found = log_files.find(str(tmp_path / "logs"), "LOGS").files
    assert [str(one.relative_to(tmp_path / "logs")) for one in found] == [
        *(f"archive/day=2020-09-0{day}/x.csv" for day in (1, 2)),
        "c-all/day=2020-09-03/x.csv",
        "clicks.csv",
    ]


def test_numbers_in_names_of_files_are_in_their_order(tmp_path: Path) -> None:
    for day in (1, 2, 10):
        write(tmp_path, f"logs/log_{day}.csv", CLICKS)
    from mwuf_dist.data.readers.log_files import find_files

    assert [path.stem for path in find_files(str(tmp_path / "logs"), "LOGS")] == ["log_1", "log_2", "log_10"]


def test_an_open_quote_swallows_no_lines(tmp_path: Path) -> None:
    titles = [f'"The {index}' if index in (3, 40) else "A title" for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(title=titles), "\t"), "log.tsv")
    assert found.options.quote == "" and found.rows is not None and found.rows.table.num_rows == NUM
    with pytest.raises(UserError, match=r"log.tsv:5: a quote.*never closed.*data.logs.quote"):
        read(tmp_path / "log.tsv", label="label")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + csv_of(log()).replace("user_id,item_id", '"user_id","item_id"', 1),
        csv_of(log()).replace(",", ", "),
        "# made today\n# by hand\n" + csv_of(log()),
        csv_of(log()) + "Total,,,\n",
        csv_of(log()) + "(60 rows)\n",
        csv_of(log()).replace("3,909,1600000003,1", "3,909,1600000003,1\nuser_id,item_id,timestamp,label"),
    ],
)
def test_what_stands_around_a_table_is_no_part_of_it(text: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, text)
    assert found.rows is not None and len(found.rows.kept) == NUM
    assert found.rows.user_ids.equals(pa.array(range(10)))


def test_a_file_without_names_is_refused_and_the_option_named(tmp_path: Path) -> None:
    text = csv_of(log()).split("\n", 1)[1]
    with pytest.raises(UserError, match="--header"):
        proposed(tmp_path, text, user="0", item="900", time="1600000000")
    found = proposed(tmp_path, text, header=("user_id", "item_id", "timestamp", "label"))
    assert found.rows is not None and len(found.rows.kept) == NUM


def test_a_file_without_names_beside_one_that_has_them_is_told_so(tmp_path: Path) -> None:
    names, body = csv_of(log()).split("\n", 1)
    write(tmp_path, "logs/1.csv", f"{names}\n{body}")
    write(tmp_path, "logs/2.csv", body)
    with pytest.raises(UserError, match=r"2\.csv.*first line looks like data: write a line of names.*as 1\.csv"):
        propose(str(tmp_path / "logs"))


def test_a_list_with_a_gap_in_it_is_one_value(tmp_path: Path) -> None:
    tags = [["a", None] if one % 2 else None if one % 3 else ["b"] for one in log()["item_id"]]
    pq.write_table(
        pa.table(log() | {"tags": tags, "none": pa.array([[]] * NUM, pa.list_(pa.string()))}), tmp_path / "log.parquet"
    )
    found = propose(str(tmp_path / "log.parquet"))
    assert [(field.name, field.side, field.kind) for field in found.options.fields] == [
        ("tags", "item", "multi_valued")
    ]
    assert found.left_out == {"none": "it has no value"}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"])
def test_wide_letters_are_read_with_a_mark_or_without(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(csv_of(log()).encode(encoding))
    found = propose(str(path))
    assert found.rows is not None and found.rows.user_ids.equals(pa.array(range(10)))


@pytest.mark.parametrize("sep", ["\x01", "^", "~", " "])
def test_rarer_delimiters_are_found(sep: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(), sep))
    assert found.rows is not None and len(found.rows.kept) == NUM and found.options.delimiter == sep


def test_json_is_refused_by_what_it_is_and_a_single_column_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON, which is not read"):
        proposed(tmp_path, '{"user_id": 1, "item_id": 2}\n' * 9)
    with pytest.raises(UserError, match="--delimiter"):
        proposed(tmp_path, csv_of(log(), "§"))
