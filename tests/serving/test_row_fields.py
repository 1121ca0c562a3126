"""Fields of the rows themselves and weights, from training to the daily job: what a server knows of them is enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import WARM_SETS, Config, UserError, build, to_dict
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import warm
from tests.bounds import SAME_AUC, SAME_TABLES, assert_float32_close
from tests.serving.own_logs import a_day, config_for, make_logs
from tests.serving.test_export import scores_of_the_stage
from tests.serving.test_uncertainty import by_hessian, variances
from tests.training.test_ranks import run as run_ranks

NUM_TERMS = 100
DEVICES = ("web", "app", "tv")


def with_rows(log: pa.Table, seed: int = 0) -> pa.Table:
    """Interactions with a position, a device and an event; a click at a low position is likelier."""
    random = np.random.default_rng(seed)
    position = random.integers(1, 9, log.num_rows)
    log = log.append_column("device", pa.array([DEVICES[one] for one in random.integers(3, size=log.num_rows)]))
    log = log.append_column("event", pa.array([("click", "buy")[one] for one in random.integers(2, size=log.num_rows)]))
    return log.append_column("position", pa.array(position))


def config(folder: Path, **sections: Any) -> Config:
    """A run of logs whose rows have fields and weights."""
    made = to_dict(config_for(folder, interactions=str(folder / "log.parquet"), weight="event", weights=("buy=4",)))
    made["data"]["logs"]["fields"] += [
        {"name": "position", "side": "row", "kind": "numeric", "buckets": 4},
        {"name": "device", "side": "row"},
    ]
    return build(made | {name: made[name] | values for name, values in sections.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    pq.write_table(with_rows(make_logs()), folder / "log.parquet")
    local.train(config(folder), folder / "run")
    return folder


@pytest.fixture
def runtime(folder: Path) -> Iterator[Runtime]:
    with start(read_run(folder / "run")[0]) as runtime:
        yield runtime


def raw_values(folder: Path, run: FinishedRun) -> dict[str, list[Any]]:
    """The raw values of the rows of `test`, by their place in the log."""
    log = pq.read_table(folder / "log.parquet").take(pa.array(run.prepared.columns("test", ("row",))["row"]))
    return {name: log[name].to_pylist() for name in ("device", "position")}


def test_scores_by_raw_values_are_those_of_the_evaluation_and_of_the_exported_model(
    folder: Path, tmp_path: Path
) -> None:
    with open_run(folder / "run") as run:
        test, raw = run.prepared.columns("test", ("user", "item")), raw_values(folder, run)
        users, items = (torch.from_numpy(test[name].astype(np.int64)) for name in ("user", "item"))
        found = run.scores(users, items, raw)
        assert_float32_close(found, scores_of_the_stage(run, "test"), num_terms=NUM_TERMS)
        unknown = run.scores(users, items)
        assert float((found - unknown).abs().max()) > 1e-3, "the position and the device change the score"
        torch.testing.assert_close(run.scores(users, items, {"device": ["none"] * len(users)}), unknown)
        exported = export(run, "parquet", tmp_path / "export", old_items=True, context=True)
        with pytest.raises(UserError, match="no field 'hour' of the interactions: there are position, device"):
            run.scores(users, items, {"hour": raw["position"]})
        ids = [run.item_ids.take(pa.array(items.numpy())).to_pylist(), run.user_ids.take(pa.array(users.numpy()))]
    # A server: the export alone.
    about = json.loads((exported / "export.json").read_text())
    assert about["context"] == ["color", "price", "device", "position", "user_id"]
    of_items, of_users, fields = (pq.read_table(exported / f"{name}.parquet") for name in ("items", "users", "fields"))

    def rows(table: pa.Table, key: str, wanted: list[Any], column: str) -> torch.Tensor:
        place = {one: number for number, one in enumerate(table[key].to_pylist())}
        return torch.tensor([table[column][place[one]].as_py() for one in wanted])

    def of_value(name: str, values: list[Any]) -> torch.Tensor:
        own = fields.slice(about["fields"][name]["first"], about["fields"][name]["size"])
        words = own["field_id"].to_pylist()
        if about["fields"][name]["kind"] == "number":
            edges = [float(word) for word in words[1:]]
            values = [words[1 + min(int(np.searchsorted(edges, one)), len(edges) - 1)] for one in values]
        return rows(own, "field_id", [one if one in words else "" for one in values], "field_embedding")

    assert about["fields"]["device"]["side"] == about["fields"]["position"]["side"] == "row"
    context = [rows(of_items, "item_id", ids[0], "item_context"), *(of_value(name, raw[name]) for name in raw)]
    context.append(rows(of_users, "user_id", ids[1].to_pylist(), "user_context"))
    model = torch.export.load(exported / "model.pt2").module()
    with torch.no_grad():
        logits = model(rows(of_items, "item_id", ids[0], "embedding"), torch.cat(context, dim=1))
    assert_float32_close(logits, found, num_terms=NUM_TERMS)


def test_the_daily_job_reads_them_and_does_not_depend_on_how_rows_were_cut(
    folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    day = with_rows(a_day(), seed=1)
    pq.write_table(day, tmp_path / "day.parquet")
    for name, rows in (("late", day.slice(30)), ("early", day.slice(0, 30))):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    one = warm(folder / "run", tmp_path / "day.parquet", tmp_path / "one", runtime)
    warm(folder / "run", tmp_path / "late.parquet", tmp_path / "first", runtime)
    two = warm(tmp_path / "first", tmp_path / "early.parquet", tmp_path / "two", runtime)
    for name in ("items.parquet", "log.parquet", "rows.parquet"):
        assert (tmp_path / "one/warm" / name).read_bytes() == (tmp_path / "two/warm" / name).read_bytes(), name
    assert one.digest == two.digest
    apply(folder / "run", [tmp_path / "first/deltas", tmp_path / "two/deltas"], tmp_path / "copy")
    assert (tmp_path / "copy/warm/log.parquet").read_bytes() == (tmp_path / "one/warm/log.parquet").read_bytes()
    again = warm(tmp_path / "one", tmp_path / "day.parquet", tmp_path / "again", runtime)
    assert again.change.num_new == 0
    # The same clicks, seen elsewhere or as purchases, move rows elsewhere.
    rows = pq.read_table(tmp_path / "one/warm/rows.parquet")["row"]
    for column, value in (("device", "tv"), ("event", "buy")):
        other = day.set_column(day.schema.get_field_index(column), column, pa.array([value] * day.num_rows))
        pq.write_table(other, tmp_path / f"{column}.parquet")
        warm(folder / "run", tmp_path / f"{column}.parquet", tmp_path / f"by-{column}", runtime)
        assert rows != pq.read_table(tmp_path / f"by-{column}/warm/rows.parquet")["row"]
    pq.write_table(a_day(), tmp_path / "without.parquet")
    with pytest.raises(UserError, match="no column 'position'"):
        warm(folder / "run", tmp_path / "without.parquet", tmp_path / "none", runtime)


def test_an_item_of_such_a_run_is_explained_and_its_row_made_again_to_the_bit(folder: Path) -> None:
    with open_run(folder / "run") as run:
        assert explain(run, 900).replay_error == 0.0


@pytest.mark.parametrize(("backbone", "method"), [("encoder", "map"), ("gru4rec", "metaemb")])
def test_other_backbones_and_methods_take_them_too(backbone: str, method: str, folder: Path, tmp_path: Path) -> None:
    made = to_dict(config(folder)) | {"backbone": {"name": backbone}, "method": {"name": method}}
    if method == "map":
        made["pretrain"]["order"], made["method"]["prior"] = "users", "content"
    local.train(build(made), tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        test, raw = run.prepared.columns("test", ("user", "item")), raw_values(folder, run)
        found = run.scores(test["user"], test["item"], raw)
        assert bool((found != run.scores(test["user"], test["item"])).any())
    pq.write_table(with_rows(a_day(), seed=1), tmp_path / "day.parquet")
    with start(read_run(tmp_path / "run")[0]) as runtime:
        assert warm(tmp_path / "run", tmp_path / "day.parquet", tmp_path / "day", runtime).change.num_new > 0


def test_the_variances_of_an_export_count_the_weights_and_the_values_of_the_rows(folder: Path, tmp_path: Path) -> None:
    made = to_dict(config(folder)) | {"backbone": {"name": "fm"}, "method": {"name": "map"}}
    local.train(build(made), tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        found = variances(export(run, "parquet", tmp_path / "export", uncertainty=True))
        item = run.new_item_ids[0]
        parts = [run.prepared.columns(split, ("user", "item", "label", "weight", "row")) for split in WARM_SETS]
        seen = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        seen = {name: values[seen["item"] == run.index_of(item)] for name, values in seen.items()}
        log = pq.read_table(folder / "log.parquet").take(pa.array(seen["row"]))
        raw = {name: log[name].to_pylist() for name in ("device", "position")}
        users, labels = seen["user"].tolist(), seen["label"].tolist()
        expected = by_hessian(run, item, users, labels, seen["weight"], raw)
        assert set(seen["weight"].tolist()) == {1.0, 4.0}
    assert found[item] == pytest.approx(expected, rel=1e-3)


@pytest.mark.dist
def test_two_ranks_learn_from_them_what_one_learns(folder: Path, tmp_path: Path) -> None:
    values = to_dict(config(folder))
    (one, tensors), (two, others) = (run_ranks(tmp_path / str(ranks), values, ranks) for ranks in (1, 2))
    for phase, metrics in one["phases"].items():
        assert two["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=SAME_AUC), phase
    tables = [name for name in tensors if name.split(".")[0].split()[0] in ("user", "item", "old", "new", "row")]
    assert any(name.startswith("row") for name in tables)
    for name in tables:
        assert (tensors[name] - others[name]).abs().max() < SAME_TABLES, name
