"""`mwuf recommend`: what is tried, who stays, when it stops, and that luck in the choice is not taken for a gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwuf_dist.config import Config, UserError, build, merge, to_dict
from mwuf_dist.methods import build_method
from mwuf_dist.studies import recommend
from mwuf_dist.studies.compare import cell_name
from mwuf_dist.studies.schedule import Failure, Here, Progress, Task, Until, do_tasks
from tests.evaluation.results import make_result
from tests.tiny import tiny


class Bench:
    """Answers what a run would score: so much for its candidate, and a little more or less by the fold."""

    def __init__(self, scores: Mapping[str, float], seconds: float = 1.0, budget: float = 1e9) -> None:
        self.config = tiny()
        self.candidates = recommend.candidates(self.config)
        self.scores, self.seconds, self.left = scores, seconds, budget
        self.asked: list[tuple[int, list[str]]] = []
        self.search = recommend.Search(
            self.config, self.candidates, 0.3, "here.toml", self.do, lambda: self.left, lambda text: None
        )

    def do(self, configs: Sequence[Config]) -> dict[str, Any]:
        found = {}
        by_name = {cell_name(one): number for number, one in enumerate(self.search.configs(configs[0].seed))}
        self.asked.append((configs[0].seed, []))
        for config in configs:
            if self.left <= 0:
                break
            label = self.candidates[by_name[cell_name(config)]].label
            self.left -= self.seconds
            self.asked[-1][1].append(label)
            auc = self.scores.get(label, 0.6) + config.seed / 1000
            stage = {"samples": 9, "seconds": self.seconds / 2, "samples_per_s": 9.0}
            cell = make_result("deepfm", config.method.name, config.seed, [auc] * 4, config.method.variant)
            cell["stages"] = {"pretrain": stage | {"seconds": 0.0}, "meta_train": stage, "warm_up": stage}
            found[cell_name(config)] = (cell, Path(label))
        return found


def test_each_candidate_can_be_built_and_each_method_comes_at_one_rate_before_any_has_a_second() -> None:
    config = tiny()
    found = recommend.candidates(config)
    built = [build(merge(to_dict(config), one.keys)) for one in found]
    assert all(one not in built[:number] for number, one in enumerate(built))
    for one in built:
        build_method(one.method, 4, 8)
    rates = [(one.method.name, one.warm_up.learning_rate) for one in built]
    second = next(n for n, (name, _) in enumerate(rates) if name in [other for other, _ in rates[1:n]])
    assert {name for name, _ in rates[:second]} == {"base", *recommend.CHEAP_METHODS}
    plain = [one for one, candidate in zip(built, found, strict=True) if candidate.is_plain]
    assert {(one.method.name, one.method.initialisation) for one in plain} == {("base", "mean")}
    assert sorted(one.warm_up.learning_rate for one in plain) == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert max(sum(name == method for name, _ in rates) for method in recommend.CHEAP_METHODS) < len(plain)


def test_rows_are_fitted_only_where_the_logit_is_a_line_and_what_is_configured_counts_once() -> None:
    names = {one.label for one in recommend.candidates(tiny(backbone={"name": "fm"}))}
    assert {"map", "map, prior by content"} <= names
    assert not any(one.label.startswith("map") for one in recommend.candidates(tiny()))
    plain = tiny(method={"name": "base", "initialisation": "mean"}, warm_up={"learning_rate": 3e-2})
    assert not any("as configured" in one.label for one in recommend.candidates(plain))
    only = recommend.candidates(plain, ["align"])
    assert {one.label.split(",")[0] for one in only} == {"base from the mean row", "align"}
    with pytest.raises(UserError, match="name one of those, or none for all"):
        recommend.candidates(plain, ["base"])
    with pytest.raises(UserError, match="'alien': unknown"):
        recommend.candidates(plain, ["alien"])


def test_the_better_half_goes_on_and_the_best_meet_on_folds_that_had_no_part_in_the_choice() -> None:
    scores = {"align, rate 0.003": 0.8, "metaemb, rate 0.01": 0.79, "base from the mean row, rate 0.03": 0.7}
    bench = Bench(scores)
    best = bench.search.run()
    assert best is not None
    assert [bench.candidates[one].label for one in best] == ["align, rate 0.003", "base from the mean row, rate 0.03"]
    nums = [len(labels) for fold, labels in bench.asked if fold < 6]
    methods, plain = sum(not one.is_plain for one in bench.candidates), 5
    expected = []
    while methods > 1 or plain > 1:
        expected.append(methods + plain)
        methods, plain = max(1, methods // 2), max(1, plain // 2)
    assert nums == expected
    checked = [(fold, labels) for fold, labels in bench.asked if fold >= 6]
    assert [fold for fold, _ in checked] == [6, 7, 8] and all(len(labels) == 2 for _, labels in checked)
    assert set(bench.search.chosen_by).isdisjoint(bench.search.checked_by)


def test_it_stops_choosing_while_there_is_time_to_measure_the_best_once_more() -> None:
    num = len(recommend.candidates(tiny()))
    bench = Bench({"cvar, rate 0.01": 0.9}, budget=num + 5.5)  # the next fold would take half of the candidates
    best = bench.search.run()
    assert best is not None and bench.candidates[best[0]].label == "cvar, rate 0.01"
    assert [(fold, len(labels)) for fold, labels in bench.asked] == [(0, num), (6, 2), (7, 2)]
    assert bench.left == pytest.approx(1.5)


def test_where_the_time_is_up_in_the_first_fold_nothing_is_recommended_over_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench({"mwuf, rate 0.01": 0.9}, budget=4)
    best = bench.search.run()
    assert best is not None and sum(len(labels) for _, labels in bench.asked) == 4
    monkeypatch.setattr(recommend, "prepare", lambda data: None)
    monkeypatch.setattr(recommend, "fold_difference", lambda *_: (0.3, np.zeros(5)))
    summary = recommend.summarise(bench.search, best)
    assert summary["check"] is None and summary["recommended"].startswith("base from the mean row")
    assert "there was no time to try" in recommend.table(summary)
    assert sum(row["out"] == "not finished" for row in summary["rows"]) == len(bench.candidates) - 4
    nothing = Bench({}, budget=0)
    assert nothing.search.run() is None


@pytest.mark.parametrize(
    ("spread", "recommended"), [(0.001, "align, rate 0.003"), (0.1, "base from the mean row, rate 0.01")]
)
def test_a_method_is_recommended_where_the_whole_interval_of_its_gain_is_above_zero(
    spread: float, recommended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench({"align, rate 0.003": 0.8, "base from the mean row, rate 0.01": 0.7})
    best = bench.search.run()
    assert best is not None
    influence = spread * np.array([1.0, -1.0] * 10) / 5
    monkeypatch.setattr(recommend, "prepare", lambda data: None)
    monkeypatch.setattr(recommend, "fold_difference", lambda ours, theirs, _: (0.02, influence))
    summary = recommend.summarise(bench.search, best)
    check = summary["check"]
    assert check["difference"] == pytest.approx(0.02) and check["low"] < 0.02 < check["high"]
    assert summary["recommended"] == recommended
    toml = recommend.config_toml(summary, Path("configs/demo.toml"), {"seed": 3}, Path("runs"))
    assert 'extends = "../configs/demo.toml"' in toml and recommended in toml and "seed = 3" in toml
    row = next(row for row in summary["rows"] if row["label"] == "align, rate 0.003")
    assert row["seconds"] == pytest.approx(1.0) and row["gain"]["difference"] == pytest.approx(0.02)


def test_nothing_begins_once_the_time_is_up_and_what_needs_it_is_late_too() -> None:
    left, said = iter([1.0, 0.0, 0.0]), []
    tasks = [Task("a", lambda: 1), Task("b", lambda: 2), Task("c", lambda one: one, needs=("b",))]
    progress = Progress(3, 0, said.append)
    outcomes = do_tasks(tasks, Until(Here(), lambda: next(left)), progress.ended)
    progress.close()
    assert outcomes["a"] == 1
    assert all(isinstance(outcomes[name], Failure) and outcomes[name].is_late for name in "bc")
    assert not any("FAILED" in text for text in said)
