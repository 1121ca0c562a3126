"""Fields of items never seen get the indices that the run's own items with the same words have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from mwuf_dist.config import Config, UserError, build
from mwuf_dist.data import vocabulary
from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import VOCABULARY_FILE, Prepared
from mwuf_dist.serving.warm.interactions import Columns, log_options
from mwuf_dist.serving.warm.item_fields import read_fields

NUM_ITEMS = 60


@pytest.fixture(scope="module", params=["with vocabularies", "prepared before they were kept"])
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Prepared, Path]:
    """Own logs with text IDs, a side table of items, and a field in the interactions."""
    folder, random = tmp_path_factory.mktemp("logs"), np.random.default_rng(0)
    item = np.concatenate([np.repeat(np.arange(20), 70), np.repeat(np.arange(20, NUM_ITEMS), 14)])
    item = item[random.permutation(len(item))]
    rows = {
        "who": [f"u{one}" for one in random.integers(30, size=len(item))],
        "what": [f"i{one:02d}" for one in item],
        "clicked": random.integers(2, size=len(item)),
        "when": np.arange(len(item)),
        "maker": [f"maker {one % 7}" for one in item],
    }
    pa_csv.write_csv(pa.table(rows), folder / "logs.csv")
    words = np.array(["red", "green", "blue", "hot", "cold", "once"])
    tags = [",".join(words[random.permutation(5)[: 1 + one % 3]]) for one in range(NUM_ITEMS)]
    tags[3] += ",once"  # below min_count
    tags[4] = ""
    items = {
        "what": [f"i{one:02d}" for one in range(NUM_ITEMS)],
        "price": np.round(random.random(NUM_ITEMS) * 100, 2),
        "tags": tags,
        "shop": [["north", "south, east", "west"][one % 3] for one in range(NUM_ITEMS)],
    }
    pa_csv.write_csv(pa.table(items), folder / "items.csv")
    fields = [
        {"name": "price", "side": "item", "kind": "numeric", "buckets": 5},
        {"name": "tags", "side": "item", "kind": "multi_valued", "separator": ",", "min_count": 2},
        {"name": "shop", "side": "item"},
        {"name": "brand", "side": "item", "column": "maker"},
    ]
    own = {"interactions": str(folder / "logs.csv"), "items": str(folder / "items.csv"), "user": "who", "item": "what"}
    own |= {"label": "clicked", "time": "when", "fields": fields}
    data = {"name": "logs", "old_above": 30, "warm_rows": 4, "prepared_dir": str(folder / "prepared"), "logs": own}
    config = build({"data": data})
    prepared = prepare(config.data)
    if request.param != "with vocabularies":
        manifest = dict(prepared.manifest)
        manifest["entities"] = {name: one for name, one in manifest["entities"].items() if name != VOCABULARY_FILE}
        prepared = Prepared(prepared.path, manifest)
    return config, prepared, folder


def test_items_with_the_words_of_a_known_one_get_its_indices(logs: tuple[Config, Prepared, Path]) -> None:
    config, prepared, folder = logs
    table = pa_csv.read_csv(folder / "items.csv")
    makers = pa.array([f"maker {one % 7}" for one in range(NUM_ITEMS)])
    path = folder / "new.csv"
    pa_csv.write_csv(table.append_column("maker", makers), path)
    ids, found, _ = read_fields(path, log_options(config, Columns()), prepared, is_logs=True)
    known = prepared.entity("item")
    place = {raw: index for index, raw in enumerate(known.raw_ids.tolist())}
    rows = np.array([place[one] for one in ids.to_pylist()])
    assert len(rows) == NUM_ITEMS
    for name in ("price", "shop", "brand"):
        expected = known.columns[name].values[rows]
        np.testing.assert_array_equal(found[name].to_numpy(), expected)
        assert expected.min() == 1 and len(set(expected.tolist())) > 2
    tags = known.columns["tags"]
    assert tags.offsets is not None
    for one, row in zip(found["tags"].to_pylist(), rows, strict=True):
        assert one == tags.values[tags.offsets[row] : tags.offsets[row + 1]].tolist()
    # A line a tag says the same.
    lines = [
        {**row, "tags": tag} for row in pa_csv.read_csv(path).to_pylist() for tag in (row["tags"] or "").split(",")
    ]
    pa_csv.write_csv(pa.Table.from_pylist(lines), path)
    again, by_lines, _ = read_fields(path, log_options(config, Columns()), prepared, is_logs=True)
    assert again == ids and by_lines == found


def test_words_that_no_item_of_the_run_has_are_unknown(logs: tuple[Config, Prepared, Path]) -> None:
    config, prepared, folder = logs
    (folder / "odd.csv").write_text('what,price,tags,shop,maker\nz9,1e9,once,moon,\nz8,,"red,never",north,maker 1\n')
    ids, found, _ = read_fields(folder / "odd.csv", log_options(config, Columns()), prepared, is_logs=True)
    assert ids.to_pylist() == ["z8", "z9"]
    assert found["tags"].to_pylist()[1] == [0] and len(found["tags"].to_pylist()[0]) == 1
    assert found["tags"].to_pylist()[0] != [0]
    assert found["shop"].to_pylist() == [1, 0] and found["brand"].to_pylist()[1] == 0
    assert found["price"].to_pylist() == [0, 5]  # missing; above the largest: the last bucket
    (folder / "short.csv").write_text("what,price\nz9,1\n")
    with pytest.raises(UserError, match="no column 'tags'"):
        read_fields(folder / "short.csv", log_options(config, Columns()), prepared, is_logs=True)


def test_prepared_data_say_what_each_index_stands_for(logs: tuple[Config, Prepared, Path]) -> None:
    config, _, folder = logs
    words = vocabulary.read(prepare(config.data))
    assert words is not None and set(words) == {"price", "tags", "shop", "brand"}
    assert words["shop"]["word"].to_pylist() == ["north", "south, east", "west"]
    assert words["tags"]["word"].to_pylist() == ["blue", "cold", "green", "hot", "red"]
    prices = pa_csv.read_csv(folder / "items.csv")["price"].to_numpy()
    edges = words["price"]["edge"].to_numpy()
    assert len(edges) == 5 and edges[-1] == prices.max() and np.isin(edges, prices).all()


def test_the_key_of_an_id_does_not_depend_on_how_it_was_read() -> None:
    numbers, text = id_keys(pa.array([7, -3, 12])), id_keys(pa.array(["7", "-3", "A", "12", "007"]))
    assert numbers.tolist() == text[[0, 1, 3]].tolist() and len(set(text.tolist())) == 5
