"""An AUC that is not defined is none, in every table, plot, claim and choice, and hides no other number."""

from __future__ import annotations

import io
import json
import re
import warnings as python_warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.plots import plot_run
from mwuf_dist.evaluation.report import build_comparison, markdown, print_comparison, write_comparison
from mwuf_dist.evaluation.significance import bootstrap_difference, holm, placements
from tests.evaluation.results import make_result, two_methods, with_clicks


def without(results: list[dict[str, Any]], *missing: tuple[str, str]) -> list[dict[str, Any]]:
    """The runs, with no AUC of these phases and scorings, in a split where those sets have no positive."""
    for result in results:
        split = result["split"] | {"positives": dict.fromkeys(("pretrain", "warm_a", "warm_b", "warm_c", "test"), 0.3)}
        for phase, scoring in missing:
            result["phases"][phase] |= {f"auc_{scoring}": None, f"calibration_{scoring}": None}
            name = "test" if scoring == "test" else ("warm_a", "warm_b", "warm_c", "test")[PHASES.index(phase)]
            split["positives"][name] = 0.0
        result["split"] = split
    return [with_clicks(result, 20) for result in results]


ONE = (("cold", "next"),)
TEST = tuple((phase, "test") for phase in PHASES)
ALL = (*TEST, *((phase, "next") for phase in PHASES))


@pytest.mark.parametrize("missing", [ONE, TEST, ALL])
def test_a_comparison_is_written_and_printed_whatever_is_not_defined(
    missing: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error")
        comparison = build_comparison(without(two_methods(), *missing))
        write_comparison(comparison, tmp_path)
        console = Console(file=io.StringIO(), width=100)
        print_comparison(comparison, console)
        plot_run([], without([make_result("fm", "map", 0, [0.6] * 4)], *missing)[0], tmp_path / "run.png")
    assert not re.search(r">[^<]*\bnan\b", (tmp_path / "report.html").read_text(), re.IGNORECASE)
    json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert any("scarcer class" in one for one in comparison["warnings"])


def test_the_other_numbers_of_a_row_stay_as_they_are() -> None:
    whole, lacking = build_comparison(two_methods()), build_comparison(without(two_methods(), *ONE))
    for row, same in zip(whole["rows"], lacking["rows"], strict=True):
        assert same["phases"]["cold"]["auc_next"] == {"mean": None, "std": None, "num_seeds": 0}
        assert same["phases"]["cold"]["rela_impr_next"]["mean"] is None
        for phase in PHASES[1:]:
            assert same["phases"][phase]["auc_next"] == row["phases"][phase]["auc_next"]
    line = next(one for one in markdown(lacking).splitlines() if one.replace("\\", "").startswith("| wide_deep / mwuf"))
    assert line.split("|")[2].strip() == "–" and "–" not in line.split("|")[3]


def test_where_test_has_one_class_nothing_is_claimed_or_deployed() -> None:
    claims = build_comparison(without(two_methods(), *TEST))["claims"]
    assert claims == {"reference": None, "sentences": [], "deploy": None, "seconds": {}}


def test_holm_corrects_by_the_tests_that_exist() -> None:
    """Six phases and scorings of eight are left: p-values are corrected as if the others had not been planned."""
    lacking = build_comparison(without(two_methods(), ("cold", "next"), ("warm-a", "next")))
    found = [
        versus
        for row in lacking["rows"]
        for phase in PHASES
        for kind in ("base", "best", "reference")
        if (versus := row["phases"][phase].get(f"versus_{kind}_next")) is not None
    ]
    known = [versus for versus in found if versus["p_value"] is not None]
    assert 0 < len(known) < len(found)
    assert [versus["p_holm"] for versus in known] == holm([versus["p_value"] for versus in known])
    assert all(not versus["is_gain"] and "p_holm" not in versus for versus in found if versus["p_value"] is None)


def test_placements_of_one_class_are_finite_and_its_bootstrap_is_not_asked_for() -> None:
    found = placements(np.array([0.1, 0.4]), np.array([0, 0]))
    assert np.isfinite(found).all()
    two = [placements(np.array([0.1, 0.4, 0.2]), np.array([0, 1, 0]))]
    assert bootstrap_difference(two, two, np.array([0, 1, 0]), np.array([0, 0, 1]))["difference"] == 0.0
