"""Logs as databases, spreadsheets and programs export them: the right value, or what to do about it."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.init_config.propose import Asked, Proposal, propose
from mwuf_dist.data.readers import gate, ids
from mwuf_dist.data.readers.encode import to_float
from mwuf_dist.data.sources import logs
from tests.data.log_files import NUM, csv_of, log, proposed, read, rows, without, write

FIRST = 1_609_372_800  # the last day of 2020, 31/12/20


def _shuffled(form: str) -> list[str]:
    """Moments of ten days to the last of 2020, in no order, as `form` writes them."""
    seconds = [FIRST - 86_400 * (index * 7 % 10) for index in range(NUM)]
    return [datetime.datetime.fromtimestamp(one, datetime.UTC).strftime(form) for one in seconds]


@pytest.mark.parametrize("form", ["%d/%m/%y", "%m/%d/%y", "%d-%m-%y %H:%M", "%d.%m.%y %H:%M", "%m/%d/%y %I:%M %p"])
def test_a_year_of_two_digits_is_no_year_of_the_romans(form: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=_shuffled(form))))
    assert found.options.time_format == form and found.rows is not None
    assert found.rows.time.max() == FIRST * 10**6


def test_a_year_of_two_digits_that_may_be_the_day_is_asked_for(tmp_path: Path) -> None:
    days = [f"{9 + index * 7 % 3:02d}/{1 + index % 12:02d}/{10 + index * 5 % 3:02d}" for index in range(NUM)]
    with pytest.raises(UserError, match=r"is the day: say it.*'%d/%m/%y'.*'%y/%m/%d'"):
        proposed(tmp_path, csv_of(log(timestamp=days)))


@pytest.mark.parametrize(
    "form",
    [
        "%m/%d/%Y, %I:%M:%S %p",
        "%Y%m%dT%H%M%SZ",
        "%a, %d %b %Y %H:%M:%S +0000",
        "%a %b %d %H:%M:%S %Y",
        "%d-%b-%y",
        "%Y.%m.%d %H:%M:%S",
    ],
)
def test_dates_of_browsers_mails_and_databases_are_read(form: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=_shuffled(form)), sep=";"))
    assert found.rows is not None and found.rows.time.max() == FIRST * 10**6


def test_days_to_come_within_the_year_do_not_tell_the_day_from_the_month(tmp_path: Path) -> None:
    """Bookings have them, and a clock ahead of UTC: 05/01 is no May because January is over."""
    this_year = datetime.datetime.now(datetime.UTC).year
    days = [f"{1 + index * 5 % 9:02d}/12/{this_year} 01:15" for index in range(NUM)]
    with pytest.raises(UserError, match=r"is the day: say it.*'%d/%m/%Y %H:%M'.*'%m/%d/%Y %H:%M'"):
        proposed(tmp_path, csv_of(log(timestamp=days)))


def test_years_of_two_digits_with_points_may_stand_first_and_months_may_not(tmp_path: Path) -> None:
    years_first = [f"24.05.{1 + index * 24 // NUM:02d}" for index in range(NUM)]
    assert proposed(tmp_path, csv_of(log(timestamp=years_first))).options.time_format == "%y.%m.%d"
    years_first = [f"{22 + index % 3}.05.{22 + index * 7 // 2 % 3}" for index in range(NUM)]
    with pytest.raises(UserError, match=r"is the day: say it.*'%d.%m.%y'.*'%y.%m.%d'"):
        proposed(tmp_path, csv_of(log(timestamp=years_first)))
    found = proposed(tmp_path, csv_of(log(timestamp=[f"{1 + index * 5 % 12:02d}.05.2024" for index in range(NUM)])))
    assert found.options.time_format == "%d.%m.%Y"


@pytest.mark.parametrize("written", ["{:,}", "{},25"])
def test_times_with_commas_are_numbers(written: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=[written.format(FIRST + k) for k in range(NUM)]), sep=";"))
    assert found.rows is not None and found.rows.time[0] // 10**6 == FIRST


def test_times_whose_digits_a_spreadsheet_has_cut_are_told(tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=[f"{1e3 * (FIRST + 86_400 * k):.5E}" for k in range(NUM)])))
    assert found.rows is not None
    assert any("values of timestamp are like 1.60937E+12" in one for one in found.rows.notes())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["1e+05", "99999", "2.5e+09"], [99999, 100000, 2500000000]),  # R
        (["12,0", "7"], [7, 12]),  # pandas, with a decimal comma and a gap
        (["1", "1,0", "1,5"], ["1", "1,0", "1,5"]),  # versions, as 1.0 beside 1.5
        (["1.234e+05", "9"], ["1.234e+05", "9"]),  # no program that keeps all digits writes it so
        (["9.010000000000000000e+02", "1.000000000000000000e+00"], [1, 901]),  # NumPy
        (["1.23457E+11", "9"], ["1.23457E+11", "9"]),  # a spreadsheet: its last digits are lost
        (["12e4", "3"], ["12e4", "3"]),  # a hash
        (["1.5e+00", "2"], ["1.5e+00", "2"]),
    ],
)
def test_a_whole_number_with_a_power_of_ten_is_an_id_of_its_digits(written: list[str], expected: list[Any]) -> None:
    assert ids.encode_ids(pa.chunked_array([written]))[1].to_pylist() == expected


def test_a_category_that_no_row_has_is_no_positive(tmp_path: Path) -> None:
    codes = pa.array([int(index % 3 == 0) for index in range(NUM)])
    event = pa.DictionaryArray.from_arrays(codes, ["view", "click", "buy"])
    pq.write_table(pa.table(without("label") | {"event": event}), tmp_path / "log.parquet")
    found = propose(str(tmp_path / "log.parquet"))
    assert found.options.label_is == ("click",) and found.rows is not None and found.rows.label.sum() == 20


@pytest.mark.parametrize(("none", "option"), [(99, "--missing 99"), (0, "--missing 0")])
def test_a_number_for_no_rating_that_would_decide_alone_is_asked_for(none: int, option: str, tmp_path: Path) -> None:
    rated = [none if index % 2 else 1 + index // 2 % 5 for index in range(NUM)]
    text = csv_of(without("label", user_id=[1 + index % 9 for index in range(NUM)]) | {"rating": rated})
    with pytest.raises(UserError, match=rf"{option}.*--label rating --label-at-least"):
        proposed(tmp_path, text)
    found = proposed(tmp_path, text, missing=(str(none),))
    assert found.options.label_at_least in (3, 4) and found.rows is not None and len(found.rows.kept) == 30


@pytest.mark.parametrize("name", ["label", "rating", "timestamp"])
def test_a_label_or_time_of_a_type_that_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    made = pa.table(log() | {name: [{"value": index % 3} for index in range(NUM)]})
    made = made.drop_columns("label") if name == "rating" else made
    pq.write_table(made, tmp_path / "log.parquet")
    with pytest.raises(UserError, match=rf"log.parquet: column '{name}' looks like the .* its type is struct.*none"):
        propose(str(tmp_path / "log.parquet"))


@pytest.mark.parametrize(("lacks", "has"), [("1.csv", "2.csv"), ("2.csv", "1.csv")])
def test_a_label_that_one_file_lacks_is_asked_for_whichever_comes_first(lacks: str, has: str, tmp_path: Path) -> None:
    write(tmp_path, f"logs/{has}", csv_of(log()))
    write(tmp_path, f"logs/{lacks}", csv_of(without("label")))
    with pytest.raises(UserError, match=rf"{lacks}: no column 'label'.*--label none"):
        propose(str(tmp_path / "logs"))


@pytest.mark.parametrize("names", [("clicks.csv", "impressions.csv"), ("a/Purchases/1.csv", "a/clicks/1.csv")])
def test_what_happened_may_not_stand_in_names_of_files_alone(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path, f"logs/{name}", csv_of(without("label")))
    with pytest.raises(UserError, match=r"the names of .* do: write it into a column.*--label none"):
        propose(str(tmp_path / "logs"))
    assert propose(str(tmp_path / "logs"), asked=Asked(label="none")).options.negatives_per_positive == 4


def test_a_line_of_names_in_another_order_within_a_file_is_refused_and_in_another_case_left_out(tmp_path: Path) -> None:
    text, other = csv_of(log()), csv_of({name: log()[name] for name in ("item_id", "user_id", "timestamp", "label")})
    with pytest.raises(UserError, match=r"log.csv:62: a line of names in another order \(user_id = 'item_id'"):
        proposed(tmp_path, text + other)
    first, _, below = text.partition("\n")
    found = proposed(tmp_path, text + first.upper() + "\n" + below)
    assert found.rows is not None and len(found.rows.kept) == 2 * NUM


def test_a_label_named_like_its_column_is_wrong_in_a_row_that_is_no_line_of_names(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", csv_of(log(label=["0", "1", "LABEL"] * (NUM // 3))))
    with pytest.raises(UserError, match=r"log.csv:4: label is 'LABEL', neither 0 nor 1"):
        gate.read_rows([path], LogsConfig(label="label"), whole=False)


def test_a_column_that_holds_its_own_name_or_nothing_has_one_value(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is 'purchased' in every row that has one"):
        proposed(tmp_path, csv_of(without("label") | {"Purchased": ["purchased", ""] * (NUM // 2)}))


@pytest.mark.parametrize("place", [30, 60])
def test_a_file_that_was_cut_while_it_was_written_is_refused(place: int, tmp_path: Path) -> None:
    lines = csv_of(log()).splitlines(keepends=True)
    with pytest.raises(UserError, match=rf"log.csv:{place + 1}: user_id holds a NUL.*copy or write it again"):
        proposed(tmp_path, "".join([*lines[:place], "\0" * 40, *lines[place:]]))


def test_a_damaged_compressed_file_is_told_from_one_in_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv.gz", csv_of(log()))
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(UserError, match=r"log.csv.gz: the compressed file is damaged.*write it again"):
        propose(str(path))


def test_a_value_longer_than_a_page_is_read(tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(payload=["x" * 200_000, *["y"] * (NUM - 1)])))
    assert found.rows is not None and len(found.rows.kept) == NUM


@pytest.mark.parametrize("written", ["[{}, 1]", "{}|1|2", "{}, 1, 2"])
def test_ids_that_look_like_lists_are_told(written: str, tmp_path: Path) -> None:
    made = log(item_id=[f'"{written.format(900 + index * 7 % 12)}"' for index in range(NUM)])
    found = proposed(tmp_path, csv_of(made))
    assert found.rows is not None
    assert any("item_id look like lists" in one and "a row for each" in one for one in found.rows.notes())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("'905'", "905"),
        ("{ab}", "ab"),
        ("12,001", "12001"),
        ("ü1", "Ã¼1"),
        ("0149517d-40e5-23a1-b17e-e1804eaa9a14", "0149517D40E523A1B17EE1804EAA9A14"),
    ],
)
def test_ids_that_differ_only_in_how_they_are_written_are_told(one: str, other: str) -> None:
    assert ids.alike(pa.array([one, "x", other])) == (1, [one, other])


def test_text_that_is_kept_from_a_spreadsheet_is_the_text(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp,clicked\n"=""007""",a,1,0\n="12",b,2,1\n'
    assert [row[0] for row in rows(read(write(tmp_path, "log.csv", text)))] == ["007", "12"]


def test_a_folder_that_contradicts_its_files_is_told(tmp_path: Path) -> None:
    write(tmp_path, "logs/label=1/1.csv", csv_of(log()))
    found = propose(str(tmp_path / "logs"))
    assert found.rows is not None
    assert any("column 'label' holds '0', and its folder is label=1" in one for one in found.rows.notes())


def test_a_day_beside_a_time_of_the_day_is_a_time_in_parts(tmp_path: Path) -> None:
    clock = [f"{index % 24:02d}:30:00" for index in range(NUM)]
    days = [f"2020-09-{1 + index // 2:02d}" for index in range(NUM)]
    text = csv_of(without("timestamp", date=days, time=clock))
    with pytest.raises(UserError, match=r"written in parts \(date, time\).*--time date"):
        proposed(tmp_path, text)
    assert proposed(tmp_path, text, time="date").options.time == "date"


def test_names_of_recbole_are_those_before_its_types(tmp_path: Path) -> None:
    text = csv_of(log()).replace(
        "user_id,item_id,timestamp,label", "user_id:token,item_id:token,timestamp:float,label:float"
    )
    assert proposed(tmp_path, text).options.label == "label:float"


def test_visitors_without_a_name_are_users_where_most_have_none(tmp_path: Path) -> None:
    anonymous = [f"a{index % 10}" for index in range(NUM)]
    users = [index % 10 if index % 3 else "" for index in range(NUM)]
    with pytest.raises(UserError, match="--user anonymous_id takes that one"):
        proposed(tmp_path, csv_of(log(user_id=users, anonymous_id=anonymous)))


def _with_items(folder: Path, table: dict[str, list[Any]]) -> Proposal:
    write(folder, "log.csv", csv_of(log()))
    made = pa.table({"item_id": list(range(900, 912))} | table)
    pq.write_table(made, folder / "items.parquet")
    return propose(str(folder / "log.csv"), items=str(folder / "items.parquet"))


def test_what_a_table_of_items_may_hold_is_a_field_or_said_to_be_none(tmp_path: Path) -> None:
    found = _with_items(
        tmp_path,
        {
            "price": [f"1.{100 + k},{10 + k % 3} €" for k in range(12)],
            "click_rate": [k / 12 for k in range(12)],
            "vector": [f"[0.{k}1, -0.{k}2, 1.5e-{k % 4}]" for k in range(12)],
            "uneven": [[0.5] * (2 + k % 2) for k in range(12)],
            "color": ["red", "blue"] * 6,
        },
    )
    assert {one.name: one.kind for one in found.options.fields} == {
        "price": "numeric",
        "click_rate": "numeric",
        "color": "categorical",
    }
    assert "knows their labels: leave it out" in found.notes["field click_rate"]
    assert "labels" not in found.notes["field price"] and "in Parquet, as lists" in found.left_out["vector"]
    assert "not all as many numbers" in found.left_out["uneven"]


def test_numbers_with_a_sign_of_money_and_a_decimal_comma_are_read() -> None:
    assert to_float(pa.array(["1.234,50 €", "€ 12,00", "7 €"])).tolist() == [1234.5, 12, 7]
    assert to_float(pa.array(["$1,234.50", "$12"])).tolist() == [1234.5, 12]


def test_a_column_that_the_first_file_of_a_side_table_lacks_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", csv_of(log()))
    ids_of = list(range(900, 912))
    write(tmp_path, "items/1.csv", csv_of({"item_id": ids_of[:6], "color": ["red", "blue"] * 3}))
    write(tmp_path, "items/2.csv", csv_of({"item_id": ids_of[6:], "color": ["red", "blue"] * 3, "size": [1, 2] * 3}))
    found = propose(str(path), items=str(tmp_path / "items"))
    assert re.search(r"1.csv has no such column", found.left_out["size"])


@pytest.mark.parametrize("none", ["", "0"])
def test_a_time_that_only_some_rows_have_is_no_log_of_positives(none: str, tmp_path: Path) -> None:
    clicked = [FIRST + index if index % 3 == 0 else none for index in range(NUM)]
    with pytest.raises(UserError, match=r"'clicked_at' holds a time in 20 of 60 rows and none.*--label none"):
        proposed(tmp_path, csv_of(without("label", clicked_at=clicked)))


def test_a_label_that_many_rows_lack_is_asked_for(tmp_path: Path) -> None:
    event = [("click", "buy", "")[index % 3] for index in range(NUM)]
    text = csv_of(without("label") | {"event": event})
    with pytest.raises(UserError, match="33% of the rows have none: if that means 0.*--label event"):
        proposed(tmp_path, text)
    found = proposed(tmp_path, text, label="event")
    assert found.options.label_is == ("buy",) and found.rows is not None and len(found.rows.kept) == 40


@pytest.mark.parametrize("form", ["%d%m%Y", "%m%d%Y"])
def test_days_with_the_year_at_the_end_are_no_numbers(form: str, tmp_path: Path) -> None:
    days = [datetime.date(2020, 9, 13) + datetime.timedelta(index) for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=[one.strftime(form) for one in days])))
    assert found.options.time_format == form and "from 2020-09-13 to 2020-11-11" in found.notes["time"]
    dataset = logs.load(DataConfig(name="logs", logs=found.options))  # which reads times as they stand
    assert found.rows is not None and dataset.interactions["time"].to_numpy().max() == found.rows.time.max()
    either = [one.replace(day=1 + one.day % 12).strftime(form) for one in days]
    with pytest.raises(UserError, match=r"year at the end.*%d%m%Y or %m%d%Y"):
        proposed(tmp_path, csv_of(log(timestamp=either)))


def test_a_day_beside_a_clock_without_colons_is_a_time_in_parts(tmp_path: Path) -> None:
    clock = [int(f"{index % 24:02d}{index:02d}07") for index in range(NUM)]
    days = [20_200_901 + index // 2 for index in range(NUM)]
    with pytest.raises(UserError, match=r"written in parts \(date, time\)"):
        proposed(tmp_path, csv_of(without("timestamp", date=days, time=clock)))


@pytest.mark.parametrize(("kind", "first"), [(pa.float32(), 33_000_000), (pa.float16(), 3_000)])
def test_ids_that_are_floats_too_short_for_them_are_refused(kind: pa.DataType, first: int, tmp_path: Path) -> None:
    made = log(user_id=[first + index % 10 for index in range(NUM)])
    short = pa.array(np.array(made["user_id"], np.float16 if kind == pa.float16() else np.float32), kind)
    pq.write_table(pa.table(made | {"user_id": short}), tmp_path / "log.parquet")
    with pytest.raises(
        UserError, match=f"'user_id' holds numbers of type {kind} up to {first // 10}.*last digits are lost"
    ):
        propose(str(tmp_path / "log.parquet"))


@pytest.mark.parametrize("quotes", ["''", "“”", "„“"])
def test_ids_in_quotes_are_told(quotes: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(user_id=[f"{quotes[0]}{index % 9}{quotes[1]}" for index in range(NUM)])))
    assert found.rows is not None and any("user_id stand in quotes" in one for one in found.rows.notes())


@pytest.mark.parametrize("ending", ["inprogress", "filepart", "partial", "writing", "old", "orig", "temp"])
def test_a_file_that_a_program_is_writing_or_has_left_is_no_log(ending: str, tmp_path: Path) -> None:
    write(tmp_path, "logs/1.csv", csv_of(log()))
    write(tmp_path, f"logs/2.csv.{ending}", csv_of(log(user_id=[77] * NUM)))
    found = propose(str(tmp_path / "logs"))
    assert found.rows is not None and len(found.rows.kept) == NUM
    assert any(f"2.csv.{ending} is not read: left by a program" in one for one in found.remarks)


def test_what_was_shown_and_then_clicked_is_told(tmp_path: Path) -> None:
    shown = without("label") | {"event": ["impression"] * NUM}
    clicked: dict[str, list[Any]] = {name: values[::3] for name, values in shown.items()}
    clicked |= {"event": ["click"] * 20, "timestamp": [int(one) + 5 for one in clicked["timestamp"]]}
    text = csv_of({name: [*shown[name], *clicked[name]] for name in shown})
    assert any("20 of 20 positive rows come within 1 hour after" in one for one in proposed(tmp_path, text).remarks)
    assert not any("positive rows come" in one for one in proposed(tmp_path, csv_of(log())).remarks)


def test_a_title_above_the_names_and_quotes_behind_a_backslash_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="if a title stands there, remove it"):
        proposed(tmp_path, f"All clicks,,,\n{csv_of(log())}")
    made = log(title=['"the \\"best\\", a film"'] * NUM)
    with pytest.raises(UserError, match=r"log.csv:2: expected 5 columns.*in Spark: escape"):
        proposed(tmp_path, csv_of(made))


@pytest.mark.parametrize(
    ("genres", "expected"),
    [
        (["[{'id': 16, 'name': 'Comedy'}, {'id': 18, 'name': 'Drama'}]", "[{'id': 18, 'name': 'Drama'}]", "[]"], None),
        (['{"color": "red"}', '{"color": "blue"}', '{ "color" : "red"}'], None),
        (["['Comedy', 'Drama']", "['Drama']", "['Comedy']"], ["Comedy", "Drama"]),
        (["[16, 18]", "[18]", "[7]"], ["16", "18", "7"]),
        (["[REC]", "[[Alien]]", "Heat", "Blade Runner", "Alien"], ["Alien", "Blade Runner", "Heat"]),
    ],
)
def test_lists_written_as_text_are_their_words_and_objects_are_none(
    genres: list[str], expected: list[str] | None, tmp_path: Path
) -> None:
    """TMDB's genres had become the words `[{'id':`, `16,` and so on, without a word."""
    items = sorted(set(log()["item_id"]))
    write(tmp_path, "log.csv", csv_of(log()))
    table = pa.table({"item_id": items, "genres": [genres[index % len(genres)] for index in range(len(items))]})
    pq.write_table(table, tmp_path / "items.parquet")
    found = propose(str(tmp_path / "log.csv"), items=str(tmp_path / "items.parquet"))
    assert ("objects written as text" in found.left_out.get("genres", "")) is (expected is None)
    if expected is not None and found.rows is not None:
        words = logs.join(found.rows, found.options).vocabularies["genres"].to_pylist()
        assert set(expected) <= set(words) and not any("'" in word for word in words)
