"""A search of the same size for every run, on old items played as new, and a config of what it has chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mwuf_dist.config import PHASES, UserError, merge, read_toml, without_studies
from mwuf_dist.methods import METHODS, build_method
from mwuf_dist.studies import compare, tune
from tests.evaluation.results import make_result
from tests.tiny import TINY

SECTION: dict[str, Any] = {
    "folds": 2,
    "settings": [{"warm_up": {"learning_rate": 0.1}}],
    "runs": [
        {"method": {"name": "base"}, "settings": [{"pretrain": {"epochs": 9}}]},
        {"method": {"name": "mwuf", "variant": "mine"}, "settings": [{"method": {"scaling": False}}]},
    ],
}


def plan_of(section: dict[str, Any]) -> tune.Tune:
    return tune.read_tune({"tune": section}, "search.toml")


def summary_of(section: dict[str, Any], scores: dict[tuple[int, int], float]) -> dict[str, Any]:
    """The summary of a search in which (run, setting) scored as given, and .5 elsewhere."""
    plan = plan_of(section)
    tried = tune.tries(TINY, plan, 0.3, "search.toml")
    split = {"split": {"positives": {"test": 0.5, "pretrain": 0.6}}}
    cells = [
        make_result(
            one.config.backbone.name,
            one.config.method.name,
            one.fold,
            [scores.get((one.run, one.setting), 0.5) + one.fold / 100] * 4,
            one.config.method.variant,
            **split,
        )
        for one in tried
    ]
    return tune.summarise(tried, cells, plan)


def test_every_run_has_the_file_itself_the_shared_settings_and_its_own_on_every_fold() -> None:
    tried = tune.tries(TINY, plan_of(SECTION), 0.3, "search.toml")
    assert len(tried) == len({compare.cell_name(one.config) for one in tried}) == 2 * 2 * 3
    for one in tried:
        config = one.config
        assert config.method.name == ("base", "mwuf")[one.run]
        assert config.warm_up.learning_rate == (0.1 if one.setting == 1 else 0.01)
        assert config.pretrain.epochs == (9 if (one.run, one.setting) == (0, 2) else 4)
        assert getattr(config.method, "scaling", True) == ((one.run, one.setting) != (1, 2))
        assert config.data.old_items_as_new and config.data.old_items_as_new_seed == config.seed == one.fold


def test_runs_with_unequal_numbers_of_settings_are_refused() -> None:
    unequal = SECTION | {"runs": [*SECTION["runs"], {"method": {"name": "metaemb"}}]}
    with pytest.raises(UserError, match=r"search.toml: the runs of \[tune\] have 3, 3, 2 settings"):
        plan_of(unequal)
    with pytest.raises(UserError, match=r"`tune.runs.0.settings` must be a list of tables"):
        plan_of({"runs": [{"settings": 3}]})


def test_the_best_setting_of_each_run_stands_first_with_the_mean_over_folds() -> None:
    summary = summary_of(SECTION, {(0, 2): 0.7, (1, 1): 0.8})
    assert [(row["run"], row["number"]) for row in summary["rows"]][::3] == [
        ("deepfm / base", 2),
        ("deepfm / mwuf (mine)", 1),
    ]
    assert summary["rows"][0]["auc_next"] == pytest.approx([0.705] * len(PHASES))
    assert summary["num_settings"] == 3
    lines = tune.table(summary).splitlines()
    assert lines[1] == "deepfm / base" and lines[5] == "deepfm / mwuf (mine)"
    assert lines[2].endswith("pretrain.epochs=9") and lines[3].endswith("as configured")


def test_the_chosen_config_compares_the_best_settings_and_names_them(tmp_path: Path) -> None:
    source = tmp_path / "configs" / "search.toml"
    source.parent.mkdir()
    source.write_text(tomli_w.dumps(TINY | {"tune": SECTION, "study": {"seeds": 4, "title": "equal budget"}}))
    summary = summary_of(SECTION, {(0, 2): 0.7, (1, 1): 0.8})
    out = tmp_path / "runs" / "out"
    out.mkdir(parents=True)
    overridden = {"backbone": {"hidden": [5]}}
    (out / "chosen.toml").write_text(tune.chosen_toml(summary, plan_of(SECTION), source, overridden, out))
    values = read_toml(out / "chosen.toml")
    assert without_studies(values) == merge(TINY, overridden)
    study = compare.read_study(values, "chosen.toml")
    assert study.title == "equal budget" and study.seeds == 4
    assert "2 folds, 3 settings for each run" in study.note
    assert "deepfm / base: pretrain.epochs=9; deepfm / mwuf (mine): warm_up.learning_rate=0.1" in study.note
    base, mwuf = compare.run_configs(values, study, "chosen.toml", {})[:2]
    assert (base.pretrain.epochs, base.warm_up.learning_rate) == (9, 0.01)
    assert (mwuf.pretrain.epochs, mwuf.warm_up.learning_rate, mwuf.method.variant) == (4, 0.1, "mine")
    assert not base.data.old_items_as_new


def test_without_runs_the_file_is_the_only_one_and_its_tries_keep_their_names() -> None:
    plan = plan_of({"folds": 1, "settings": [{"method": {"name": "base"}}]})
    names = [compare.cell_name(one.config) for one in tune.tries(TINY, plan, 0.3, "search.toml")]
    assert names == ["deepfm-mwuf-setting-0-fold-0-seed0", "deepfm-base-setting-1-fold-0-seed0"]


def test_a_set_of_one_class_is_left_out_of_every_score() -> None:
    plan = plan_of({"grid": {"warm_up.epochs": [1, 2]}})
    tried = tune.tries(TINY, plan, 0.3, "search.toml")
    split = {"split": {"positives": {"test": 0.5, "pretrain": 0.6}}}
    names = [(one.config.backbone.name, one.config.method.name, one.fold) for one in tried]
    variants = [one.config.method.variant for one in tried]
    aucs = [[0.5 + one.setting / 100, 0.6, 0.7, 0.8] for one in tried]
    cells = [make_result(*n, auc, v, **split) for n, auc, v in zip(names, aucs, variants, strict=True)]
    for cell in cells:
        cell["phases"]["warm-c"]["auc_next"] = None
    rows = tune.summarise(tried, cells, plan)["rows"]
    assert [row["auc_next"][3] for row in rows] == [None] * len(rows)
    assert [row["number"] for row in rows] == sorted((row["number"] for row in rows), reverse=True)
    for row in rows:
        assert row["score"] == pytest.approx(sum([*row["auc_next"][:3], *row["auc_test"]]) / 7)
    assert "–" in tune.table(tune.summarise(tried, cells, plan))


def test_a_run_that_leaves_the_method_to_the_file_tries_what_that_method_can_have() -> None:
    values = {"method": {"name": "align"}, "tune": {"grid": "standard", "runs": [{"backbone": {"name": "fm"}}, {}]}}
    alone = {"method": values["method"], "tune": {"grid": "standard"}}
    for one, num_runs in ((values, 2), (alone, 1)):
        plan = tune.read_tune(one, "search.toml")
        assert [len(settings) for _, settings in plan.settings_of_runs()] == [11] * num_runs
        found = tune.tries(merge(TINY, {"method": values["method"]}), plan, 0.3, "search.toml")
        assert {(try_.config.method.name, try_.config.method.initialisation) for try_ in found} == {
            ("align", "default")
        }
    fitted = tune.read_tune(alone | {"method": {"name": "map"}}, "search.toml")
    assert len(fitted.settings_of_runs()[0][1]) == 1 + 3, "first rows; no steps"


def test_the_standard_grid_tries_first_rows_of_every_method_and_each_can_be_built() -> None:
    methods = [{"name": name} for name in METHODS] + [{"name": "map", "prior": "content", "variant": "content"}]
    plan = plan_of({"grid": "standard", "runs": [{"method": method} for method in methods]})
    found: dict[int, set[str]] = {}
    for one in tune.tries(TINY, plan, 0.3, "search.toml"):
        build_method(one.config.method, 4, 8)
        if one.setting:
            found.setdefault(one.run, set()).add(one.config.method.initialisation)
    by_name = dict(zip([*METHODS, "map content"], (found[run] for run in range(len(methods))), strict=True))
    assert by_name["base"] == {"random", "mean"} and by_name["mwuf"] == {"random", "mean", "metaemb"}
    assert by_name["align"] == by_name["semantic_id"] == by_name["cvar"] == by_name["map content"] == {"default"}
    assert by_name["dropoutnet"] == by_name["map"] == {"default", "random", "mean"}
    steps = {(rate, epochs) for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1) for epochs in (1, 5)}
    for run, method in enumerate(methods):
        settings = plan.settings_of_runs()[run][1][1:]
        tried = {(one["warm_up"]["learning_rate"], one["warm_up"]["epochs"]) for one in settings}
        assert tried == ({(1e-3, 1)} if method["name"] == "map" else steps), "rows that are fitted take no steps"
