"""The stream protocol: what is scored, how it is measured, and that no score knows a later day."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
from sklearn.metrics import ndcg_score, roc_auc_score

from mwuf_dist.cli.main import main
from mwuf_dist.config import Config, UserError, build, merge, to_dict
from mwuf_dist.data.prepare import pipeline
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.schema import RAW_ID, Entities, Field, list_column
from mwuf_dist.data.sources import logs
from mwuf_dist.data.stream_rule import Seen, past_only
from mwuf_dist.data.synthesize.synthesize import synthesize
from mwuf_dist.evaluation import stream_report
from mwuf_dist.evaluation.stream_metrics import ranking, stream_metrics
from mwuf_dist.runtime import start
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.studies.audit_stream import audit_stream
from mwuf_dist.training.run import run
from mwuf_dist.training.stages.stream import ages_and_clicks
from mwuf_dist.training.stages.stream_learners import Warmed
from tests.bounds import SAME_TABLES
from tests.faults.ranks import finished
from tests.serving.own_logs import config_for, make_logs, write
from tests.tiny import TINY

DATA: dict[str, Any] = {
    "protocol": "stream",
    "stream": {"pretrain_days": 20, "max_age_days": 60, "ranked_users": 2},
    "synthetic": {"num_rows": 8_000, "num_items": 900, "num_users": 100, "zipf_exponent": 1.0},
}
VALUES = merge(TINY, {"data": DATA, "pretrain": {"epochs": 1}})


def synthetic(**sections: Any) -> Config:
    return build(merge(VALUES, sections))


def own_log(folder: Path, **options: Any) -> Config:
    write(make_logs(), folder / "log.csv")
    stream = {"day_s": 600, "pretrain_days": 2, "max_age_days": 20, "ranked_users": 2}
    data = {"protocol": "stream", "stream": stream, "prepared_dir": str(folder / "prepared")}
    return build(merge(to_dict(config_for(folder, **options)), {"data": data}))


def test_the_rows_that_are_scored_are_those_of_young_new_items_and_nothing_later_is_trained_on() -> None:
    prepared = prepare(synthetic().data)
    day, day_0 = prepared.manifest["day"], prepared.manifest["day_0"]
    trained, scored = (prepared.columns(split, ("item", "time")) for split in ("pretrain", "test"))
    assert trained["time"].max() < day_0 <= scored["time"].min()
    assert trained["item"].max() < prepared.num_old_items <= scored["item"].min()
    for item in np.unique(scored["item"]):
        times = scored["time"][scored["item"] == item]
        assert times.max() - times.min() < 60 * day
    assert len(scored["item"]) > 50


def test_metrics_equal_scikit_learns_over_all_rows_within_users_and_within_buckets() -> None:
    random = np.random.default_rng(3)
    users, labels = random.integers(0, 30, 400), random.integers(0, 2, 400)
    logits, age, clicks = random.normal(size=400) + labels, random.integers(0, 9, 400), random.integers(0, 40, 400)
    found = stream_metrics(logits, labels, users, age, clicks, 9)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    own = [users == user for user in range(30) if 0 < labels[users == user].mean() < 1]
    expected = np.average([roc_auc_score(labels[one], logits[one]) for one in own], weights=[one.sum() for one in own])
    assert found["gauc"] == pytest.approx(expected, abs=1e-12)
    bucket = next(one for one in found["by_clicks"] if one["from"] == 5)
    inside = (clicks >= 5) & (clicks < 10)
    assert bucket["rows"] == inside.sum()
    assert bucket["auc"] == pytest.approx(roc_auc_score(labels[inside], logits[inside]), abs=1e-12)
    assert sum(one["rows"] for one in found["by_age"]) == 400
    few = clicks < 10
    assert found["first_clicks"]["rows"] == few.sum()
    assert found["first_clicks"]["auc"] == pytest.approx(roc_auc_score(labels[few], logits[few]), abs=1e-12)


def test_ranks_equal_scikit_learns_and_ties_earn_nothing() -> None:
    random = np.random.default_rng(5)
    for num_wanted in (1, 3, 14):
        scores = random.normal(size=60)
        wanted = random.choice(60, num_wanted, replace=False)
        relevance = np.isin(np.arange(60), wanted).astype(float)
        ndcg, recall = ranking(scores, wanted)
        assert ndcg == pytest.approx(ndcg_score(relevance[None], scores[None], k=10), abs=1e-12)
        assert recall == len(set(np.argsort(-scores)[:10]) & set(wanted)) / num_wanted
    assert ranking(np.zeros(60), np.array([0, 1])) == (0.0, 0.0)


@pytest.mark.parametrize("negatives", [0, 2], ids=["labels", "positives"])
def test_ages_and_clicks_are_those_of_a_walk_through_the_log(negatives: int, tmp_path: Path) -> None:
    options = {"label": "", "negatives_per_positive": negatives} if negatives else {}
    prepared = prepare(own_log(tmp_path, **options).data)
    log = prepared.columns("test", ("item", "label", "time"))
    length = prepared.manifest["day"]
    day = (log["time"] - prepared.manifest["day_0"]) // length
    age, clicks = ages_and_clicks(prepared, log)
    assert clicks.max() >= 3
    for row, item in enumerate(log["item"].tolist()):
        own = np.flatnonzero(log["item"] == item)
        assert age[row] == (log["time"][row] - log["time"][own[0]]) // length
        earlier = own[day[own] < day[row]]
        assert clicks[row] == (log["label"][earlier].sum() if negatives else len(earlier))


@pytest.mark.parametrize(
    ("method", "backbone"), [("base", "deepfm"), ("mwuf", "deepfm"), ("metaemb", "din"), ("map", "encoder")]
)
def test_another_future_changes_no_score_of_the_days_before_it(method: str, backbone: str, tmp_path: Path) -> None:
    found = audit_stream(synthetic(method={"name": method}, backbone={"name": backbone}), tmp_path / "audit")
    assert found["passed"] and found["num_scores"] > 30 and found["num_labels"] > 0
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("options", [{}, {"label": "", "negatives_per_positive": 2}], ids=["labels", "positives"])
def test_another_future_of_own_logs_changes_no_score_of_the_days_before_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert audit_stream(own_log(tmp_path, **options), tmp_path / "audit")["passed"]


def test_a_learner_that_looks_ahead_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Warmed.begin

    def peeks(self: Warmed, day: int) -> None:
        begin(self, day)
        self._rows += float(self._log["label"].mean())

    monkeypatch.setattr(Warmed, "begin", peeks)
    assert not audit_stream(synthetic(method={"name": "base"}), tmp_path / "audit")["passed"]


def test_a_vocabulary_of_all_rows_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Words are numbered in their order, so that those of items that come later move the rows of the others.
    config, table = own_log(tmp_path), make_logs()
    late = table.slice(len(table) - 30).to_pydict()
    late |= {"item_id": list(range(950, 980)), "color": [f"amber {one // 2}" for one in range(30)]}
    late["timestamp"] = [table["timestamp"][-1].as_py() + 10 + one for one in range(30)]
    write(pa.concat_tables([table, pa.table(late, schema=table.schema)]), tmp_path / "log.csv")
    assert audit_stream(config, tmp_path / "audit")["passed"]
    monkeypatch.setattr(logs, "_seen", lambda *_: None)
    monkeypatch.setattr(pipeline, "past_only", lambda entities, *_: entities)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared_dir=str(tmp_path / "leaky")))
    assert not audit_stream(config, tmp_path / "audit")["passed"]


@pytest.mark.parametrize("name", ["taobao-ad", "cikm2019"])
def test_another_future_of_the_layouts_of_the_paper_changes_no_score(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize(name, 6_000, tmp_path / "data" / name)
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "data"))
    stream = {"day_s": 21_600, "pretrain_days": 8, "max_age_days": 60, "ranked_users": 2}
    data = {"name": name, "stream": stream, "prepared_dir": str(tmp_path / "prepared")}
    assert audit_stream(synthetic(data=data), tmp_path / "audit")["passed"]


@pytest.mark.dist
def test_two_ranks_score_the_days_as_one_does(tmp_path: Path) -> None:
    for ranks in (1, 2):
        finished(tmp_path / str(ranks), ranks, values=VALUES)
    one, two = (np.load(tmp_path / str(ranks) / "scores" / "stream-test.npy") for ranks in (1, 2))
    assert len(one) == len(two) > 50
    assert np.abs(two - one).max() < SAME_TABLES, np.abs(two - one).max()


def test_a_method_that_cannot_learn_by_days_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    fresh = synthetic(backbone={"name": "fm"}, method={"name": "map", "initialisation": "random"})
    with start(fresh) as runtime, pytest.raises(UserError, match="take the method's own first rows"):
        run(fresh, tmp_path / "run", runtime)
    assert not (tmp_path / "run").exists()


def test_a_run_by_days_has_nothing_to_serve_and_says_so(tmp_path: Path) -> None:
    config = synthetic(method={"name": "base"})
    with start(config) as runtime:
        run(config, tmp_path / "run", runtime)
    with pytest.raises(UserError, match="keeps no embeddings: run the config with data.protocol = 'paper'"):
        read_run(tmp_path / "run")


def test_a_value_that_only_later_items_have_is_unknown_and_too_rare_ones_before_day_0_are_too() -> None:
    fields = (Field("color", "categorical", "item", 5), Field("words", "multi_valued", "item", 4))
    columns = {RAW_ID: [7, 8, 9], "color": np.array([2, 4, 3], dtype=np.int32)}
    words = list_column(np.array([2, 1, 2]), np.array([1, 3, 1, 2, 3]))
    items = pa.table(columns | {"words": words})
    seen = Seen(np.ones(0, dtype=bool), np.array([True, True, False]))
    made = past_only(Entities(pa.table({RAW_ID: []}), items, fields), seen, {"words": 2})
    assert made.items["color"].to_pylist() == [1, 2, 0]
    assert made.items["words"].to_pylist() == [[1], [1], [0]]
    assert [field.size for field in made.fields] == [3, 2]


def test_compare_writes_its_report_and_does_nothing_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {"method": {"name": "base", "initialisation": "mean"}},
        {"method": {"name": "mwuf"}},
        {"method": {"name": "base", "variant": "retrained"}, "data": {"stream": {"retrain_every_days": 100}}},
    ]
    config, output = tmp_path / "stream.toml", tmp_path / "out"
    config.write_text(tomli_w.dumps(merge(VALUES, {"study": {"protocol": "stream", "seeds": 1, "runs": runs}})))
    command = ["compare", str(config), "--output", str(output)]
    with pytest.raises(SystemExit, match="^0$"):
        main(command)
    comparison = json.loads((output / "comparison.json").read_text())
    assert comparison["protocol"] == "stream" and len(comparison["rows"]) == 3
    assert all(row["stream"]["auc"]["mean"] > 0.3 and row["by_age"] and row["by_clicks"] for row in comparison["rows"])
    assert comparison["audits"] and all(audit["passed"] for audit in comparison["audits"])
    assert (output / "stream.png").stat().st_size and "NDCG@10" in (output / "report.html").read_text()
    said = capsys.readouterr().out
    assert "Leak audit" in said
    assert said.count("stream   AUC") == len(runs), "an audit's passes have no results"
    results = [json.loads(path.read_text()) for path in sorted(output.glob("runs/*mwuf*/results.json"))]
    older = json.loads(json.dumps(results[0])) | {"seed": 1}
    del older["stream"]["first_clicks"], older["stream"]["by_clicks"][-1]  # it counted drawn rows as clicks
    (row,) = stream_report.build_stream_comparison([older, *results])["rows"]
    assert row["seeds"] == [1, 0] and row["stream"]["auc"]["num_seeds"] == 2
    assert row["first_clicks"]["rows"] > 0 and row["first_clicks"]["auc"]["num_seeds"] == 1
    before = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/results.json")}
    with pytest.raises(SystemExit, match="^0$"):
        main(command)
    assert {path: path.stat().st_mtime_ns for path in output.glob("runs/*/results.json")} == before
