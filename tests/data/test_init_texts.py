"""`mwuf init`: texts that are lists, vectors or objects are divided into the right values, or told to be no field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mwuf_dist.data.init_config.fields import kind_of
from mwuf_dist.data.init_config.propose import propose
from mwuf_dist.data.init_config.write_config import write_config
from mwuf_dist.data.readers import encode
from tests.data.log_files import csv_of, write

TAGS = ["Sci Fi", "War Film", "Rom Com", "Art House", "Film Noir"]
SEVERAL = [[TAGS[(one + k * k) % 5] for k in range(1 + one % 3)] for one in range(12)]
SINGLETONS = [[f"Tom Hanks {one}", f"Meg Ryan {one}"] for one in range(12)]
NAMES = [["Smith, John", f"Doe, Jane {one % 4}"] for one in range(12)]
LINES = ["['Sci Fi'\n 'War Film']", "['Rom Com' \"it's\"]", "['Sci Fi']"]


def _of(texts: list[str]) -> tuple[str, str, int, str]:
    return kind_of("x", pa.chunked_array([[one for one in texts for _ in range(3)]]))


def _values(lists: list[list[Any]]) -> list[list[str]]:
    return [[str(one) for one in values] for values in lists]


def _java(values: list[Any]) -> str:
    return f"[{', '.join(map(str, values))}]"


@pytest.mark.parametrize(
    ("texts", "separator", "expected"),
    [
        ([str(one) for one in SEVERAL], ",", SEVERAL),
        ([str(one) for one in SINGLETONS], ",", SINGLETONS),
        ([_java(one) for one in SINGLETONS], ",", SINGLETONS),
        ([str(tuple(one)) for one in SINGLETONS], ",", SINGLETONS),
        ([f"{{{str(one)[1:-1]}}}" for one in SINGLETONS], ",", SINGLETONS),
        ([_java(one).replace(", ", "|") for one in SINGLETONS], "|", SINGLETONS),
        ([str(one) for one in NAMES], "','", NAMES),
        ([str(one).replace("'", '"') for one in NAMES], "','", NAMES),
        ([str(np.array(one)) for one in SEVERAL], "' '", SEVERAL),
        ([str(np.array(one)) for one in NAMES], "' '", NAMES),
        (LINES, "' '", [["Sci Fi", "War Film"], ["Rom Com", "it's"], ["Sci Fi"]]),
        (["[35 1 23]", "[ 4  7 12]", "[1\n 2]"], " ", [[35, 1, 23], [4, 7, 12], [1, 2]]),
        ([str([one]) for one in TAGS], ",", [[one] for one in TAGS]),
        (["[7.5, 8]", "[7, 7.5, 8]", "[9]", "[]"], ",", [[7.5, 8], [7, 7.5, 8], [9], []]),
    ],
)
def test_lists_are_divided_where_their_values_end(texts: list[str], separator: str, expected: list[list[Any]]) -> None:
    assert _of(texts) == ("multi_valued", separator, 1, "")
    parts = encode.split(pa.array(texts), separator)
    found = [[one for one in encode.words_of(pa.array(values)).to_pylist() if one] for values in parts.to_pylist()]
    assert found == _values(expected)


_DRAWN = np.random.default_rng(0).normal(size=(12, 4))


@pytest.mark.parametrize(
    "texts",
    [
        [str(one) for one in _DRAWN],
        [str(np.round(one)) for one in _DRAWN],
        [str(one.tolist()) for one in _DRAWN],
        [str(np.tile(one, 300)) for one in _DRAWN],  # with three points, on several lines
        [str(one) for one in _DRAWN * 1e-7],
        [f"[0.{one}, {one}.5, 1]" for one in range(12)],
        [f"{one}.25;-{one};0" for one in range(12)],
        ["[nan 1. 2.]", "[0. 1. 3.]"],
        ["0.5 1.5 2.5", "0.5 1.5 2.5 3.5"],
    ],
)
def test_vectors_are_no_words_however_they_are_printed(texts: list[str]) -> None:
    assert "it looks like vectors; in Parquet, as lists of numbers" in _of(texts)[3]


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["{16: 'Comedy', 3: 'x'}", "{16: 'Drama'}", "{}"], "objects"),
        (["{brand: Rom Com, n: 1}", "{brand: Art, n: 2}"], "objects"),
        (['{brand:"x"}', '{brand:"y"}'], "objects"),
        (['{"a": 1}', "{}"], "objects"),
        (["[['a', 'b'], ['c']]", "[['b'], ['a']]"], "lists of lists"),
        (['[["a",1],["b",2]]', '[["a",2]]', "[]"], "lists of lists"),
        (["{{a,b},{c,d}}", "{{a,c},{c,d}}"], "lists of lists"),
        (["[('a', 1), ('b', 2)]", "[('a', 2)]"], "lists of lists"),
    ],
)
def test_objects_and_lists_of_lists_are_no_words_however_they_are_written(texts: list[str], what: str) -> None:
    assert f"its values are {what} written as text, as {texts[0]!r} is" in _of(texts)[3]


@pytest.mark.parametrize(
    ("texts", "kind", "separator"),
    [
        (["[REC]", "[[Alien]]", "{Box}", *(f"Film {one} of many" for one in "abcdef")], "multi_valued", " "),
        (["(10, 20]", "(20, 30]", "(30, 40]"], "categorical", ""),
        (["[0-10)", "[10-20)", "[20-30)"], "categorical", ""),
        (["[48.85, 2.35]", "[52.52, 13.40]", "[40.71, -74.01]"], "categorical", ""),
        (["{genre:war,mood:dark}", "{genre:art,mood:dark}", "{genre:war,mood:light}"], "multi_valued", ","),
        (["{12:30,13:00}", "{12:30,14:00}", "{13:00,14:00}"], "multi_valued", ","),
        (["7|7.5|8", "7.5|8", "7|8"], "multi_valued", "|"),
        (["10 20 30", "20 30 40", "10 30 40", "10 20 40"], "multi_valued", " "),
        (["1.2.3", "1.2.4", "1.3.0"], "categorical", ""),
        (["(Smith)", "(Jones)", "(Brown)"], "categorical", ""),
    ],
)
def test_words_that_only_look_like_them_stay(texts: list[str], kind: str, separator: str) -> None:
    found = _of(texts)
    assert found[:2] == (kind, separator) and not found[3]


def test_a_field_that_ends_with_no_value_is_left_out(tmp_path: Path) -> None:
    """Words of titles count from two items on, and here two of the three items with a title have no row."""
    num = 1200
    made = {
        "user_id": [one * 7 % 90 for one in range(num)],
        "timestamp": list(range(1_600_000_000, 1_600_000_000 + num)),
    }
    made |= {"item_id": [one % 30 for one in range(num // 2)] + [1] * (num // 2), "label": [0, 1, 0] * (num // 3)}
    titles = {1: "a b c", 98: "a b d", 99: "c b d"}
    path = write(tmp_path, "log.csv", csv_of(made))
    write(tmp_path, "items.csv", csv_of({"item_id": list(titles), "spoken": list(titles.values())}))
    found = propose(str(path), items=str(tmp_path / "items.csv"))
    assert [(one.name, one.separator) for one in found.options.fields] == [("spoken", " ")]
    text = write_config(found)
    assert "[[data.logs.fields]]" not in text
    assert "# Column 'spoken' is left out: each of its values stands too seldom to be learnt." in text
