"""Logs as databases, spreadsheets and programs export them: the right value, or what to do about it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.readers import ids
from tests.data.log_files import NUM, csv_of, log, proposed

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
    with pytest.raises(UserError, match=r"or year: say it.*'%d/%m/%y'.*'%y/%m/%d'"):
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
        (["1e+05", "99999", "2.5e+05"], [99999, 100000, 250000]),  # R
        (["9.010000000000000000e+02", "1.000000000000000000e+00"], [1, 901]),  # NumPy
        (["1.23457E+11", "9"], ["1.23457E+11", "9"]),  # a spreadsheet: its last digits are lost
        (["12e4", "3"], ["12e4", "3"]),  # a hash
        (["1.5e+00", "2"], ["1.5e+00", "2"]),
    ],
)
def test_a_whole_number_with_a_power_of_ten_is_an_id_of_its_digits(written: list[str], expected: list[Any]) -> None:
    assert ids.encode_ids(pa.chunked_array([written]))[1].to_pylist() == expected
