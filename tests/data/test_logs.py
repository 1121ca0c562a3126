"""Own logs: the same split from every format, each quirk of real files by hand, each mistake with its place."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from mwuf_dist.config import DataConfig, SyntheticConfig, UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.readers.encode import to_float
from mwuf_dist.data.schema import RawDataset, row_column
from mwuf_dist.data.sources import logs, movielens, synthetic
from mwuf_dist.data.split import SPLITS
from tests.data.log_files import CLICKS, item_field, of_field, read, rows, write


@pytest.fixture(scope="module")
def world() -> pa.Table:
    """Rows of a generated log with all its fields beside them, in order of time but for the jitter."""
    config = SyntheticConfig(num_rows=6_000, num_users=80, num_items=60, seed=3)
    entities = synthetic.make_world(config)
    table = pa.Table.from_batches(synthetic.generate_batches(config))
    category = entities.items["category"].take(table["item"])
    tags = ["|".join(map(str, tags)) for tags in entities.items["tags"].take(table["item"]).to_pylist()]
    user = pa.array([f"user-{one:03d}" for one in table["user"].to_pylist()])
    return pa.table(
        {
            "user_id": user,
            "item_id": table["item"],
            "timestamp": table["time"],
            "clicked": table["label"],
            "category": category,
            "tags": tags,
        }
    )


def options(path: Path) -> LogsConfig:
    fields = (*item_field("category"), *item_field("tags", kind="multi_valued"))
    return LogsConfig(interactions=str(path), label="clicked", fields=fields)


def content(config: DataConfig, folder: Path) -> dict[str, Any]:
    prepared = prepare(replace(config, prepared_dir=str(folder)))
    out: dict[str, Any] = {}
    for split in SPLITS:
        for name, values in prepared.columns(split, ["user", "item", "label", "time", "row"]).items():
            out[f"{split}.{name}"] = values
    for side in ("user", "item"):
        entity = prepared.entity(side)
        out[f"{side}.raw_ids"] = entity.raw_ids
        for name, column in entity.columns.items():
            out[f"{side}.{name}"] = column.values
            out[f"{side}.{name}.offsets"] = column.offsets if column.offsets is not None else np.zeros(0)
    return out


def save(table: pa.Table, folder: Path, form: str) -> Path:
    """Writes the log in one of its forms."""
    folder.mkdir()
    halves = (table.slice(0, 2_500), table.slice(2_500))
    if form == "parquet":
        pq.write_table(table, folder / "log.parquet")
    elif form == "csv":
        csv.write_csv(table, folder / "log.csv")
    elif form == "csv.gz":
        csv.write_csv(table, folder / "plain")
        (folder / "log.csv.gz").write_bytes(gzip.compress((folder / "plain").read_bytes()))
        (folder / "plain").unlink()
    elif form == "tsv":
        csv.write_csv(table, folder / "log.tsv", csv.WriteOptions(delimiter="\t"))
    elif form == "folder of csv":
        for index, half in enumerate(halves):
            csv.write_csv(half, folder / f"part-{index}.csv")
    elif form == "folder of both, columns in another order":
        csv.write_csv(halves[0], folder / "part-0.csv")
        pq.write_table(halves[1].select(table.column_names[::-1]), folder / "part-1.parquet")
    else:
        lists = pa.array([tags.split("|") for tags in table["tags"].to_pylist()])
        at = table.column_names.index("tags")
        pq.write_table(table.set_column(at, "tags", lists), folder / "log.parquet")
    return folder


FORMS = ("csv", "csv.gz", "tsv", "folder of csv", "folder of both, columns in another order", "parquet with lists")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_prepared_data(form: str, world: pa.Table, tmp_path: Path) -> None:
    config = DataConfig(name="logs", old_above=100, warm_rows=10)
    expected = content(replace(config, logs=options(save(world, tmp_path / "a", "parquet"))), tmp_path / "prepared")
    found = content(replace(config, logs=options(save(world, tmp_path / "b", form))), tmp_path / "prepared")
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_movielens_read_as_own_logs_has_the_published_split(movielens_dir: Path, tmp_path: Path) -> None:
    dataset = movielens.read_folder(movielens_dir / "ml-1m")
    text = (movielens_dir / "ml-1m" / "ratings.dat").read_text().replace("::", ",")
    ratings = write(tmp_path, "ratings.csv", text)
    films = pa.table({"item_id": dataset.items["raw_id"], "year": dataset.items["year"]})
    csv.write_csv(films, tmp_path / "films.csv")
    header = ("user_id", "item_id", "rating", "timestamp")
    own = {"header": header, "label_from": "rating", "label_at_least": 4.0, "items": str(tmp_path / "films.csv")}
    found = read(ratings, **own, fields=item_field("year", kind="numeric"))
    for name in ("user", "label"):
        assert found.interactions[name].equals(dataset.interactions[name]), name
    seconds = found.interactions["time"].to_numpy() // 10**6
    np.testing.assert_array_equal(seconds, dataset.interactions["time"].to_numpy())
    films_of_rows = [table["raw_id"].to_numpy()[log["item"].to_numpy()] for log, table in _pairs(found, dataset)]
    np.testing.assert_array_equal(*films_of_rows)
    config = DataConfig(
        name="logs", logs=LogsConfig(interactions=str(ratings), **own), prepared_dir=str(tmp_path / "prepared")
    )
    counts = {name: prepare(config).num_rows(name) for name in SPLITS}
    assert counts == {"pretrain": 854_530, "warm_a": 19_440, "warm_b": 19_440, "warm_c": 19_440, "test": 58_409}


def _pairs(*datasets: RawDataset) -> list[tuple[pa.Table, pa.Table]]:
    return [(dataset.interactions, dataset.items) for dataset in datasets]


# ---- quirks


def test_ids_that_are_text_keep_every_letter(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "user_id,item_id,timestamp,clicked\n007,x,1,0\n7,x,2,1\n")
    assert rows(read(path)) == [("007", "x", 1, 0), ("7", "x", 2, 1)]


def test_ids_are_text_when_any_file_has_text(tmp_path: Path) -> None:
    write(tmp_path, "log/1.csv", "user_id,item_id,timestamp,clicked\n7,1,1,0\n8,2,2,1\n")
    pq.write_table(
        pa.table({"user_id": [7], "item_id": ["A1"], "timestamp": [3], "clicked": [True]}), tmp_path / "log/2.parquet"
    )
    assert rows(read(tmp_path / "log")) == [(7, "1", 1, 0), (8, "2", 2, 1), (7, "A1", 3, 1)]


def test_integers_that_pandas_made_floats_are_integers(tmp_path: Path) -> None:
    columns = {"user_id": [1.0, None, 2.0], "item_id": [5, 5, 6], "timestamp": [1, 2, 3], "clicked": [0, 1, 1]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert rows(read(tmp_path / "log.parquet", drop_incomplete=True)) == [(1, 5, 1, 0), (2, 6, 3, 1)]


def test_a_byte_order_mark_blank_lines_and_line_breaks_in_quotes_are_read(tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,timestamp,clicked,title\nu,a,1,0,"one\ntwo"\n\nu,b,2,1,"x, y"\n'
    dataset = read(write(tmp_path, "log.csv", text), fields=item_field("title"))
    assert rows(dataset) == [("u", "a", 1, 0), ("u", "b", 2, 1)]
    assert of_field(dataset, "item", "title") == {"a": 1, "b": 2}


def test_other_letters_and_other_delimiters_are_read_as_told(tmp_path: Path) -> None:
    text = "user_id;item_id;timestamp;clicked\nZoë;é;1;0\nZoë;ü;2;1\n"
    path = write(tmp_path, "log.csv", text, "latin-1")
    assert rows(read(path, delimiter=";", encoding="latin-1")) == [("Zoë", "é", 1, 0), ("Zoë", "ü", 2, 1)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (("30", "10"), (30, 10)),
        (("30.5", "10"), (30.5, 10)),
        (("30.0", "10.0"), (30, 10)),
        (("1700000000", "1700000000.25"), (1_700_000_000, 1_700_000_000.25)),
        (("1700000000123456", "1700000000000000"), (1_700_000_000.123456, 1_700_000_000)),
        (("1970-01-02", "1970-01-01"), (86_400, 0)),
        (("1970-01-01 00:00:02", "1970-01-01T00:00:01.5"), (2, 1.5)),
        (("1970-01-01T01:00:02+01:00", "1970-01-01T00:00:01Z"), (2, 1)),
    ],
)
def test_times_are_numbers_or_dates_and_whole_ones_agree_with_fractions(
    times: tuple[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    text = f"user_id,item_id,timestamp,clicked\nu,a,{times[0]},1\nu,b,{times[1]},0\n"
    assert tuple(row[2] for row in rows(read(write(tmp_path, "log.csv", text)))) == expected


def test_times_of_any_other_form_are_read_by_their_format(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked\nu,a,02/01/1970 00:00,1\nu,b,01/01/1970 00:01,0\n"
    dataset = read(write(tmp_path, "log.csv", text), time_format="%d/%m/%Y %H:%M")
    assert [row[2] for row in rows(dataset)] == [86_400, 60]


def test_without_a_time_the_order_of_the_rows_is_the_time(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "log.csv", CLICKS), time="")
    assert dataset.interactions["time"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rule", "kept"), [("drop", [0, 1, 3, 4]), ("keep", [0, 1, 2, 3, 4]), ("first_of_pair", [1, 4])]
)
def test_repeated_rows_count_as_the_rule_says(rule: str, kept: list[int], tmp_path: Path) -> None:
    body = ["u,a,2,1", "u,a,1,0", "u,a,2,1", "u,a,2,0", "v,a,2,1"]
    path = write(tmp_path, "log.csv", "\n".join(["user_id,item_id,timestamp,clicked", *body, ""]))
    found = [f"{user},{item},{time},{label}" for user, item, time, label in rows(read(path, repeated_rows=rule))]
    assert found == [body[index] for index in kept]


@pytest.mark.parametrize(("rule", "num"), [("drop", 2), ("keep", 0), ("first_of_pair", 0)])
def test_a_moment_with_both_labels_is_told(rule: str, num: int, tmp_path: Path) -> None:
    body = ["u,a,2,1", "u,a,1,0", "u,a,2,0", "u,a,2,0", "u,a,2,1", "v,a,2,1", "v,b,3,0", "v,b,3,1", "v,b,4,1"]
    path = write(tmp_path, "log.csv", "\n".join(["user_id,item_id,timestamp,clicked", *body, ""]))
    said = [note for note in read(path, repeated_rows=rule).notes if "label 0 and with label 1" in note]
    assert [note[: note.index(":")] for note in said] == [
        f"{num} times one user, item and time stands with label 0 and with label 1 (as user 'u' and item 'a')"
    ] * bool(num)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1,500", "12,250", "3"], [1500, 12_250, 3]),
        (["1,500", "12,25", "1.250,5"], [1.5, 12.25, 1250.5]),
        (["1,500", "0,125"], [1.5, 0.125]),  # no thousands begin with 0
        (["$ 1,234.50", "-7"], [1234.5, -7]),
    ],
)
def test_commas_divide_thousands_unless_a_value_tells_otherwise(texts: list[str], numbers: list[float]) -> None:
    assert to_float(pa.array(texts)).tolist() == numbers


@pytest.mark.parametrize("side", ["item", "row"])
def test_infinite_numbers_are_unknown_and_counted(side: Any, tmp_path: Path) -> None:
    numbers = [1, "inf", 2, "-Infinity", "nan"]
    lines = ["user_id,item_id,timestamp,clicked,price", *(f"u,i{k},1,{k % 2},{n}" for k, n in enumerate(numbers)), ""]
    field = LogsField(name="price", side=side, kind="numeric")
    dataset = read(write(tmp_path, "log.csv", "\n".join(lines)), fields=(field,))
    of = {"item": dataset.items, "row": dataset.interactions}[side]
    assert of["price" if side == "item" else row_column("price")].to_pylist() == [1, 0, 2, 0, 0]
    assert [note for note in dataset.notes if "infinite" in note] == [
        f"field 'price': 2 of 5 {side}s have an infinite number, which counts as unknown"
    ]


def test_an_infinite_rating_is_no_label(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "user_id,item_id,timestamp,stars\nu,a,1,3\nu,b,2,5\nu,c,3,inf\n")
    with pytest.raises(UserError, match=r"log\.csv:4: stars is 'inf', no number that could be at least 4"):
        read(path, label_from="stars", label_at_least=4.0)


def test_label_rules(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,act,stars,yes\nu,a,1,view,3,True\nu,b,2,buy,4,false\nu,c,3,cart,4.5,1.0\n"
    path = write(tmp_path, "log.csv", text)

    def labels(**rule: Any) -> list[int]:
        return [row[3] for row in rows(read(path, **rule))]

    assert labels(label_from="act", label_is=("buy", "cart")) == [0, 1, 1]
    assert labels(label_from="stars", label_at_least=4.0) == [0, 1, 1]
    assert labels(label="yes") == [1, 0, 1]


def test_a_categorical_field_has_an_index_per_value_and_0_for_missing_and_rare_ones(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked,color\nu,a,1,0,red\nu,b,1,1,blue\nu,c,1,1,red\nu,d,1,1,NULL\nu,e,1,1,\n"
    path = write(tmp_path, "log.csv", text)
    assert of_field(read(path, fields=item_field("color")), "item", "color") == {"a": 2, "b": 1, "c": 2, "d": 0, "e": 0}
    rare = read(path, fields=item_field("color", min_count=2))
    assert of_field(rare, "item", "color") == {"a": 1, "b": 0, "c": 1, "d": 0, "e": 0}
    assert rare.fields[1].size == 2


def test_a_field_in_the_interactions_has_its_earliest_value(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked,color\nu,a,9,0,red\nu,a,3,1,blue\nu,a,1,1,\nu,b,1,1,red\n"
    dataset = read(write(tmp_path, "log.csv", text), fields=item_field("color"))
    assert dataset.fields[1].size == 3 and of_field(dataset, "item", "color") == {"a": 1, "b": 2}


def test_a_multi_valued_field_lists_distinct_values_in_order(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked,tags\nu,a,1,0,x; y;x\nu,b,1,1,\"['y', 'w']\"\nu,c,1,1,;\nu,d,1,1,\n"
    path = write(tmp_path, "log.csv", text.replace("'y', 'w'", "'y'; 'w'"))
    field = item_field("tags", kind="multi_valued", separator=";")
    assert of_field(read(path, fields=field), "item", "tags") == {"a": [2, 3], "b": [3, 1], "c": [0], "d": [0]}
    rare = item_field("tags", kind="multi_valued", separator=";", min_count=2)
    assert of_field(read(path, fields=rare), "item", "tags") == {"a": [1], "b": [1], "c": [0], "d": [0]}


def test_a_numeric_field_becomes_quantile_buckets(tmp_path: Path) -> None:
    numbers = [*range(12), "", "inf"]
    body = "".join(f"u,{index:02d},1,{index % 2},{number}\n" for index, number in enumerate(numbers))
    path = write(tmp_path, "log.csv", "user_id,item_id,timestamp,clicked,price\n" + body)
    few = of_field(read(path, fields=item_field("price", kind="numeric", buckets=3)), "item", "price")
    assert list(few.values()) == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0, 0]
    many = of_field(read(path, fields=item_field("price", kind="numeric", buckets=50)), "item", "price")
    assert list(many.values()) == [*range(1, 13), 0, 0]


def test_side_tables_are_joined_and_may_lack_or_repeat_or_add_ids(tmp_path: Path) -> None:
    log = write(tmp_path, "log.csv", CLICKS)
    items = write(tmp_path, "items.csv", "item_id,shop\nz,s9\na,\na,s1\na,s2\n")
    users = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": ["u3", "u1"], "age": [30, 20]}), users)
    fields = (*item_field("maker", column="shop"), LogsField(name="age", side="user"))
    dataset = read(log, items=str(items), users=str(users), fields=fields)
    assert of_field(dataset, "item", "maker") == {"a": 1, "b": 0}
    assert of_field(dataset, "user", "age") == {"u1": 1, "u2": 0, "u3": 2}
    assert [field.name for field in dataset.fields] == ["user_id", "age", "maker"]


@pytest.mark.parametrize("form", ["a line a value", "lists of text", "lists"])
def test_several_rows_of_an_id_give_a_multi_valued_field_all_their_values_and_any_other_its_first(
    tmp_path: Path, form: str
) -> None:
    log = write(tmp_path, "log.csv", CLICKS)
    groups = {"a line a value": [["x"], ["w"], ["z"], ["x"], None], "lists of text": ["x|w", "v", "z|w", "w", None]}
    tags = groups["a line a value"] if form != "lists of text" else [one and one.split("|") for one in groups[form]]
    column = pa.array(tags) if form == "lists" else pa.array([one and "|".join(one) for one in tags])
    ids = ["a", "b", "a", "a", "b"]
    pq.write_table(pa.table({"item_id": ids, "tag": column, "shop": ["s1", "s2", "s3", None, "s2"]}), tmp_path / "i.pq")
    fields = (*item_field("tag", kind="multi_valued"), *item_field("shop"))
    dataset = read(log, items=str(tmp_path / "i.pq"), fields=fields)
    words = sorted({one for many in tags if many for one in many})
    expected: dict[str, list[int]] = {}
    for one, many in zip(ids, tags, strict=True):
        of_id = expected.setdefault(one, [])
        of_id += [place for word in many or () if (place := 1 + words.index(word)) not in of_id]
    assert of_field(dataset, "item", "tag") == expected
    assert of_field(dataset, "item", "shop") == {"a": 1, "b": 2}
    said = [note for note in dataset.notes if "several rows" in note]
    assert said and said[0].startswith("field 'shop': 1 items have several rows with other values"), dataset.notes


def test_side_tables_may_lie_among_the_interactions(tmp_path: Path) -> None:
    write(tmp_path, "logs/day=1/log.csv", CLICKS)
    items = write(tmp_path, "logs/items.csv", "item_id,shop\na,s1\n")
    dataset = read(tmp_path / "logs", items=str(items), fields=item_field("shop"))
    assert len(rows(dataset)) == 4 and of_field(dataset, "item", "shop") == {"a": 1, "b": 0}


def test_paths_are_looked_up_in_the_data_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "mine/log.csv", CLICKS)
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path))
    assert len(rows(read(Path("mine/log.csv")))) == 4


def test_prepared_data_is_made_again_when_a_file_changes(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", CLICKS)
    config = DataConfig(name="logs", logs=LogsConfig(interactions=str(path), label="clicked"))
    first = logs.fingerprint(config)
    assert logs.fingerprint(config) == first
    os.utime(path, ns=(1, 1))
    assert logs.fingerprint(config) == first
    path.write_text(CLICKS.swapcase())
    assert logs.fingerprint(config) != first


def test_items_without_a_field_share_one_at_the_index_of_an_item_never_seen(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "log.csv", CLICKS))
    assert [(field.name, field.size) for field in dataset.fields if field.side == "item"] == [("any_item", 1)]
    assert set(dataset.items["any_item"].to_pylist()) == {0}
