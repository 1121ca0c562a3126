"""Logs as they are found: each is read with the right value, or refused with the way out; nothing wrong in silence."""

from __future__ import annotations

import datetime
import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config.actions import positive_action
from mwuf_dist.data.init_config.label_guess import halving
from mwuf_dist.data.init_config.propose import Asked, Proposal, propose
from mwuf_dist.data.init_config.write_config import comment, options_of
from mwuf_dist.data.readers import ids
from tests.data.log_files import NUM, csv_of, log, proposed, read, rows, write


@pytest.mark.parametrize(
    ("zero", "one"),
    [
        ("0.0", "1.0"),
        ("-1", "1"),
        ("f", "t"),
        ("no", "yes"),
        ("False", "True"),
        ("negative", "positive"),
        ("off", "on"),
        ("-1.0", "+1"),
    ],
)
def test_a_label_is_read_however_it_is_written(zero: str, one: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(label=[(zero, one)[index % 3 == 0] for index in range(NUM)])))
    assert found.options.label == "label" and not found.options.negatives_per_positive
    assert found.rows is not None and int(found.rows.label.sum()) == 20


def test_a_label_that_is_written_in_two_ways_over_files_is_one(tmp_path: Path) -> None:
    write(tmp_path, "logs/1.csv", csv_of(log()))
    write(tmp_path, "logs/2.csv", csv_of(log(label=[index % 3 == 0 for index in range(NUM)], user_id=[77] * NUM)))
    found = propose(str(tmp_path / "logs"))
    assert found.options.label == "label" and found.rows is not None and int(found.rows.label.sum()) == 40


@pytest.mark.parametrize("values", [["0"], ["1", "2"], ["foo", "bar"]])
def test_a_column_named_label_that_is_not_understood_is_refused_with_the_options(
    values: list[str], tmp_path: Path
) -> None:
    text = csv_of(log(label=[values[index % len(values)] for index in range(NUM)]))
    with pytest.raises(UserError, match=r"column 'label' looks like the label.*--label none"):
        proposed(tmp_path, text)
    assert proposed(tmp_path, text, label="none").options.negatives_per_positive == 4


def test_a_label_that_is_missing_where_it_should_be_zero_is_refused_and_the_gaps_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is '1' in every row that has one \(40 have none; if that means 0, write 0"):
        proposed(tmp_path, csv_of(log(label=["1" if index % 3 == 0 else "" for index in range(NUM)])))


def test_actions_count_as_whole_words() -> None:
    assert positive_action(["dislike", "like", "view"]) == "like"
    assert positive_action(["no_click", "click"]) == "click"
    assert positive_action(["view", "addToCart", "remove_from_cart"]) == "addToCart"
    assert positive_action(["no_click", "dislike"]) is None


def test_a_threshold_is_written_with_its_reason_where_it_is_the_usual_one_too(tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(label=[index % 3 for index in range(NUM)])))
    assert "label_at_least = 1.0  # counts from 0 to 2: 66.7% are 1 or more" in options_of(found)


def test_an_infinite_rating_is_refused_with_its_place_unless_it_means_missing(tmp_path: Path) -> None:
    made = {name: values for name, values in log().items() if name != "label"}
    text = csv_of(made | {"rating": ["inf" if index == 7 else index % 5 for index in range(NUM)]})
    with pytest.raises(UserError, match=r"log\.csv:9: rating is 'inf', no number .*--missing"):
        proposed(tmp_path, text)
    found = proposed(tmp_path, text, missing=("inf",))
    assert found.options.label_at_least == 2.0 and found.rows is not None and len(found.rows.kept) == NUM - 1


def test_a_positive_action_counts_however_it_is_written(tmp_path: Path) -> None:
    made = {name: values for name, values in log().items() if name != "label"}
    words = ["view", "add_to_cart", "addToCart", "AddToCart", "remove_from_cart"]
    found = proposed(tmp_path, csv_of(made | {"event_type": [words[index % 5] for index in range(NUM)]}))
    assert found.options.label_is == ("AddToCart", "addToCart", "add_to_cart")
    assert found.rows is not None and int(found.rows.label.sum()) == 36


@pytest.mark.parametrize("values", [["*", "**", "***"], ["1/5", "3/5", "5/5"], ["bad", "ok", "good"]])
def test_a_rating_that_is_no_number_is_refused_with_the_options(values: list[str], tmp_path: Path) -> None:
    made = {name: values for name, values in log().items() if name != "label"}
    with pytest.raises(UserError, match="column 'rating' looks like the label.*--label-is VALUE"):
        proposed(tmp_path, csv_of(made | {"rating": [values[(index + index // 12) % 3] for index in range(NUM)]}))


@pytest.mark.parametrize(
    ("values", "apart"),
    [
        ([-1, 1, 2, 3, 4, 5], "-1 (10 rows)"),
        ([0, 1, 2, 3, 4, 5], "0 (10 rows)"),
        ([99, -10, -3.5, 0.2, 7, 10], "99 (10 rows)"),
        ([1_234_567, 1, 2, 3, 4, 5], "1234567 (10 rows)"),  # --missing takes it as it stands
        ([1, 2, 3, 4, 5, 5], ""),
        ([0.5, 1, 2, 3.5, 4, 5], ""),
        ([-10, -3, 0, 2, 7, 10], ""),
    ],
)
def test_a_rating_that_may_mean_none_is_told(values: list[float], apart: str, tmp_path: Path) -> None:
    made = {name: values for name, values in log().items() if name != "label"}
    found = proposed(tmp_path, csv_of(made | {"rating": [values[(index + index // 12) % 6] for index in range(NUM)]}))
    assert (f"; {apart} stands apart" if apart else "nearest to half") in found.notes["label_at_least"]
    assert apart or "apart" not in found.notes["label_at_least"]


def test_a_rating_in_words_gives_way_to_a_column_of_actions(tmp_path: Path) -> None:
    words = {"rating": ["bad", "ok", "good"] * (NUM // 3), "event": ["view", "buy"] * (NUM // 2)}
    columns = {name: values for name, values in log(**words).items() if name != "label"}
    found = proposed(tmp_path, csv_of(columns))
    assert (found.options.label_from, found.options.label_is) == ("event", ("buy",))


def test_a_column_of_gaps_has_no_id_of_nobody() -> None:
    assert ids.nobody(pa.nulls(0)) == []


def test_a_threshold_is_found_among_all_values() -> None:

    assert halving(np.arange(-500.0, 500.0)) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("visitor_id", "user_agent", "product_id", "item_price", "created_at", "time_on_page"), (0, 2, 4)),
        (("userId", "movieId", "eventTime"), (0, 1, 2)),
        (("household_id", "user_feature_0", "sku", "day"), (0, 2, 3)),
        (("CustomerID", "StockCode", "InvoiceDate"), (0, 1, 2)),
        (("user_id", "birth_date", "track_id", "played_at"), (0, 2, 3)),
    ],
)
def test_roles_are_found_by_whole_words(
    columns: tuple[str, ...], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    made = {name: [f"{name}{index * 7 % 11}" for index in range(NUM)] for name in columns}
    for name in columns:
        if any(word in name.lower() for word in ("time", "date", "_at", "day", "price")):
            made[name] = [str(1_600_000_000 + index) for index in range(NUM)]
    options = proposed(tmp_path, csv_of(made)).options
    assert (options.user, options.item, options.time) == tuple(columns[place] for place in expected)


def test_ids_have_one_form_in_csv_and_parquet_and_are_exact(tmp_path: Path) -> None:
    write(tmp_path, "a/1.csv", "user_id,item_id,timestamp,clicked\n12.0,7,1,0\n,7,2,1\n")
    write(tmp_path, "a/2.csv", "user_id,item_id,timestamp,clicked\n12,7,3,1\n")
    assert [row[0] for row in rows(read(tmp_path / "a", drop_incomplete=True))] == [12, 12]
    big = [Decimal(9007199254740993 + k) for k in range(3)]
    table = {"user_id": pa.array(big, pa.decimal128(38, 0)), "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}
    pq.write_table(pa.table(table | {"clicked": [0, 1, 0]}), tmp_path / "log.parquet")
    assert [row[0] for row in rows(read(tmp_path / "log.parquet"))] == [int(one) for one in big]


def test_leading_zeros_are_told_from_none_by_what_the_data_set_holds() -> None:
    numbers, padded = pa.array([5, 905]), pa.array(["00005", "00905"])
    assert ids.find(pa.array(["00905", "12.0"]), numbers).tolist() == [1, -1]
    assert ids.find(pa.array([905]), padded).tolist() == [1]
    both = pa.array(["007", "7"])
    assert ids.find(pa.array([7]), both).tolist() == [1]


def test_units_of_time_that_differ_over_files_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "logs/1.csv", csv_of(log(timestamp=[1_600_000_000_000 + k for k in range(NUM)])))
    write(tmp_path, "logs/2.csv", csv_of(log()))
    with pytest.raises(UserError, match=r"1.csv.*milliseconds.*2.csv has seconds"):
        propose(str(tmp_path / "logs"))


@pytest.mark.parametrize("absurd", ["99999999999999", "1e19", "253402300799"])
def test_one_absurd_time_is_one_bad_row(absurd: str, tmp_path: Path) -> None:
    times: list[Any] = [1_600_000_000 + k for k in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=[*times[:-1], absurd])))
    assert found.rows is not None and len(found.rows.kept) == NUM - 1
    assert found.rows.time[0] == 1_600_000_000_000_000


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y-%m-%dT%H:%M:%S.1234567Z",
        "%Y-%m-%d %H:%M:%S.123456789Z",
        "%Y-%m-%d %I:%M:%S %p",
        "%Y/%m/%d %H:%M:%S",
    ],
)
def test_dates_of_every_writer_are_read(form: str, tmp_path: Path) -> None:
    first = 1_599_222_400  # of 2020-09-04, whose day could be a month
    when = [datetime.datetime.fromtimestamp(first + k, datetime.UTC).strftime(form) for k in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=when)))
    assert found.rows is not None and found.rows.time[0] // 10**6 == first


@pytest.mark.parametrize("role", ["user", "item", "time", "label"])
def test_a_list_is_no_user_item_time_or_label(role: str, tmp_path: Path) -> None:
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp", "label": "label"}
    made = log(**{columns[role]: [[index] for index in range(NUM)]})
    pq.write_table(pa.table(made), tmp_path / "log.parquet")
    said: dict[str, Any] = {role: columns[role]}
    for asked in (Asked(), Asked(**said)):
        with pytest.raises(UserError, match=f"log.parquet.*{columns[role]}.*list"):
            propose(str(tmp_path / "log.parquet"), asked=asked)


@pytest.mark.parametrize("hostile", ["a\nb = 1", 'x"y', "\x7f", "\x1b[31m", "\u2028[method]"])
def test_text_of_data_stays_within_a_comment(hostile: str) -> None:
    assert tomllib.loads(f"x = 1  {comment(hostile)}\n") == {"x": 1}
    assert "\x1b" not in comment(hostile)


def dates(form: str, num_days: int = 3) -> list[str]:
    """Days from the second of March on, twenty rows each."""
    return [
        (datetime.date(2020, 3, 2) + datetime.timedelta(index * num_days // NUM)).strftime(form) for index in range(NUM)
    ]


def first_day(found: Proposal) -> datetime.date:
    assert found.rows is not None
    return datetime.datetime.fromtimestamp(int(found.rows.time.min()) / 1e6, datetime.UTC).date()


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M%S"])
@pytest.mark.parametrize("as_parquet", [False, True])
def test_dates_that_are_written_as_one_number_are_dates(form: str, as_parquet: bool, tmp_path: Path) -> None:
    made = log(timestamp=[int(one) for one in dates(form)])
    if as_parquet:
        pq.write_table(pa.table(made), tmp_path / "log.parquet")
        found = propose(str(tmp_path / "log.parquet"))
    else:
        found = proposed(tmp_path, csv_of(made))
    assert found.options.time_format == form and first_day(found) == datetime.date(2020, 3, 2)


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"])
def test_day_and_month_are_told_apart_by_the_order_of_the_rows_or_asked_for(form: str, tmp_path: Path) -> None:
    days = [datetime.date(2020, 3, 2), datetime.date(2020, 3, 12), datetime.date(2020, 4, 5)]
    over_a_month = [days[index * 3 // NUM].strftime(form) for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=over_a_month)))
    assert found.options.time_format == form and "order of time" in found.notes["time_format"]
    shuffled = [over_a_month[index * 37 % NUM] for index in range(NUM)]
    with pytest.raises(UserError, match=r"is the day: say it, --time-format '.*' or --time-format"):
        proposed(tmp_path, csv_of(log(timestamp=shuffled)))
    assert first_day(proposed(tmp_path, csv_of(log(timestamp=shuffled)), time_format=form)) == datetime.date(2020, 3, 2)


def test_numbers_that_are_no_moments_are_told_to_give_the_order_alone(tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(timestamp=[44_000 + index / 4 for index in range(NUM)])))
    assert "only their order counts" in found.notes["time"]


@pytest.mark.parametrize(("name", "option"), [("user_id", "user"), ("timestamp", "time"), ("label", "label")])
def test_a_file_without_a_column_that_matters_is_refused_by_name(name: str, option: str, tmp_path: Path) -> None:
    more = {
        "session_id": [index % 9 for index in range(NUM)],
        "sent_day": [f"2020-01-{1 + index % 9:02d}" for index in range(NUM)],
    }
    write(tmp_path, "logs/1.csv", csv_of(log(**more)))
    write(tmp_path, "logs/2.csv", csv_of({one: values for one, values in log(**more).items() if one != name}))
    with pytest.raises(UserError, match=rf"2.csv: no column '{name}', which looks like the {option}.*--{option} "):
        propose(str(tmp_path / "logs"))


@pytest.mark.parametrize("column", ["label", "event_type"])
def test_a_mark_that_only_some_rows_have_is_no_log_of_positives(column: str, tmp_path: Path) -> None:
    made = log(**{column: ["x" if index % 3 == 0 else "" for index in range(NUM)]})
    made = made if column == "label" else {name: values for name, values in made.items() if name != "label"}
    with pytest.raises(UserError, match=r"is 'x' in every row that has one \(40 have none"):
        proposed(tmp_path, csv_of(made))


def test_words_for_nobody_among_numbers_are_told_and_may_be_said(tmp_path: Path) -> None:
    users = ["undefined" if index % 10 == 9 else "-" if index == 3 else index % 29 for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(user_id=users)))
    assert found.rows is not None and any("'-', 'undefined' of user_id" in one for one in found.rows.notes())
    said = proposed(tmp_path, csv_of(log(user_id=users)), missing=("undefined", "-"))
    assert said.rows is not None and len(said.rows.kept) == NUM - 7 and said.rows.user_ids.type == pa.int64()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["u1", "u2", "u3", "Undefined"], "'Undefined' of user_id, beside 3 other IDs, may stand for nobody"),
        ([*range(12), -1], "'-1' of user_id, beside 12 other IDs, may stand for nobody"),
        (["U1", "u1", "u2", "u3"], "1 of 4 values of user_id differ from another .* as 'U1' and 'u1' do"),
        (["+5", "5", "6", "7"], "1 of 4 values of user_id differ from another .* as '\\+5' and '5' do"),
        (["caf\u00e9", "cafe\u0301", "a"], "1 of 3 values of user_id differ from another"),
        (["u1", "u2", "u3"], ""),
        ([*range(12), -1, -2], ""),
    ],
)
def test_ids_that_may_be_nobody_or_another_are_told(values: list[Any], told: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(log(user_id=[values[index % len(values)] for index in range(NUM)])))
    assert found.rows is not None and len(found.rows.user_ids) == len(values)
    said = [one for one in found.rows.notes() if "user_id" in one]
    assert len(said) == bool(told) and re.search(told, "".join(said))


def test_one_value_that_is_no_time_is_none_and_several_are_refused(tmp_path: Path) -> None:
    times = [0 if index % 6 == 0 else 1_600_000_000 + index for index in range(NUM)]
    found = proposed(tmp_path, csv_of(log(timestamp=times)))
    assert found.rows is not None and len(found.rows.kept) == NUM - 10 and found.rows.form.time.is_recent
    assert found.notes["drop_incomplete"] == "missing: 10 x timestamp that is no time like the others"
    times[6] = 77
    with pytest.raises(UserError, match=r"timestamp is a time in most rows, and none in 10, like '0'"):
        proposed(tmp_path, csv_of(log(timestamp=times)))


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.decimal128(9, 2), pa.string()])
def test_a_number_that_means_missing_does_so_in_every_format(kind: pa.DataType, tmp_path: Path) -> None:
    users: Any = [-1 if index % 3 == 0 else index % 10 for index in range(NUM)]
    users = [Decimal(one) for one in users] if pa.types.is_decimal(kind) else users
    users = [str(one) for one in users] if kind == pa.string() else users
    pq.write_table(pa.table(log() | {"user_id": pa.array(users, kind)}), tmp_path / "log.parquet")
    found = propose(str(tmp_path / "log.parquet"), asked=Asked(missing=("-1",)))
    assert found.rows is not None and len(found.rows.kept) == NUM - 20
    assert -1 not in found.rows.user_ids.to_pylist()
