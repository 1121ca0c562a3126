import copy
import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.evaluation.comparison import build_comparison
from mwuf_dist.evaluation.metrics import rela_impr
from mwuf_dist.evaluation.published import AUC, ROWS
from tests.evaluation.results import make_result, two_methods, with_clicks


def _row(comparison, label):
    return next(row for row in comparison["rows"] if row["label"] == label)


def test_rows_stand_in_the_order_of_the_results_one_per_backbone_method_and_variant():
    results = [
        make_result(backbone, method, seed, [0.6] * 4, variant)
        for backbone, method, variant in (("afn", "mwuf", ""), ("afn", "mwuf", "no scaling"), ("afn", "base", ""))
        for seed in (3, 1)
    ]
    comparison = build_comparison(results)
    labels = [row["label"] for row in comparison["rows"]]
    assert labels == ["afn / mwuf", "afn / mwuf (no scaling)", "afn / base"]
    assert comparison["seeds"] == [1, 3] and all(row["seeds"] == [1, 3] for row in comparison["rows"])


def test_every_number_is_summarised_over_seeds():
    results = two_methods(5)
    row = _row(build_comparison(results), "wide_deep / mwuf")
    runs = [result for result in results if result["method"] == "mwuf"]
    for phase in PHASES:
        for name in ("auc_next", "auc_test", "logloss_next", "logloss_test", "calibration_next", "calibration_test"):
            values = [run["phases"][phase][name] for run in runs]
            expected = {"mean": np.mean(values), "std": np.std(values, ddof=1), "num_seeds": 5}
            assert row["phases"][phase][name] == pytest.approx(expected)
    assert row["stages"]["pretrain"]["samples_per_s"]["mean"] == pytest.approx(102_000)


def test_a_stage_that_a_method_has_not_is_absent_from_its_row():
    comparison = build_comparison(two_methods())
    assert "meta_train" not in _row(comparison, "wide_deep / base")["stages"]
    assert "meta_train" in _row(comparison, "wide_deep / mwuf")["stages"]


def test_rela_impr_follows_from_the_mean_aucs_and_stands_against_wide_deep():
    results = two_methods() + [make_result("afn", "base", seed, [0.55 + seed / 100] * 4) for seed in range(3)]
    comparison = build_comparison(results)
    base = _row(comparison, "wide_deep / base")["phases"]
    for row in comparison["rows"]:
        assert row["rela_impr_base"] == "wide_deep / base"
        for phase in PHASES:
            for scoring in ("next", "test"):
                expected = rela_impr(*(p[phase][f"auc_{scoring}"]["mean"] for p in (row["phases"], base)))
                assert row["phases"][phase][f"rela_impr_{scoring}"]["mean"] == pytest.approx(expected)


def test_rela_impr_stands_against_the_own_base_without_wide_deep_and_against_nothing_without_a_base():
    afn = [make_result("afn", "base", 0, [0.6] * 4), make_result("afn", "mwuf", 0, [0.7] * 4)]
    lonely = [make_result("dcn", "mwuf", 0, [0.7] * 4)]
    comparison = build_comparison(afn + lonely)
    row = _row(comparison, "afn / mwuf")
    assert row["rela_impr_base"] == "afn / base"
    assert row["phases"]["cold"]["rela_impr_next"]["mean"] == pytest.approx(100.0)
    alone = _row(comparison, "dcn / mwuf")
    assert alone["rela_impr_base"] is None
    assert alone["phases"]["cold"]["rela_impr_next"]["mean"] is None


def test_rela_impr_and_p_values_use_the_seeds_that_both_rows_have():
    shared = {0: (0.60, 0.64), 1: (0.61, 0.66), 2: (0.60, 0.65)}
    results = [make_result("wide_deep", "base", seed, [base] * 4) for seed, (base, _) in shared.items()]
    results += [make_result("wide_deep", "mwuf", seed, [mwuf] * 4) for seed, (_, mwuf) in shared.items()]
    results += [make_result("wide_deep", "mwuf", 9, [0.99] * 4), make_result("wide_deep", "base", 8, [0.51] * 4)]
    numbers = _row(build_comparison(results), "wide_deep / mwuf")["phases"]["cold"]
    base, mwuf = zip(*shared.values(), strict=True)
    assert numbers["rela_impr_next"]["mean"] == pytest.approx(rela_impr(float(np.mean(mwuf)), float(np.mean(base))))
    assert numbers["rela_impr_next"]["num_seeds"] == 3
    assert numbers["versus_base_next"]["p_value"] == pytest.approx(stats.ttest_rel(mwuf, base).pvalue)
    assert numbers["auc_next"]["num_seeds"] == 4


def test_the_best_baseline_is_chosen_per_phase_among_other_methods():
    results = []
    for seed in range(3):
        noise = seed / 1000
        results += [
            make_result("wide_deep", "base", seed, [0.60 + noise] * 4),
            make_result("wide_deep", "metaemb", seed, [0.65 - noise, 0.61, 0.55, 0.55]),
            make_result("wide_deep", "mwuf", seed, [0.70, 0.70, 0.70, 0.70]),
            make_result("wide_deep", "mwuf", seed, [0.71 + noise] * 4, variant="other"),
        ]
    phases = _row(build_comparison(results), "wide_deep / mwuf")["phases"]
    assert phases["cold"]["versus_best_next"]["row"] == "wide_deep / metaemb"
    assert phases["warm-b"]["versus_best_next"]["row"] == "wide_deep / base"
    assert phases["cold"]["versus_base_next"]["row"] == "wide_deep / base"


def test_a_variant_stands_against_the_base_of_its_own_variant_where_there_is_one():
    results = [
        make_result("wide_deep", method, 0, [auc] * 4, variant)
        for method, variant, auc in (
            ("base", "", 0.6),
            ("base", "tuned", 0.65),
            ("mwuf", "tuned", 0.7),
            ("mwuf", "x", 0.7),
        )
    ]
    comparison = build_comparison(results)
    assert _row(comparison, "wide_deep / mwuf (tuned)")["rela_impr_base"] == "wide_deep / base (tuned)"
    assert _row(comparison, "wide_deep / mwuf (x)")["rela_impr_base"] == "wide_deep / base"


def test_numbers_that_do_not_exist_are_null_and_the_rest_is_strict_json():
    results = two_methods(1)
    results[0]["phases"]["cold"]["auc_next"] = float("nan")
    results[1]["phases"]["warm-a"] = {}
    comparison = build_comparison(results)
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    base, mwuf = comparison["rows"]
    assert base["phases"]["cold"]["auc_next"] == {"mean": None, "std": None, "num_seeds": 0}
    assert mwuf["phases"]["cold"]["rela_impr_next"]["mean"] is None
    assert mwuf["phases"]["warm-a"]["auc_test"]["num_seeds"] == 0
    assert mwuf["phases"]["warm-b"]["auc_test"]["std"] is None  # one seed has no spread


def test_a_base_below_a_coin_toss_gives_no_rela_impr():
    results = [make_result("wide_deep", "base", 0, [0.49] * 4), make_result("wide_deep", "mwuf", 0, [0.6] * 4)]
    phases = _row(build_comparison(results), "wide_deep / mwuf")["phases"]
    assert phases["cold"]["rela_impr_next"]["mean"] is None


def test_the_ceiling_appears_where_the_data_has_one():
    results = two_methods()
    assert build_comparison(results)["ceiling"] is None
    for result in results:
        for phase in PHASES:
            result["phases"][phase] |= {"ceiling_next": 0.8, "ceiling_test": 0.81}
    ceiling = build_comparison(results)["ceiling"]
    assert ceiling == {
        "next": dict.fromkeys(PHASES, pytest.approx(0.8)),
        "test": dict.fromkeys(PHASES, pytest.approx(0.81)),
    }


def test_published_figures_stand_beside_the_rows_that_the_paper_has():
    results = two_methods(dataset="movielens-1m")
    results += [make_result("wide_deep", "mwuf", 0, [0.7] * 4, "no scaling", "movielens-1m")]
    comparison = build_comparison(results)
    row = _row(comparison, "wide_deep / mwuf")
    assert row["published"]["row"] == "MWUF(Wide & Deep)"
    assert row["published"]["auc_next"] == {"cold": 0.6339, "warm-a": 0.6569, "warm-b": 0.6999, "warm-c": 0.7273}
    ours = row["phases"]["warm-b"]["auc_next"]["mean"]
    assert row["published"]["difference"]["warm-b"] == pytest.approx(ours - 0.6999)
    assert _row(comparison, "wide_deep / mwuf (no scaling)")["published"] is None
    assert build_comparison(two_methods())["published_source"] is None


def test_published_table_agrees_with_the_papers_own_rela_impr():
    """The paper prints RelaImpr beside its AUCs; these pin the transcription (MovieLens-1M, cold and warm-c)."""
    printed = """FM,-74.2,-65.5\nPNN,-5.0,-2.0\nDCN,6.1,5.8\nAFN,-11.0,33.2\nDropoutNet,47.9,6.9\nMeLU,48.1,15.6
MetaEmb,41.4,30.2\nGRU4Rec,6.6,22.9\nDIN,11.3,24.4\nMWUF(Wide & Deep),38.3,49.2\nMWUF(AFN),41.5,60.7"""
    table = AUC["movielens-1m"]
    for name, cold, warm_c in csv.reader(io.StringIO(printed)):
        assert rela_impr(table[name][0], table["Wide & Deep"][0]) == pytest.approx(float(cold), abs=0.1)
        assert rela_impr(table[name][3], table["Wide & Deep"][3]) == pytest.approx(float(warm_c), abs=0.1)
    assert all(set(table) == set(ROWS.values()) for table in AUC.values())


def test_configs_are_told_apart_into_what_is_common_and_what_differs():
    results = two_methods(2)
    for result in results:
        result["config"] = {
            "seed": result["seed"],
            "data": {"name": "synthetic", "prepared_dir": "somewhere"},
            "method": {"name": result["method"]},
            "warm_up": {"epochs": 5},
        }
    comparison = build_comparison(results)
    assert comparison["config"] == {"data.name": "synthetic", "warm_up.epochs": 5}
    assert [row["config"] for row in comparison["rows"]] == [{"method.name": "base"}, {"method.name": "mwuf"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results.clear(), "no results"),
        (lambda results: results[3].update(schema=2), "wide_deep / mwuf, seed 1: results of schema 2"),
        (lambda results: results[3].update(dataset="other"), "'other'.*'synthetic'"),
        (lambda results: results[3]["split"].update(test=31), "split .*31.*same"),
        (lambda results: results.append(copy.deepcopy(results[3])), "wide_deep / mwuf, seed 1: two results"),
    ],
    ids=["none", "schema", "data set", "split", "cell twice"],
)
def test_results_that_cannot_be_compared_are_refused(change, message):
    results = two_methods(2)
    change(results)
    with pytest.raises(UserError, match=message):
        build_comparison(results)


def test_the_curve_by_clicks_runs_through_the_phases_and_is_summarised_over_seeds():
    results = [with_clicks(result, warm_rows=20) for result in two_methods(3)]
    results[0]["phases"]["cold"]["auc_by_clicks"][0]["auc"] = None  # a class is absent
    for row in build_comparison(results)["rows"]:
        curve = row["auc_by_clicks"]
        assert [(one["from"], one["to"]) for one in curve] == [*((n, n + 5) for n in range(0, 60, 5)), (60, None)]
        for index, one in enumerate(curve[1:], 1):
            assert one["auc"] == row["phases"][PHASES[index // 4]]["auc_next"]
        assert curve[0]["auc"]["num_seeds"] == (2 if row["method"] == "base" else 3)
    assert build_comparison(two_methods())["rows"][0]["auc_by_clicks"] == []


def audit_of(row, changed=None):
    found = {"passed": not changed, "num_scores": 10, "num_labels": 3, "changed": changed or {}}
    return {"row": row, "seed": 0, "config_hash": "", **found}


def test_audits_of_the_rows_are_one_and_a_row_without_is_named():
    audits = [audit_of("wide_deep / mwuf"), audit_of("a row of another study", {"cold on test": 1})]
    audit = build_comparison(two_methods(), audits)["audit"]
    assert (audit["passed"], audit["num_scores"], audit["missing"]) == (True, 10, ["wide_deep / base"])
    audits.append(audit_of("wide_deep / base", {"warm-a on warm_b": 7}))
    audit = build_comparison(two_methods(), audits)["audit"]
    assert (audit["passed"], audit["num_scores"], audit["missing"]) == (False, 20, [])
    assert build_comparison(two_methods())["audit"]["passed"] is None


def test_the_history_is_told_of_rows_whose_backbone_reads_one():
    config = {"backbone": {"history_length": 7}}
    results = [make_result(name, "base", 0, [0.6] * 4, config=config) for name in ("din", "fm", "encoder")]
    din, fm, encoder = (row["history"] for row in build_comparison(results)["rows"])
    assert (din, fm) == ("the last 7 events before the row", None)
    assert "later ones too" in encoder
