"""An export with context holds the tables of the fields: a server makes contexts of what the run has never seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import build, to_dict
from mwuf_dist.launch import local
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from tests.bounds import assert_float32_close
from tests.serving.own_logs import config_for, make_logs

TAGS = ("old", "new", "old|new", "", "rare|new")


def raw_items(ids: np.ndarray) -> pa.Table:
    """The table of items, with a value of each kind; `rare` is the tag of one old item."""
    vectors = np.random.default_rng(5).normal(size=(len(ids), 3)).astype(np.float32)
    tags = ["rare|old" if one == 100 else TAGS[one % 4] for one in ids]
    columns = {"item_id": ids, "color": [("red", "blue", None)[one % 3] for one in ids], "price": ids % 7 * 1.5}
    return pa.table(columns | {"tags": tags, "vector": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), 3)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    folder = tmp_path_factory.mktemp("fields")
    log = make_logs().drop_columns(["color", "price"])
    log = log.append_column("age", pa.array([float(one % 9) for one in log["user_id"].to_pylist()]))
    pq.write_table(log, folder / "log.parquet")
    pq.write_table(raw_items(np.unique(log["item_id"])), folder / "items.parquet")
    fields: list[dict[str, Any]] = [
        {"name": "color", "side": "item"},
        {"name": "price", "side": "item", "kind": "numeric", "buckets": 4},
        {"name": "tags", "side": "item", "kind": "multi_valued"},
        {"name": "vector", "side": "item", "kind": "vector"},
        {"name": "age", "side": "user", "kind": "numeric", "buckets": 3},
    ]
    config = to_dict(config_for(folder))
    config["data"]["logs"] |= {
        "interactions": str(folder / "log.parquet"),
        "items": str(folder / "items.parquet"),
        "fields": fields,
    }
    config["embedding"]["min_old_items"] = 2
    local.train(build(config), folder / "run")
    with open_run(folder / "run") as run:
        yield run


def looked_up(export_folder: Path, name: str, value: Any) -> np.ndarray:
    """What a server makes of a value, with nothing but the export."""
    about = json.loads((export_folder / "export.json").read_text())["fields"][name]
    table = pq.read_table(export_folder / "fields.parquet").slice(about["first"], about["size"])
    values, rows = table["field_id"].to_pylist(), np.array(table["field_embedding"].to_pylist(), dtype=np.float32)
    if about["kind"] == "vector":
        return (np.array(value) - about["mean"]) / about["deviation"] @ rows
    if about["kind"] == "number":
        edges = np.array([float(edge) for edge in values[1:]])
        return rows[min(1 + int(np.searchsorted(edges, value)), len(edges))] if value is not None else rows[0]
    words = [word for word in ([value] if name == "color" else str(value).split("|")) if word and word in values]
    return rows[[values.index(word) for word in words] or [0]].mean(0)


def test_contexts_made_of_raw_values_by_the_tables_are_those_of_the_run(run: FinishedRun, tmp_path: Path) -> None:
    folder = export(run, "parquet", tmp_path / "export", context=True)
    about = json.loads((folder / "export.json").read_text())
    assert about["context"] == ["color", "price", "tags", "vector", "user_id", "age"]
    assert [*about["fields"]] == ["color", "price", "tags", "vector", "age"]
    raw = raw_items(np.sort(run.item_ids.to_numpy())).to_pylist()
    items = [run.index_of(row["item_id"]) for row in raw]
    made = [np.concatenate([looked_up(folder, name, row[name]) for name in about["context"][:4]]) for row in raw]
    assert_float32_close(np.array(made, dtype=np.float32), run.item_context(items), num_terms=10)
    users = range(run.prepared.num_users)
    ages = [looked_up(folder, "age", run.user_ids[user].as_py() % 9) for user in users]
    assert_float32_close(np.array(ages), run.user_context(list(users))[:, run.model.dim :], num_terms=2)
    # A stranger whose age is known: the first columns are those of the unknown user.
    unknown = np.array(about["unknown_user"], dtype=np.float32)
    np.testing.assert_array_equal(unknown[: run.model.dim], run.mean_user.numpy())
    np.testing.assert_array_equal(unknown[run.model.dim :], looked_up(folder, "age", None))
    table = pq.read_table(folder / "fields.parquet")
    tags = table.slice(about["fields"]["tags"]["first"], about["fields"]["tags"]["size"]).to_pylist()
    row_of = {row["field_id"]: row["field_embedding"] for row in tags}
    assert row_of["rare"] == row_of[""] != row_of["old"], "a value that too few old items have counts as unknown"


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_the_tables_are_the_same_in_the_other_formats(run: FinishedRun, tmp_path: Path, kind: Any) -> None:
    from safetensors.numpy import load_file

    parquet = pq.read_table(export(run, "parquet", tmp_path / "parquet", context=True) / "fields.parquet")
    folder = export(run, kind, tmp_path / "export", context=True)
    if kind == "npy":
        ids, rows = np.load(folder / "field_id.npy").tolist(), np.load(folder / "field_embedding.npy")
    else:
        found = load_file(folder / "fields.safetensors")
        ids, rows = [bytes(one).rstrip(b"\0").decode() for one in found["field_id"]], found["field_embedding"]
    assert ids == parquet["field_id"].to_pylist()
    np.testing.assert_array_equal(rows, np.array(parquet["field_embedding"].to_pylist(), dtype=np.float32))
