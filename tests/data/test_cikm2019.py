"""CIKM 2019 EComm AI: every quirk of its raw files, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.prepare.prepare import describe, prepare
from mwuf_dist.data.readers import csv_pieces
from mwuf_dist.data.sources import cikm2019
from tests.data.raw_files import field_values, in_memory, rows_of, write_files

BEHAVIOURS = """3,100,pv,86399
3,100,pv,86399
1,200,buy,5
4,100,cart,0
1,100,fav,1382399
3,200,pv,7
4,200,buy,8
1,300,pv,9
"""
ITEMS = "200,11,21,31\n100,10,20,30\n300,12,22,32\n"
USERS = "1,0,23,5\n3,1,60,\n"
TEXTS = {"user_behavior.csv": BEHAVIOURS, "item.csv": ITEMS, "user.csv": USERS}
CONFIG = DataConfig(name="cikm2019", old_above=4, warm_rows=1)

TEST_A, TEST_B = "ECommAI_EUIR_round1_testA_20190701", "ECommAI_EUIR_round1_testB_20190809"
ROUND_2 = "ECommAI_EUIR_round2_train_20190816"


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `MWUF_DATA_DIR` leads to, empty."""
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path))
    (tmp_path / "cikm2019").mkdir()
    return tmp_path / "cikm2019"


@pytest.fixture
def folder(top: Path) -> Path:
    """The same with a small data set."""
    return write_files(top, TEXTS)


def test_rows_stand_in_the_order_of_the_file_and_only_buy_is_positive(folder: Path) -> None:
    dataset = in_memory(cikm2019.pieces(CONFIG))
    dataset.check("cikm2019")
    lines = [line.split(",") for line in BEHAVIOURS.splitlines()]
    assert rows_of(dataset) == [(int(u), int(i), int(what == "buy"), int(time)) for u, i, what, time in lines]


def test_the_first_line_is_a_row_because_no_file_has_names(folder: Path) -> None:
    dataset = in_memory(cikm2019.pieces(CONFIG))
    assert rows_of(dataset)[0] == (3, 100, 0, 86399)
    assert field_values(dataset, "item", "category")[200] != 0
    assert field_values(dataset, "user", "gender")[1] != 0


def test_repeated_behaviours_all_count(folder: Path) -> None:
    assert rows_of(in_memory(cikm2019.pieces(CONFIG))).count((3, 100, 0, 86399)) == 2


def test_fields_are_those_of_the_paper(folder: Path) -> None:
    names = [(field.side, field.name) for field in in_memory(cikm2019.pieces(CONFIG)).fields]
    users, items = ("user_id", "gender", "age", "purchasing_power"), ("category", "shop", "brand")
    assert names == [("user", name) for name in users] + [("item", name) for name in items]


def test_a_user_without_a_row_and_an_empty_value_are_unknown(folder: Path) -> None:
    dataset = in_memory(cikm2019.pieces(CONFIG))
    for name in ("gender", "age", "purchasing_power"):
        assert field_values(dataset, "user", name)[4] == 0
    assert field_values(dataset, "user", "purchasing_power")[3] == 0
    assert field_values(dataset, "user", "age")[3] > field_values(dataset, "user", "age")[1] > 0


def test_items_with_too_few_rows_make_no_vocabulary(folder: Path) -> None:
    sizes = {
        field.name: field.size for field in in_memory(cikm2019.pieces(CONFIG)).fields
    }  # Item 300 has one row, of 3K = 3.
    assert (sizes["category"], sizes["shop"], sizes["brand"]) == (3, 3, 3)


@pytest.mark.parametrize("block_bytes", [20, 50, 1 << 20])
def test_rows_do_not_depend_on_the_size_of_blocks(
    folder: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("pv", "pv", "cart", "pv", "buy", "fav", "pv")
    many = "".join(f"{row % 13},{row % 29},{words[row % 7]},{row * 37 % 1000}\n" for row in range(500))
    write_files(folder, {"user_behavior.csv": BEHAVIOURS + many})
    whole = in_memory(cikm2019.pieces(CONFIG)).interactions
    monkeypatch.setattr(csv_pieces, "BLOCK_BYTES", block_bytes)
    assert in_memory(cikm2019.pieces(CONFIG)).interactions == whole


@pytest.mark.parametrize("piece_bytes", [1, 20, 50])
def test_rows_do_not_depend_on_the_size_of_pieces(
    folder: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_memory(cikm2019.pieces(CONFIG)).interactions
    monkeypatch.setattr(csv_pieces, "PIECE_BYTES", piece_bytes)
    raw = cikm2019.pieces(CONFIG)
    assert len(raw.pieces) >= 2 and (piece_bytes > 1 or len(raw.pieces) == len(BEHAVIOURS.splitlines()))
    assert in_memory(raw).interactions == whole


# folders


def test_the_folder_of_round_2_may_lie_as_it_was_unpacked(folder: Path, top: Path) -> None:
    alone = in_memory(cikm2019.pieces(CONFIG)).interactions
    for name in TEXTS:
        (top / ROUND_2).mkdir(exist_ok=True)
        (top / name).rename(top / ROUND_2 / name)
    assert in_memory(cikm2019.pieces(CONFIG)).interactions == alone


def test_the_two_parts_of_round_1_are_put_together_with_repeated_items_once(top: Path) -> None:
    lines = BEHAVIOURS.splitlines(keepends=True)
    # Written in the other order: names decide. Item 100 is in both parts, in the second with other values.
    second = {
        "user_behavior.csv": "".join(lines[5:]),
        "item.csv": "300,12,22,32\n100,99,99,99\n",
        "user.csv": "4,1,1,1\n",
    }
    write_files(top / TEST_B, second)
    first = {"user_behavior.csv": "".join(lines[:5]), "item.csv": "200,11,21,31\n100,10,20,30\n", "user.csv": USERS}
    write_files(top / TEST_A, first)
    both = in_memory(cikm2019.pieces(CONFIG))

    for path in (*(top / TEST_A).iterdir(), *(top / TEST_B).iterdir()):
        path.unlink()
    (top / TEST_A).rmdir(), (top / TEST_B).rmdir()
    write_files(top, TEXTS | {"user.csv": USERS + "4,1,1,1\n"})
    once = in_memory(cikm2019.pieces(CONFIG))
    assert both.interactions == once.interactions and both.items == once.items and both.users == once.users


def test_a_part_with_a_file_missing_is_an_error(top: Path) -> None:
    write_files(top / TEST_A, TEXTS)
    write_files(top / TEST_B, {"item.csv": ITEMS, "user.csv": USERS})
    with pytest.raises(
        UserError, match=r"testB_20190809: user_behavior.csv of CIKM .* missing\. Put user_behavior.csv"
    ):
        in_memory(cikm2019.pieces(CONFIG))


@pytest.mark.parametrize("others", [["."], [TEST_A, TEST_B]], ids=["files beside", "round 1"])
def test_two_data_sets_are_not_mixed(top: Path, others: list[str]) -> None:
    for name in (ROUND_2, *others):
        write_files(top / name, TEXTS)
    with pytest.raises(UserError, match="holds several data sets .*keep one round there"):
        in_memory(cikm2019.pieces(CONFIG))


# errors


def replaced(name: str, old: str, new: str) -> dict[str, str]:
    assert old in TEXTS[name]
    return {name: TEXTS[name].replace(old, new, 1)}


WRONG = {
    "unknown behaviour": (
        replaced("user_behavior.csv", "cart", "click"),
        r"user_behavior.csv:4: behaviour is 'click', not pv, fav, cart or buy",
    ),
    "empty behaviour": (replaced("user_behavior.csv", "cart", ""), r"user_behavior.csv:4: behaviour is ''"),
    "a line of names": (
        {"user_behavior.csv": "user,item,behaviour,time\n" + BEHAVIOURS},
        r"user_behavior.csv:1: user is 'user', not an integer",
    ),
    "too few columns": (
        replaced("user_behavior.csv", "1,200,buy,5", "1,200,5"),
        r"user_behavior.csv:3: expected 4 columns user,item,behaviour,time, found 3: '1,200,5'",
    ),
    "truncated within a number": (
        {"user_behavior.csv": BEHAVIOURS + "3,100,pv,86"},
        r"user_behavior.csv: the last line has no line end: the file is truncated",
    ),
    "items truncated": ({"item.csv": ITEMS[:-1]}, r"item.csv: the last line has no line end"),
    "uneven items": (replaced("item.csv", "100,10,20,30", "100,10"), r"item.csv:2: expected 4 columns, found 2"),
    "empty": ({"user_behavior.csv": ""}, r"user_behavior.csv: is empty"),
    "item is text": (replaced("item.csv", "100,10", "x100,10"), r"item.csv:2: item is 'x100', not an integer"),
    "age is text": (replaced("user.csv", "60", "old"), r"user.csv:2: age 'old' is no number"),
    "users of another data set": ({"user.csv": "1000,1,1,1\n"}, r"user.csv: none of its users is in the interactions"),
}


@pytest.mark.parametrize(("texts", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_named_with_its_line(folder: Path, texts: dict[str, str], message: str) -> None:
    write_files(folder, texts)
    with pytest.raises(UserError, match=message):
        in_memory(cikm2019.pieces(CONFIG))


@pytest.mark.parametrize("call", [cikm2019.pieces, cikm2019.fingerprint], ids=["pieces", "fingerprint"])
def test_no_data_says_where_to_get_them_on_what_terms_and_where_to_put_them(top: Path, call: Any) -> None:
    with pytest.raises(UserError, match=r"is not in .*round 2 into a folder cikm2019 .*tianchi.*231721.*Terms: "):
        call(CONFIG)
    top.rmdir()
    with pytest.raises(UserError, match=r"is not there\. Put .*tianchi.*Terms: "):
        call(CONFIG)


def test_a_changed_file_is_another_fingerprint(folder: Path) -> None:
    before = describe(CONFIG)
    assert describe(CONFIG) == before
    write_files(folder, {"item.csv": ITEMS + "400,1,1,1\n"})
    assert describe(CONFIG) != before


# from raw file to shard


def test_shards_carry_what_the_raw_file_says(folder: Path, tmp_path: Path) -> None:
    words = ("pv", "pv", "cart", "pv", "buy", "fav", "pv")
    lines = [(row % 3 + 1, 100 * (1 + row % 5 % 3), words[row % 7], row * 37 % 60) for row in range(60)]
    write_files(folder, {"user_behavior.csv": "".join(f"{u},{i},{what},{time}\n" for u, i, what, time in lines)})
    config = DataConfig(name="cikm2019", old_above=20, warm_rows=2, prepared_dir=str(tmp_path / "prepared"))
    prepared = prepare(config)
    users, items = prepared.entity("user").raw_ids, prepared.entity("item").raw_ids
    assert prepared.num_old_items == 2 and prepared.num_new_items == 1
    for split in prepared.manifest["splits"]:
        table = pq.read_table(prepared.path / split)
        found = [
            (users[row["user"]], items[row["item"]], row["label"], row["time"], row["row"]) for row in table.to_pylist()
        ]
        for user, item, label, time, row in found:
            assert (user, item, "buy" if label else lines[row][2], time) == lines[row]
        assert [(time, row) for *_, time, row in found] == sorted((time, row) for *_, time, row in found)
