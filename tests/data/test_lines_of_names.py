"""Which rows of a file are its column names again, or those of another file; and which only look so."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config.propose import propose
from mwuf_dist.data.readers import lines_of_names
from mwuf_dist.data.sources import logs
from tests.data.log_files import NUM, csv_of, log, proposed, read, without, write

NAMES = ["user_id", "item_id", "time", "click"]
ROW = ["7", "12", "1600000000", "1"]


def found(rows: list[list], names: list[str]) -> tuple[list[int], list[int], list[int]]:
    """Text comes dictionary-encoded, as it is read."""
    arrays = [pa.array(column) for column in zip(*rows, strict=True)]
    columns = [one.dictionary_encode() if pa.types.is_string(one.type) else one for one in arrays]
    lines = lines_of_names.find(pa.table([pa.chunked_array([one]) for one in columns], names=names))
    return lines.again.tolist(), lines.in_another_order.tolist(), lines.of_another_file.tolist()


@pytest.mark.parametrize(
    "line",
    [
        NAMES,
        ["User_ID", " ITEM_ID", "Time", "click  "],
        ["\ufeffuser_id", "item_id", "time", "click\u200b"],
        ["user_id" + 9 * " ", "    item_id", "\ttime", "click"],
        ['"user_id"', '"item_id"', '"time"', '"click"'],
        ["#user_id", "item_id", "time", "click"],
        ["User ID", "itemId", "time", "CLICK"],
        ["user_id", "item_id", None, "click"],
        ["user_id", "item_id", "", "click"],
    ],
)
def test_names_again_are_found_however_they_are_written(line: list) -> None:
    assert found([ROW, line, ROW], NAMES) == ([1], [], [])


@pytest.mark.parametrize("name", ["ΧΡΗΣΤΗΣ", "KULLANICI_İD", "ユーザー"])
def test_names_of_any_alphabet_are_found(name: str) -> None:
    assert found([["1", "2"], [name, "item"], ["3", "4"]], [name, "item"]) == ([1], [], [])


def test_names_are_found_beside_columns_of_numbers_and_among_bytes() -> None:
    then = datetime.datetime(2020, 1, 1)
    assert found([["1", "2", then, 0], ["user_id", "item_id", then, 0]], NAMES) == ([1], [], [])
    assert found([[b"1", b"2"], [b"user_id", b"item_id"]], NAMES[:2]) == ([1], [], [])
    assert found([[b"\xff", b"2"], [b"user_id", b"item_id"]], NAMES[:2]) == ([], [], [])  # no text


def test_names_in_another_order_and_names_of_another_file_are_told_apart() -> None:
    assert found([ROW, ["item_id", "user_id", "click", "time"]], NAMES) == ([], [1], [])
    assert found([["1", "a"], ["genre", "item_id"]], ["item_id", "genre"]) == ([], [1], [])
    assert found([ROW, ["user_id", "item_id", "time", "clicked"]], NAMES) == ([], [], [1])
    assert found([ROW, ["user_id", "item_id", "date", "label"]], NAMES) == ([], [], [])  # too little is known of it


@pytest.mark.parametrize(
    ("names", "row"),
    [
        (["user_id", "item_id", "home", "search", "referrer", "page"], ["1", "2", "0", "1", "home", "search"]),
        (["item_id", "genre1", "genre2", "Comedy", "Drama"], ["2", "Comedy", "Drama", "1", "1"]),
        (["user", "item", "time", "actor_type", "target_type"], ["5", "6", "1600000000", "user", "item"]),
        (["user_id", "item_id", "query", "title"], ["5", "6", "title", "query"]),
        (["user", "item", "price"], ["user", "item", "19.9"]),  # a user and an item of these names
        (["user", "item"], ["user", "3"]),
        (["a_b", "c"], ["ab", "-"]),
        (["tag", "also_tag"], ["also_tag", "also_tag"]),
    ],
)
def test_rows_that_hold_words_which_are_names_of_columns_are_rows(names: list[str], row: list[str]) -> None:
    other = ["9" for _ in names]
    assert found([other, row, other], names) == ([], [], [])


def test_a_rating_is_one_where_files_were_put_together_with_their_names(tmp_path: Path) -> None:
    text = csv_of(without("label") | {"rating": [1 + index % 5 for index in range(NUM)]}, sep="\t")
    found = proposed(tmp_path, text + text)
    assert found.options.label_from == "rating" and found.rows is not None and len(found.rows.kept) == 2 * NUM
    assert any("its column names stand in it 1 times more" in note for note in found.rows.notes())
    with pytest.raises(UserError, match=rf"log.csv:{2 * NUM + 3}: rating is 'x', no number"):
        read(
            write(tmp_path, "log.csv", text + text + "1\t2\t1600000000\tx\n"),
            label_from="rating",
            label_at_least=3.0,
            delimiter="\t",
        )


def test_names_that_stand_again_in_a_table_of_items_are_no_item_and_in_another_order_are_refused(
    tmp_path: Path,
) -> None:
    items = sorted(set(log()["item_id"]))
    lines = [f"{item},{'ab'[item % 2]}\n" for item in items]
    write(tmp_path, "log.csv", csv_of(log()))
    write(tmp_path, "items.csv", "item_id,genre\n" + lines[0] + "Item_ID,Genre\n" + "".join(lines[1:]))
    found = propose(str(tmp_path / "log.csv"), items=str(tmp_path / "items.csv"))
    assert found.rows is not None
    joined = logs.join(found.rows, found.options)
    assert joined.vocabularies["genre"].to_pylist() == ["a", "b"]
    assert any("items.csv: its column names stand in it 1 times more" in note for note in joined.notes)
    other = [f"{'ab'[item % 2]},{item}\n" for item in items[1:]]
    write(tmp_path, "items.csv", "item_id,genre\n" + lines[0] + "genre,item_id\n" + "".join(other))
    with pytest.raises(UserError, match=r"items.csv:3: a line of names in another order"):
        propose(str(tmp_path / "log.csv"), items=str(tmp_path / "items.csv"))
