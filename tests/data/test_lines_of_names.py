"""Which rows of a file are its column names again, or those of another file; and which only look so."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from mwuf_dist.data.readers import lines_of_names

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
