"""Ordinary logs that look odd at one place are read without a question; what is odd beside them is still told."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config.propose import Proposal, propose
from mwuf_dist.data.readers import ids
from tests.data.log_files import NUM, csv_of, log, proposed, without, write

FIRST = list(range(1_600_000_000, 1_600_000_000 + NUM))


def _of_files(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder, f"logs/{name}.csv", csv_of(without("label")))
    return folder / "logs"


@pytest.mark.parametrize(
    "names",
    [
        "orders_no orders_se orders_dk",
        "orders_from_2020 orders_2021",
        "sales_report_q1 sales_q2",
        "without_bots_orders with_bots_orders",
        "transactions_no_returns orders",
        "click_log clicks",
        "purchase_history_a sale_history_b",
        "orders_web purchases_store",
        "paid_clicks organic_clicks",
        "orders_view orders_2021",
        "remove_dupes_orders orders",
        "store_no_1 order_store_2",
    ],
)
def test_names_of_files_in_which_one_thing_happened_are_no_labels(names: str, tmp_path: Path) -> None:
    assert propose(str(_of_files(tmp_path, *names.split()))).options.negatives_per_positive


@pytest.mark.parametrize(
    "names",
    [
        "clicks impressions",
        "orders returns",
        "orders returned_orders",
        "click no_click",
        "page_views cart_2020",
        "carts orders",
        "add_to_cart remove_from_cart",
    ],
)
def test_names_of_files_in_which_different_things_happened_are_asked_about(names: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column says what happened, but the names of"):
        propose(str(_of_files(tmp_path, *names.split())))


def _later(folder: Path, first: dict[str, list[Any]], more: dict[str, list[Any]]) -> Proposal:
    write(folder, "logs/2020.csv", csv_of(first))
    write(folder, "logs/2021.csv", csv_of(first | more))
    return propose(str(folder / "logs"))


@pytest.mark.parametrize(
    ("role", "taken", "more"),
    [
        ("time", "ts", {"event_time": FIRST, "timestamp": FIRST}),
        ("user", "customer_id", {"user_id": [index % 7 for index in range(NUM)]}),
        ("user", "user", {"session_id": [index % 7 for index in range(NUM)]}),
        ("label", "rating", {"recommended": [index % 2 for index in range(NUM)]}),
        ("label", "", {"event_type": ["web"] * NUM}),
    ],
)
def test_a_column_that_later_files_add_takes_no_place_that_is_taken(
    role: str, taken: str, more: dict[str, list[Any]], tmp_path: Path
) -> None:
    of_role = {"time": "timestamp", "user": "user_id", "label": "label"}[role]
    made = without(of_role)
    made |= {taken: [1 + index % 5 for index in range(NUM)] if role == "label" else log()[of_role]} if taken else {}
    found = _later(tmp_path, made, more)
    options = found.options
    assert {"time": options.time, "user": options.user, "label": options.label or options.label_from}[role] == taken
    assert "2020.csv has no such column" in found.left_out[min(more)]
    assert not taken or any(f"{taken} is taken" in one for one in found.remarks)


def test_a_column_that_later_files_add_is_asked_about_where_every_row_would_be_a_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2020.csv: no column 'event_type', which looks like the label"):
        _later(tmp_path, without("label"), {"event_type": [("view", "click")[index % 2] for index in range(NUM)]})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("opening_time", [("08:00", "09:30")[index * 7 % 12 % 2] for index in range(NUM)]),  # of each item one
        ("time", [f"{2 + index % 5}:{index * 7 % 60:02d}" for index in range(NUM)]),
        ("time", [f"{index}:{index * 7 % 60:02d}" for index in range(NUM)]),
        ("time", [f"00:0{2 + index % 5}:{index * 7 % 60:02d}" for index in range(NUM)]),
    ],
)
def test_opening_hours_and_lengths_are_no_part_of_a_date(name: str, values: list[str], tmp_path: Path) -> None:
    days = [f"2020-09-{1 + index // 2:02d}" for index in range(NUM)]
    found = proposed(tmp_path, csv_of(without("timestamp", date=days) | {name: values}))
    assert found.options.time == "date"


@pytest.mark.parametrize(
    ("rest", "low", "is_asked"),
    [
        ([20, 40, 60, 80, 100], 0, False),
        ([3, 3.5, 4, 4.5, 5], 0.5, False),
        ([1.5, 2.5, 3.5], 0, False),
        ([0.5, 0, 1], -1, False),
        ([1, 2, 3, 4, 5], 0, True),
        ([0.5, 1, 2, 4.5, 5], 0, True),
        ([50, 60, 70, 80, 90, 100], 0, True),
        ([0, 1, 2, 3, 4], -1, True),
    ],
)
def test_the_least_rating_is_asked_about_where_it_does_not_fit_the_others(
    rest: list[float], low: float, is_asked: bool, tmp_path: Path
) -> None:
    rating = [low if index % 2 else rest[index // 2 % 5 % len(rest)] for index in range(NUM)]
    text = csv_of(without("label", rating=rating))
    if is_asked:
        with pytest.raises(UserError, match=rf"column 'rating': {low} \(30 rows\) stands apart"):
            proposed(tmp_path, text)
    else:
        assert proposed(tmp_path, text).options.label_at_least == sorted(rest)[0]


@pytest.mark.parametrize(
    ("folder", "value", "is_told"),
    [
        ("01", 1, False),
        ("1", True, False),
        ("True", "true", False),
        ("DE", "de", False),
        ("20200901", "2020-09-01", False),
        ("2020-09-01", 20200901, False),
        ("2020-09", "2020-09-01 10:00:00", False),
        ("1", 10, True),
        ("20200901", "2020-09-02", True),
        ("a", "ab", True),
    ],
)
def test_a_folder_says_what_its_files_say_however_it_is_written(
    folder: str, value: Any, is_told: bool, tmp_path: Path
) -> None:
    inside = tmp_path / f"logs/k={folder}"
    inside.mkdir(parents=True)
    pq.write_table(pa.table(log() | {"k": [value] * NUM}), inside / "1.parquet")
    found = propose(str(tmp_path / "logs"))
    assert found.rows is not None
    assert any("what stands in the file counts" in one for one in found.rows.notes()) == is_told


@pytest.mark.parametrize(
    ("form", "first", "cut"),
    [("{:.2e}", 0, ""), ("{:.5E}", 1_600_000_000, "1.60000E+09")],
)
def test_numbers_with_a_power_of_ten_are_cut_where_whole_seconds_are(
    form: str, first: int, cut: str, tmp_path: Path
) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=[form.format(first + 1.5 * 15**2 * one) for one in range(NUM)])))
    assert found.rows is not None
    told = [one for one in found.rows.notes() if "a spreadsheet has cut" in one]
    assert len(told) == bool(cut) and all(f"timestamp are like {cut}" in one for one in told)


@pytest.mark.parametrize("form", ["%d/%m/%y", "%y/%m/%d", "%d-%m-%y %H:%M"])
def test_days_of_one_month_are_not_one_day_of_many_years(form: str, tmp_path: Path) -> None:
    days = [datetime.datetime(2020, 9, 1 + index * 7 % 25, 12, 30) for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=[one.strftime(form) for one in days])))
    assert found.options.time_format == form and "from 2020-09-01 to 2020-09-25" in found.notes["time"]


@pytest.mark.parametrize(
    ("known", "found", "are_odd"),
    [
        (range(99), range(99, 3_000), False),
        (range(99), range(10**8, 10**8 + 9), True),
        (range(99), range(-9, 0), True),
        ([f"item-{one}" for one in range(99)], [f"item-{one}" for one in range(1_200)], False),
        ([f"item-{one}" for one in range(99)], [f"ITEM-{one}" for one in range(99)], True),
        ([f"sku{one}" for one in range(99)], [f"art{one}" for one in range(99)], True),
        ([f"{one * 2**40:016x}" for one in range(9_000)], [f"{one * 2**39:016x}" for one in range(1, 99)], False),
        (["A film", "the best film 2", None], ["Cats & Dogs", "x men 7"], False),
        (["u1"], [7, 8], True),
    ],
)
def test_ids_that_look_as_none_of_the_known_ones(known: Any, found: Any, are_odd: bool) -> None:
    odd = ids.written_otherwise(pa.array(list(found)), pa.array(list(known)))
    assert odd.tolist() == [are_odd] * len(found)
