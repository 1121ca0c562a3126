"""`mwuf init`: how side tables are written, what a row weighs, and fields that change from row to row."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from mwuf_dist.config import DataConfig, UserError, build
from mwuf_dist.config.logs import TableForm
from mwuf_dist.data.init_config.propose import Asked, propose
from mwuf_dist.data.init_config.write_config import options_of
from mwuf_dist.data.sources.logs import fingerprint, join
from tests.data.log_files import NUM, csv_of, log, proposed


def test_side_tables_without_names_and_written_otherwise_than_the_log_are_read_and_the_config_says_how(
    tmp_path: Path,
) -> None:
    items, users, path = tmp_path / "items.txt", tmp_path / "users.tsv", tmp_path / "log.csv"
    items.write_text("".join(f"{item}|{'red' if item % 2 else 'blue'}|{item % 7}\n" for item in range(900, 912)))
    users.write_text("".join(f"{user}\t'{user % 3}'\n" for user in range(10)), encoding="utf-16")
    path.write_text(csv_of(log()))
    with pytest.raises(UserError, match=r"items\.txt: the first line .* --items-header item_id"):
        propose(str(path), "", str(items))
    found = propose(
        str(path),
        str(users),
        str(items),
        Asked(items_header=("item_id", "color", "size"), users_header=("user_id", "group"), users_quote="'"),
    )
    assert found.options.items_form == TableForm(header=("item_id", "color", "size"), delimiter="|")
    # A tab is what stands in .tsv files anyway.
    assert found.options.users_form == TableForm(header=("user_id", "group"), quote="'", encoding="utf-16")
    assert found.options.delimiter == "" and found.options.encoding == "utf-8"
    made = tomllib.loads("\n".join(options_of(found)))
    assert build({"data": {"name": "logs", "logs": made}}).data.logs == replace(found.options, fields=())
    assert found.rows is not None
    sizes = {field.name: field.size for field in join(found.rows, found.options).fields}
    assert (sizes["color"], sizes["size"], sizes["group"]) == (3, 8, 4)


def test_a_table_with_several_rows_of_an_id_gives_fields_with_several_values(tmp_path: Path) -> None:
    items, path = tmp_path / "items.csv", tmp_path / "log.csv"
    rows = [
        (900 + row // 3, f"g{row % 5}", 4000 + row % 11, row * 10, "one" if row // 3 % 2 else "two")
        for row in range(36)
    ]
    items.write_text("item_id,genre,also_viewed,price,shop\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    path.write_text(csv_of(log()))
    found = propose(str(path), items=str(items))
    kinds = {field.name: field.kind for field in found.options.fields}
    assert kinds == {"genre": "multi_valued", "also_viewed": "multi_valued", "price": "numeric", "shop": "categorical"}
    assert "the values of all of them" in found.notes["field genre"]
    assert "the first counts" in found.notes["field price"] and "several" not in found.notes["field shop"]


def test_words_among_numbers_and_columns_of_a_name_that_is_taken_are_told(tmp_path: Path) -> None:
    items, path = tmp_path / "items.csv", tmp_path / "log.csv"
    rows = [(item, "call us" if item == 903 else 3.5 * item, 1) for item in range(900, 912)]
    items.write_text("item_id,price,label\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    path.write_text(csv_of(log()))
    found = propose(str(path), items=str(items))
    assert [field.kind for field in found.options.fields] == ["categorical"]
    assert "'call us' stand among 11 numbers: with --missing 'call us'" in found.notes["field price"]
    assert found.left_out["label of the table of items"] == "another column has this name"
    again = propose(str(path), items=str(items), asked=Asked(missing=("call us",)))
    assert [field.kind for field in again.options.fields] == ["numeric"]


def test_data_prepared_before_there_were_forms_of_tables_keep_their_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(csv_of(log()))
    options = propose(str(tmp_path / "log.csv")).options
    plain = fingerprint(DataConfig(name="logs", logs=options))
    assert not {"items_form", "users_form", "constant_share"} & plain.keys()
    other = replace(options, items_form=TableForm(header=("item_id",)))
    assert fingerprint(DataConfig(name="logs", logs=other)) != plain


def test_a_weight_is_no_feature_and_the_config_says_what_it_may_be(tmp_path: Path) -> None:
    weights = [(row * 7) % 5 + 0.5 for row in range(NUM)]
    for name in ("sample_weight", "weight", "importanceWeight"):
        found = proposed(tmp_path, csv_of(log(**{name: weights})), name=f"{name}.csv")
        assert f"weight = {name!r} takes it so" in found.left_out[name]
        assert not found.options.fields
    of_items = [item % 5 + 0.5 for item in log()["item_id"]]
    found = proposed(tmp_path, csv_of(log(weight=of_items)), name="kg.csv")
    assert [(field.name, field.side) for field in found.options.fields] == [("weight", "item")]


def test_a_field_that_changes_from_row_to_row_is_said_with_its_share(tmp_path: Path) -> None:
    moods = [f"m{index // 10 % 2}" if user in (3, 4) else "m" for index, user in enumerate(log()["user_id"])]
    path = tmp_path / "log.csv"
    path.write_text(csv_of(log(mood=moods)))
    assert "80.0% of the users" in propose(str(path)).left_out["mood"]
    found = propose(str(path), asked=Asked(constant_share=0.8))
    assert found.options.constant_share == 0.8 and [one.name for one in found.options.fields] == ["mood"]
    assert found.rows is not None
    assert not [note for note in join(found.rows, found.options).notes if "mood" in note]
    (note,) = [one for one in join(found.rows, replace(found.options, constant_share=0.9)).notes if "mood" in one]
    assert "80.0% of the users with several rows have one value of column 'mood'" in note
