"""`mwuf init`: a label is understood as a whole or asked for, and what is proposed can be learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config.propose import Asked, propose
from mwuf_dist.data.init_config.write_config import write_config
from tests.data.log_files import NUM, csv_of, log, proposed, without


def _mostly(usual: list[Any], word: str) -> list[Any]:
    return [word if index % 7 == 5 else usual[index % len(usual)] for index in range(NUM)]


@pytest.mark.parametrize(
    ("name", "usual", "word"),
    [
        ("click", [0, 1, 0], "buy"),
        ("purchased", [0, 1, 0], "purchase"),
        ("label", ["no", "yes", "no"], "click"),
        ("label", ["f", "t"], "click"),
        ("clicks", [0, 1, 2, 3], "click"),
        ("rating", [1, 2, 3, 4, 5], "like"),
        ("event", [1, 2, 3], "buy"),
        ("type", [1, 2, 3], "buy"),
    ],
)
def test_a_word_among_numbers_is_no_positive(name: str, usual: list[Any], word: str, tmp_path: Path) -> None:
    text = csv_of(without("label", **{name: _mostly(usual, word)}))
    with pytest.raises(UserError, match=rf"column '{name}' looks like the label, but its values.*{word} \(8\).*Say it"):
        proposed(tmp_path, text)
    with pytest.raises(UserError, match=rf"{word} \(8\)\) do not say"):
        proposed(tmp_path, text, label=name)
    assert proposed(tmp_path, text, label=name, label_is=(word,)).options.label_is == (word,)
    if name != "type" and name != "event":
        found = proposed(tmp_path, text, missing=(word,)).options
        assert name in (found.label, found.label_from) and not found.label_is


@pytest.mark.parametrize(
    ("usual", "word"), [([0], "click"), (["no"], "click"), (["view", "cart", "1"], "buy"), (["-1"], "click")]
)
def test_a_word_beside_nothing_or_beside_words_is_a_positive(usual: list[Any], word: str, tmp_path: Path) -> None:
    found = proposed(tmp_path, csv_of(without("label", click=_mostly(usual, word))))
    assert found.options.label_is == (word,) and found.rows is not None and found.rows.label.sum() == 8


def test_a_line_of_names_that_is_read_as_data_makes_no_positive_of_its_label(tmp_path: Path) -> None:
    text = csv_of(without("label", click=log()["label"]))
    with pytest.raises(UserError, match=r"0 \(40\), 1 \(20\), click \(1\)\) do not say"):
        proposed(tmp_path, text, header=("u", "i", "t", "c"), user="u", item="i", time="t", label="c")


def _with_positives(places: set[int]) -> str:
    """A log of 1,200 rows whose first item is old and whose others are new."""
    num = 1200
    made = {"user_id": [one * 7 % 90 for one in range(num)], "timestamp": [1_600_000_000 + one for one in range(num)]}
    item = [one // 2 % 20 if one % 2 else 99 for one in range(num)]
    return csv_of(made | {"item_id": item, "label": [int(one in places) for one in range(num)]})


def test_a_proposal_without_a_positive_to_pretrain_on_is_refused(tmp_path: Path) -> None:
    few = proposed(tmp_path, _with_positives({3, 41}))
    with pytest.raises(UserError, match=r"to pretrain on 0 are positives, and nothing could be learnt.*--label-is"):
        write_config(few)
    enough = proposed(tmp_path, _with_positives({one for one in range(1200) if one % 3 == 0}))
    assert "nothing could be learnt" not in write_config(enough)


@pytest.mark.parametrize(("side", "name"), [("user", "user_id"), ("item", "item_id")])
def test_ids_of_a_type_that_is_not_read_are_refused_by_name(side: str, name: str, tmp_path: Path) -> None:
    made = pa.table(log() | {name: [{"id": one} for one in log()[name]]})
    pq.write_table(made, tmp_path / "log.parquet")
    with pytest.raises(UserError, match=rf"column '{name}' looks like the {side}, but its type is struct.*as text"):
        propose(str(tmp_path / "log.parquet"))
    pq.write_table(made.append_column("session_id", pa.array(log()["user_id"])), tmp_path / "log.parquet")
    if side == "user":
        with pytest.raises(UserError, match="--user session_id takes 'session_id' instead"):
            propose(str(tmp_path / "log.parquet"))
        assert propose(str(tmp_path / "log.parquet"), asked=Asked(user="session_id")).options.user == "session_id"


def test_an_object_beside_the_ids_is_no_id(tmp_path: Path) -> None:
    pq.write_table(pa.table(log() | {"user": [{"age": one % 7} for one in range(NUM)]}), tmp_path / "log.parquet")
    found = propose(str(tmp_path / "log.parquet"))
    assert found.options.user == "user_id" and "not read" in found.left_out["user"]


def test_words_in_any_language_that_may_say_what_happened_are_named(tmp_path: Path) -> None:
    happened = [("kaufen" if index % 7 == 5 else "ansehen") for index in range(NUM)]
    device = [("phone", "tv")[index // 7 % 2] for index in range(NUM)]
    found = proposed(tmp_path, csv_of(without("label", aktion=happened, device=device)))
    said = found.notes["negatives_per_positive"]
    assert "aktion may say what happened (--label aktion --label-is VALUE, of ansehen (52), kaufen (8))" in said
    assert "device" not in said


def test_the_numbers_of_users_and_items_are_those_of_ids_and_not_of_ways_to_write_them(tmp_path: Path) -> None:
    users = [f"{user}.0" if index % 20 < 10 else str(user) for index, user in enumerate(log()["user_id"])]
    found = proposed(tmp_path, csv_of(log(user_id=users)))
    assert found.notes["user"].startswith("10 users, by its name")
    assert found.notes["item"].startswith("12 items, by its name")
