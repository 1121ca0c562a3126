"""Vectors of items: standardised by old items alone, refused with their place where they are wrong, made from text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mwuf_dist.cli import main
from mwuf_dist.config import Config, UserError, build
from mwuf_dist.data.init_config.propose import Asked, propose
from mwuf_dist.data.init_config.write_config import write_config
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.text_vectors import TextModel, fit
from mwuf_dist.data.vectors import matrix
from tests.serving.own_logs import NUM_OLD, make_logs

SIZE = 3
IDS = [*range(100, 120), *range(900, 930)]


def some_vectors(seed: int = 0) -> dict[int, list[float] | None]:
    """A vector for each item of the log but old 103 and new 905."""
    random = np.random.default_rng(seed)
    made: dict[int, list[float] | None] = {item: (5 + 3 * random.normal(size=SIZE)).tolist() for item in IDS}
    return made | {103: None, 905: None}


def write(folder: Path, vectors: dict[int, Any], kind: pa.DataType | None = None, **more: list[Any]) -> Config:
    """The log, its table of items, and their config; `prepared` lies beside them."""
    folder.mkdir(exist_ok=True)
    pa_csv.write_csv(make_logs().drop_columns(["color", "price"]), folder / "log.csv")
    column = pa.array(list(vectors.values()), kind or pa.list_(pa.float64()))
    pq.write_table(pa.table({"item_id": [*vectors], "cover": column, **more}), folder / "items.parquet")
    own = {"interactions": str(folder / "log.csv"), "items": str(folder / "items.parquet"), "label": "label"}
    own |= {"fields": [{"name": "cover", "side": "item", "kind": "vector"}]}
    data = {"name": "logs", "old_above": 50, "warm_rows": 4, "prepared_dir": str(folder / "prepared"), "logs": own}
    return build({"data": data})


def covers(prepared: Prepared) -> dict[int, np.ndarray]:
    items = prepared.entity("item")
    return dict(zip(items.raw_ids.tolist(), items.columns["cover"].values, strict=True))


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), SIZE), pa.large_list(pa.float64())])
def test_vectors_are_standardised_by_old_items_and_missing_ones_are_their_mean(
    tmp_path: Path, kind: pa.DataType
) -> None:
    vectors = some_vectors()
    prepared = prepare(write(tmp_path, vectors, kind).data)
    assert prepared.num_old_items == NUM_OLD
    old = np.array([vectors[item] for item in range(100, 120) if vectors[item] is not None])
    found = covers(prepared)
    for item, vector in vectors.items():
        expected = np.zeros(SIZE) if vector is None else (np.array(vector) - old.mean(0)) / old.std(0)
        np.testing.assert_allclose(found[item], expected, rtol=1e-5, atol=1e-6)  # float32
    assert "field cover: 2 of 50 items have no vector: they get the old items' mean" in prepared.notes


def test_nothing_of_a_new_item_moves_another_items_vector(tmp_path: Path) -> None:
    vectors = some_vectors()
    before = covers(prepare(write(tmp_path / "one", vectors).data))
    after = covers(prepare(write(tmp_path / "two", vectors | {910: [1e3] * SIZE}).data))
    assert not np.array_equal(before.pop(910), after.pop(910))
    for item, vector in before.items():
        np.testing.assert_array_equal(vector, after[item])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({110: [1.0, 2.0]}, r"items.parquet: row 10 .*cover is a vector of 2 numbers, and row 0 has 3"),
        ({110: [1.0, None, 2.0]}, r"items.parquet: row 10 .*cover has a number that is missing or not finite"),
        ({110: [1.0, float("inf"), 2.0]}, r"items.parquet: row 10 .*not finite \(1 vectors have\)"),
        (dict.fromkeys(IDS), "no item has a vector"),
        (dict.fromkeys(range(100, 120)), "no old item has a vector"),
    ],
)
def test_a_wrong_vector_is_refused_with_its_place(tmp_path: Path, wrong: dict[int, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(write(tmp_path, some_vectors() | wrong).data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": "user"}, "a vector is a column of the items"),
        ({"column": "item_name"}, "column 'item_name' has type string, and its field is a vector"),
        ({"column": "nowhere"}, "no column 'nowhere' in data.logs.items"),
    ],
)
def test_a_field_that_is_no_vector_is_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    config = write(tmp_path, some_vectors(), item_name=[f"name {item}" for item in IDS])
    values: dict[str, Any] = {"interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.parquet")}
    fields = [{"name": "cover", "side": "item", "kind": "vector"} | change]
    data = {"name": "logs", "prepared_dir": config.data.prepared_dir, "logs": values | {"label": "label"}}
    data["logs"] |= {"fields": fields}
    with pytest.raises(UserError, match=words):
        prepare(build({"data": data}).data)


def test_a_file_of_vectors_goes_with_every_data_set(tmp_path: Path) -> None:
    values = {"name": "synthetic", "old_above": 60, "warm_rows": 8, "prepared_dir": str(tmp_path / "prepared")}
    values |= {"synthetic": {"num_rows": 10_000, "num_users": 100, "num_items": 150}}
    plain = prepare(build({"data": values}).data)
    ids = plain.entity("item").raw_ids
    random = np.random.default_rng(0)
    vectors = {int(item): random.normal(size=2) for item in ids[::-1]}
    table = {"item_id": pa.array([str(item) for item in vectors]), "cover": list(vectors.values())}
    pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    made = prepare(build({"data": values | {"item_vectors": str(tmp_path / "vectors.parquet")}}).data)
    assert made.path != plain.path and made.checksum != plain.checksum
    scale = made.manifest["vectors"]["cover"]
    for item, vector in covers(made).items():
        np.testing.assert_allclose(vector * scale["deviation"] + scale["mean"], vectors[item], rtol=1e-5, atol=1e-6)
    pq.write_table(pa.table(table | {"item_id": [f"x{item}" for item in vectors]}), tmp_path / "vectors.parquet")
    with pytest.raises(UserError, match="none of its 1?[0-9]+ items is in the data"):
        prepare(build({"data": values | {"item_vectors": str(tmp_path / "vectors.parquet")}}).data)


def test_init_proposes_a_field_for_a_column_of_vectors_of_one_length(tmp_path: Path) -> None:
    ragged = [[0.5] * (1 + item % 3) for item in IDS]
    write(tmp_path, some_vectors(), ragged=ragged)
    found = propose(str(tmp_path / "log.csv"), "", str(tmp_path / "items.parquet"), Asked())
    assert [(one.name, one.kind, one.side) for one in found.options.fields] == [("cover", "vector", "item")]
    assert "ragged" in found.left_out and "cover" not in found.left_out
    assert 'kind = "vector"  # 3 numbers of each item' in write_config(found)


TEXTS = ["red wine of spain", "white wine of spain", "red wines of italy", "brass trumpet", "brass trombone"]


def test_texts_with_words_and_pieces_of_words_in_common_have_vectors_that_are_alike() -> None:
    vectors = fit(TEXTS, ("name",), 3).transform(TEXTS)
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    assert cosine[:3, :3].min() > cosine[:3, 3:].max() and cosine[3, 4] > cosine[:3, 3:].max()


def test_items_that_come_later_get_vectors_of_the_same_meaning(tmp_path: Path) -> None:
    table = pa.table({"item_id": range(len(TEXTS)), "name": TEXTS, "kinds": [["a", "b"], None, ["a"], ["c"], ["c"]]})
    pq.write_table(table, tmp_path / "items.parquet")
    later = pa.table({"item_id": [90, 91], "name": [TEXTS[2], None], "kinds": [["a"], None]})
    pq.write_table(later, tmp_path / "later.parquet")
    made, again = tmp_path / "vectors.parquet", tmp_path / "later-vectors.parquet"
    for arguments in (
        ["items.parquet", "--fields", "name,kinds", "--size", "3", "--output", str(made)],
        ["later.parquet", "--like", str(made), "--output", str(again)],
    ):
        with pytest.raises(SystemExit) as end:
            main(["vectors", str(tmp_path / arguments[0]), *arguments[1:]])
        assert end.value.code == 0
    old, new = (pq.read_table(path)["text_vector"].combine_chunks() for path in (made, again))
    np.testing.assert_array_equal(matrix(new)[0], matrix(old)[2])
    assert new.is_valid().to_pylist() == [True, False] and old.type.list_size == 3
    with pytest.raises(UserError, match="not a file of `mwuf vectors`"):
        TextModel.from_file(tmp_path / "items.parquet")
