"""The bootstrap over items and seeds, Holm's correction, and what a comparison says in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.comparison import build_comparison
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.evaluation.significance import bootstrap_difference, holm, placements
from mwuf_dist.evaluation.tables import auc_table, sentences
from mwuf_dist.studies.intervals import add_intervals
from mwuf_dist.training.results import NEXT_SETS
from tests.evaluation.results import SPLIT, make_result, two_methods


def rows(seed: int, gain: float, num_items: int = 80, num: int = 4000) -> tuple[np.ndarray, ...]:
    """(ours, theirs, labels, items): two scorings whose errors are an item's own."""
    random = np.random.default_rng(seed)
    items = random.integers(num_items, size=num)
    truth, own, other = random.normal(size=num), random.normal(size=num_items), random.normal(size=num_items)
    labels = (random.random(num) < 1 / (1 + np.exp(-truth))).astype(int)
    return truth * (1 + gain) + 0.6 * own[items], truth + 0.6 * other[items], labels, items


def test_the_mean_placement_of_either_class_is_the_auc() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(9, size=500) / 3, random.integers(2, size=500)
    for own in (0, 1):
        assert placements(scores, labels)[labels == own].mean() == pytest.approx(auc(scores, labels), abs=1e-12)


def test_the_interval_is_as_wide_as_that_of_a_bootstrap_that_sorts_anew() -> None:
    ours, theirs, labels, items = rows(0, 0.0)
    found = bootstrap_difference([placements(ours, labels)], [placements(theirs, labels)], labels, items)
    assert found["difference"] == pytest.approx(auc(ours, labels) - auc(theirs, labels), abs=1e-12)
    random = np.random.default_rng(1)
    by_item = [np.flatnonzero(items == one) for one in range(80)]
    drawn = []
    for _ in range(300):
        index = np.concatenate([by_item[one] for one in random.integers(80, size=80)])
        drawn.append(auc(ours[index], labels[index]) - auc(theirs[index], labels[index]))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)


def test_without_a_difference_one_interval_in_twenty_misses_zero() -> None:
    """Items differ, and rows of one item stand together: a test over rows alone would miss far more often."""
    missed, by_rows = 0, 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        items = random.integers(60, size=900)
        good, own, other = (random.normal(size=60)[items] for _ in range(3))
        labels = (random.random(900) < 1 / (1 + np.exp(-2 * good))).astype(int)
        mine, theirs = placements(own, labels), placements(other, labels)
        found = bootstrap_difference([mine], [theirs], labels, items)
        missed += not found["low"] <= 0 <= found["high"]
        alone = bootstrap_difference([mine], [theirs], labels, np.arange(len(items)))
        by_rows += not alone["low"] <= 0 <= alone["high"]
    assert missed <= 6 < by_rows  # 2 of 40 expected; more than 6 by chance once in two hundred


def test_seeds_that_differ_widen_the_interval() -> None:
    ours, theirs, labels, items = rows(3, 0.0)
    mine, other = placements(ours, labels), placements(theirs, labels)
    steady = bootstrap_difference([mine] * 3, [other] * 3, labels, items)
    apart = [mine + shift * (labels == 1) for shift in (-0.05, 0.0, 0.05)]
    wide = bootstrap_difference(apart, [other] * 3, labels, items)
    assert wide["high"] - wide["low"] > 2 * (steady["high"] - steady["low"])


def test_holm_is_the_step_down_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


# ---- what it comes to


def test_with_two_seeds_or_few_positives_nothing_is_marked() -> None:
    def marks(results: list) -> set[str]:
        return {cell.mark for _, cells in auc_table(build_comparison(results)).rows for cell in cells}

    assert "*" in marks(two_methods(5))
    assert marks(two_methods(2)) == {""}
    small = SPLIT | {"positives": dict.fromkeys(("pretrain", "warm_a", "warm_b", "warm_c", "test"), 0.01)}
    few = [one | {"split": small} for one in two_methods(5)]
    assert marks(few) == {""}
    text = " ".join(sentences(build_comparison(few)))
    assert "WARNING. Too few rows of the scarcer class" in text and "test 30" in text


@pytest.mark.parametrize(("num_here", "has_intervals"), [(5, True), (2, False)])
def test_a_test_is_over_all_seeds_whether_or_not_their_scores_are_here(
    num_here: int, has_intervals: bool, tmp_path: Path
) -> None:
    """Cells that came with --records have no scores: over the two that were trained here less would be known."""
    cells = two_methods(5)
    finished = [(cell, tmp_path / f"{cell['method']}-{cell['seed']}") for cell in cells]
    items, label = np.arange(400) % 40, np.arange(400) % 3 == 0
    for cell, folder in finished:
        if cell["seed"] < num_here:
            (folder / "scores").mkdir(parents=True)
            for phase in PHASES:
                for split in {*NEXT_SETS, "test"}:
                    np.save(folder / "scores" / f"{phase}-{split}.npy", label + np.random.default_rng(0).random(400))
    prepared: Any = SimpleNamespace(columns=lambda split, names: {"item": items, "label": label})
    comparison = build_comparison(cells)
    of_t_test = comparison["rows"][1]["phases"]["cold"]["versus_base_test"].copy()
    add_intervals(comparison, finished, prepared)
    found = comparison["rows"][1]["phases"]["cold"]["versus_base_test"]
    assert found["num_seeds"] == 5 and found["difference"] == of_t_test["difference"]
    assert ("interval" in found) == has_intervals and (found["p_value"] == of_t_test["p_value"]) != has_intervals


def test_a_row_is_compared_with_rows_of_as_many_seeds_together() -> None:
    single = two_methods(3)
    together = [one | {"variant": "mean of 3 seeds"} for one in single]
    comparison = build_comparison([*single, *together])
    for row in comparison["rows"]:
        for numbers in row["phases"].values():
            for kind in ("base", "best", "reference"):
                versus = numbers[f"versus_{kind}_test"]
                assert versus is None or ("mean of 3" in versus["row"]) == ("mean of 3" in row["label"])


def test_claims_say_what_is_gained_over_the_best_base_what_it_costs_and_what_to_deploy() -> None:
    comparison = build_comparison(two_methods(5))
    claims = comparison["claims"]
    assert claims["reference"] == "wide_deep / base" and claims["deploy"] == "wide_deep / mwuf"
    told = " ".join(claims["sentences"])
    assert "wide_deep / mwuf against wide_deep / base: +.0301 in cold" in told
    assert "Seconds of a run: wide_deep / base 0.0 s, wide_deep / mwuf 0.0 s." in told
    assert told in sentences(comparison)
    same = [
        make_result("fm", method, seed, (0.6 + seed / 100,) * 4) for seed in range(4) for method in ("base", "mwuf")
    ]
    assert build_comparison(same)["claims"]["deploy"] == "fm / base"
    alone = build_comparison([one for one in same if one["method"] == "base"])["claims"]["sentences"]
    assert alone == ["Seconds of a run: fm / base 0.0 s."]  # no advice where nothing was compared


def test_rows_that_lose_to_what_needs_no_training_are_marked_and_named() -> None:
    phases = ("cold", "warm-a", "warm-b", "warm-c")
    numbers = {"auc_next": 0.66, "auc_test": 0.9, "logloss_next": 0.1, "logloss_test": 0.1}
    trivial = [{"label": "constant", "phases": dict.fromkeys(phases, numbers)}]
    comparison = build_comparison(two_methods(5), without_training={"trivial": trivial})
    table = auc_table(comparison)
    assert "Item popularity so far counts positives up to the time of each scored row" in table.note
    assert table.rows[0][0] == "constant" and table.rows[0][1][0].text == "0.6600"
    marks = {label: [cell.mark for cell in cells[:8]] for label, cells in table.rows[1:]}
    assert marks["wide_deep / base"][0] == "‡" and marks["wide_deep / base"][4:] == ["‡"] * 4
    assert marks["wide_deep / mwuf"][3] != "‡"
    text = " ".join(sentences(comparison))
    assert "wide_deep / base does not beat what needs no training in cold (next set)" in text
    assert "log loss above the constant's" in text and comparison["claims"]["deploy"] == "constant"


def test_of_what_needs_no_training_the_one_with_the_best_mean_is_deployed_if_that_one_beats_every_row() -> None:
    """Not a mixture of the best of each phase, which nobody can deploy, by the name of the best of the last one."""

    def advice(popularity: tuple[float, ...], mean: tuple[float, ...]) -> str:
        of = {"popularity": popularity, "user mean": mean}
        phases = ("cold", "warm-a", "warm-b", "warm-c")
        numbers = {
            n: {p: {"auc_next": a, "auc_test": a} for p, a in zip(phases, v, strict=True)} for n, v in of.items()
        }
        trivial = [{"label": label, "phases": found} for label, found in numbers.items()]
        results = [make_result("fm", "base", seed, (0.6,) * 4) for seed in range(3)]
        return build_comparison(results, without_training={"trivial": trivial})["claims"]["sentences"][-1]

    told = advice((0.62,) * 4, (0.5, 0.63, 0.63, 0.64))
    assert told == "Deploy popularity: mean AUC 0.6200 without training, and no row has more (fm / base 0.6075)."
    assert "without training" not in advice((0.7, 0.5, 0.5, 0.5), (0.5, 0.62, 0.62, 0.62))  # .64 as a mixture


def test_an_auc_under_a_half_and_a_telling_probe_are_warnings() -> None:
    probes = {"time": {"warm_a": 0.71, "test": 0.52}, "user activity": {"warm_a": None}}
    results = [make_result("fm", "base", seed, (0.45, 0.6, 0.6, 0.6)) for seed in range(3)]
    text = " ".join(sentences(build_comparison(results, without_training={"probes": probes})))
    assert "fm / base: AUC under .5 in cold (next set), cold (fixed test)" in text
    assert "The time alone tells the label: a probe that sees nothing else reaches AUC 0.710 on warm_a." in text
    assert "Probes, AUC of models that see nothing but: time 0.520 to 0.710." in text
