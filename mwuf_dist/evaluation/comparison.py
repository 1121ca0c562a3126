"""From the results of many runs to one comparison: a row per (backbone, method, variant), summarised over seeds.

The comparison is a plain dict, what `comparison.json` holds (schema 1). It keeps the words of `results.json`: where a
run has the number `phases.cold.auc_next`, a row has there its summary `{"mean", "std", "num_seeds"}`; None is a number
that does not exist. Beside them stand

* `rela_impr_next`, `rela_impr_test`: RelaImpr in percent against the row named in `rela_impr_base`;
* `versus_base_*`, `versus_best_*`, `versus_reference_*`: `{"row", "difference", "p_value", "num_seeds", "p_holm",
  "is_gain"}` of the AUC against the base of the same backbone, against the best row of any other method and against the
  best base of all: by the paired t-test over common seeds, or, where the scores are there, by the bootstrap over items
  and seeds, then with its `interval`. `p_holm` is corrected for the tests of the table;
* `mean_abs_scale` of a row, and `warm_up_step`: the rate of its warm-up times that, which is how far a step moves what
  is scored;
* `auc_by_clicks` of a row: the AUC of the next-set scoring by how many rows an item had before the scored one;
* `trivial`: rows that need no training (`mwuf_dist.studies.trivial`); `probes`: AUC of models that see what should tell
  nothing, by set (`mwuf_dist.studies.probes`); `sittings`: rows without an earlier sitting; `warnings`: what to know
  before the figures; `claims`: what the figures come to, in words;
* `about`: what the study says of itself; `audit`: the leak audit of its rows; `failures`: cells that have no result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.evaluation.claims import claims
from mwuf_dist.evaluation.configs import distinct, split_configs
from mwuf_dist.evaluation.metrics import rela_impr
from mwuf_dist.evaluation.published import CITATION, ROWS, published_auc
from mwuf_dist.evaluation.significance import (
    FEWEST_SEEDS,
    Summary,
    holm,
    is_significant_gain,
    paired_t_test,
    summarize,
)
from mwuf_dist.evaluation.warnings import is_large_enough, warnings

SCORINGS = ("next", "test")
VERSUS = ("base", "best", "reference")
_FEWEST_RELA_AUC = 0.55  # of a base: below it .001 of AUC are more than 2 % of RelaImpr
STAGES = ("prepare", "pretrain", "meta_train", "warm_up", "evaluate")
_METRICS = ("auc", "logloss", "calibration")
# What backbones read of a user's history; L is `backbone.history_length`.
_HISTORIES = {
    "gru4rec": "the last L events before the row",
    "din": "the last L events before the row",
    "encoder": "all of the user's events in pretrain but the row itself, later ones too",
}

Result = dict[str, Any]
Row = dict[str, Any]
# (backbone, method, variant) -> seed -> result
Runs = dict[tuple[str, str, str], dict[int, Result]]


def build_comparison(
    results: list[Result],
    audits: Sequence[dict[str, Any]] = (),
    about: Mapping[str, str] | None = None,
    failures: Mapping[str, str] | None = None,
    without_training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Summarises runs of one data set and split.

    Args:
        results: `results.json` of finished runs, in the order in which the rows shall stand. A run may carry its
            resolved `config`; the report then shows what is common and in what the rows differ.
        audits: leak audits of rows (`row`, `seed`, `passed`, `num_scores`, `num_labels`, `changed`).
        about: `title`, `regime`, `note` and `command` of the study.
        failures: by cell, why it has no result.
        without_training: `trivial`, `probes` and `sittings` of the data.

    Returns:
        The comparison (see the module's docstring). It holds only what JSON can.

    Raises:
        UserError: no results, an unknown schema, runs of different data sets or splits, or two runs of one cell.
    """
    runs = _group(results)
    first = results[0]
    rows = [_row(key, by_seed) for key, by_seed in runs.items()]
    for row, key in zip(rows, runs, strict=True):
        _add_baselines(row, key, runs, first["split"])
        row["published"] = _published(row, first["dataset"])
        row["history"] = _history(runs[key])
    comparison = {
        "schema": 1,
        "about": {key: value for key, value in (about or {}).items() if value},
        "dataset": first["dataset"],
        "split": first["split"],
        "seeds": sorted({result["seed"] for result in results}),
        "rows": rows,
        "ceiling": _ceiling(results),
        "published_source": CITATION if any(row["published"] for row in rows) else None,
        "versions": distinct(result.get("versions", {}) for result in results),
        "audit": _audit(rows, audits),
        "failures": dict(failures or {}),
        "trivial": [],
        "probes": {},
        "sittings": {},
        **(without_training or {}),
    }
    comparison["config"] = split_configs(rows, runs)
    conclude(comparison)
    return comparison


def conclude(comparison: dict[str, Any]) -> None:
    """Corrects the tests of each table, and puts what they come to in words; again when tests have changed."""
    for scoring in SCORINGS:
        tests = [
            (phase, versus, versus.get("num_seeds", len(row["seeds"])))
            for row in comparison["rows"]
            for phase, numbers in row["phases"].items()
            for kind in VERSUS
            if (versus := numbers.get(f"versus_{kind}_{scoring}"))
        ]
        known = [versus for _, versus, _ in tests if versus["p_value"] is not None]
        for versus, corrected in zip(known, holm([versus["p_value"] for versus in known]), strict=True):
            versus["p_holm"] = corrected
        for phase, versus, num_seeds in tests:
            versus["is_gain"] = (
                is_significant_gain(versus["difference"], versus.get("p_holm"))
                and num_seeds >= FEWEST_SEEDS
                and is_large_enough(comparison["split"], phase, scoring)
            )
    comparison["warnings"] = warnings(comparison)
    comparison["claims"] = claims(comparison)


def row_label(backbone: str, method: str, variant: str) -> str:
    """Returns the name of a row in tables and plots."""
    return f"{backbone} / {method}" + (f" ({variant})" if variant else "")


def _group(results: list[Result]) -> Runs:
    if not results:
        raise UserError("nothing to compare: no results were given; finish at least one run first")
    first = results[0]
    runs: Runs = {}
    for result in results:
        key = (result["backbone"], result["method"], result.get("variant", ""))
        cell = f"{row_label(*key)}, seed {result['seed']}"
        if result["schema"] != 1:
            raise UserError(f"{cell}: results of schema {result['schema']}, but this version reads 1; run it again")
        if result["dataset"] != first["dataset"]:
            raise UserError(
                f"{cell}: data set {result['dataset']!r}, but the first result is of {first['dataset']!r}; "
                "compare runs of one data set"
            )
        if result["split"] != first["split"]:
            raise UserError(
                f"{cell}: split {result['split']}, but the first result has {first['split']}; "
                "AUCs on different rows cannot be compared: give all runs the same [data] section"
            )
        if result["seed"] in runs.setdefault(key, {}):
            raise UserError(f"{cell}: two results of one cell; remove one, or give one of them another method.variant")
        runs[key][result["seed"]] = result
    return runs


def _row(key: tuple[str, str, str], by_seed: dict[int, Result]) -> Row:
    backbone, method, variant = key
    found = list(by_seed.values())
    phases = {
        phase: {
            f"{metric}_{scoring}": summarize(_values(by_seed, phase, f"{metric}_{scoring}").values())
            for scoring in SCORINGS
            for metric in _METRICS
        }
        for phase in PHASES
    }
    stages = {
        stage: {
            number: summarize(result["stages"].get(stage, {}).get(number) for result in found)
            for number in ("samples", "samples_per_s", "seconds")
        }
        for stage in STAGES
        if any(result["stages"].get(stage) for result in found)
    }
    return {
        "backbone": backbone,
        "method": method,
        "variant": variant,
        "label": row_label(*key),
        "seeds": sorted(by_seed),
        "phases": phases,
        "auc_by_clicks": _clicks_curve(found),
        "mean_abs_scale": summarize(_mean_scale(result) for result in found),
        "warm_up_step": summarize(_warm_up_step(result) for result in found),
        "stages": stages,
        "cells": [_cell(by_seed[seed]) for seed in sorted(by_seed)],
    }


def _mean_scale(result: Result) -> float | None:
    found = [numbers["mean_abs_scale"] for numbers in result["phases"].values() if "mean_abs_scale" in numbers]
    return sum(found) / len(found) if found else None


def _warm_up_step(result: Result) -> float | None:
    """Gives Adam's step in what is scored of a new item: the rate of `warm_up` times the mean |scale|."""
    rate = result.get("config", {}).get("warm_up", {}).get("learning_rate")
    return None if rate is None else rate * (_mean_scale(result) or 1.0)


def _cell(result: Result) -> dict[str, Any]:
    """Tells of a single run where it ran and how long it took."""
    return {
        "seed": result["seed"],
        "device": result.get("device"),
        "world_size": result.get("world_size"),
        "config_hash": result.get("config_hash"),
        "seconds": {stage: numbers.get("seconds") for stage, numbers in result["stages"].items() if numbers},
    }


def _clicks_curve(results: list[Result]) -> list[dict[str, Any]]:
    """Gives the buckets of the four phases behind each other, `auc` summarised over seeds.

    Empty where no run has them.
    """
    aucs: dict[tuple[int, int | None, int], list[float | None]] = {}
    for result in results:
        for phase in PHASES:
            for bucket in result["phases"].get(phase, {}).get("auc_by_clicks", ()):
                aucs.setdefault((bucket["from"], bucket["to"], bucket["rows"]), []).append(bucket["auc"])
    return [
        {"from": low, "to": high, "rows": rows, "auc": summarize(values)} for (low, high, rows), values in aucs.items()
    ]


def _history(by_seed: dict[int, Result]) -> str | None:
    """Says which history of a user the row's backbone has read; None where it reads none."""
    result = next(iter(by_seed.values()))
    config = result.get("config", {})
    length = config.get("backbone", {}).get("history_length")
    events = "positive" if config.get("data", {}).get("events", "all") == "positives" else ""
    history = _HISTORIES.get(result["backbone"])
    if history is None:
        return None
    return " ".join(
        history.replace(" L ", f" {length} " if length else " ").replace("events", f"{events} events").split()
    )


def _audit(rows: list[Row], audits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the leak audits of the rows in one; `passed` is None where no row has been audited."""
    by_row = {audit["row"]: audit for audit in audits}
    found = [by_row[row["label"]] for row in rows if row["label"] in by_row]
    return {
        "passed": all(audit["passed"] for audit in found) if found else None,
        "num_scores": sum(audit["num_scores"] for audit in found),
        "num_labels": sum(audit["num_labels"] for audit in found),
        "rows": found,
        "missing": [row["label"] for row in rows if row["label"] not in by_row],
    }


def _values(by_seed: dict[int, Result], phase: str, name: str) -> dict[int, float]:
    """Returns the number by seed, of the seeds that have it (a NaN is not equal to itself)."""
    found = {seed: result["phases"].get(phase, {}).get(name) for seed, result in by_seed.items()}
    return {seed: value for seed, value in found.items() if value is not None and value == value}


def _add_baselines(row: Row, key: tuple[str, str, str], runs: Runs, split: dict[str, Any]) -> None:
    """Adds RelaImpr and the tests of a row, in every phase and scoring."""
    backbone, method, variant = key
    own_base = _base(runs, backbone, variant)
    rela_base = _base(runs, "wide_deep", variant) or own_base
    reference = _reference(runs, variant)
    row["rela_impr_base"] = rela_base and row_label(*rela_base)
    for phase, numbers in row["phases"].items():
        for scoring in SCORINGS:
            name = f"auc_{scoring}"
            auc = _values(runs[key], phase, name)
            rela_base_auc = _values(runs[rela_base], phase, name) if rela_base else {}
            means_something = is_large_enough(split, phase, scoring)
            numbers[f"rela_impr_{scoring}"] = _rela_impr(auc, rela_base_auc if means_something else {})
            base = own_base if method != "base" else None
            numbers[f"versus_base_{scoring}"] = _versus(auc, base, phase, name, runs)
            best = _best_other(runs, method, variant, phase, name)
            numbers[f"versus_best_{scoring}"] = _versus(auc, best, phase, name, runs)
            other = reference if reference != key else None
            numbers[f"versus_reference_{scoring}"] = _versus(auc, other, phase, name, runs)


def _base(runs: Runs, backbone: str, variant: str) -> tuple[str, str, str] | None:
    """Returns the base of a backbone: of the same variant, else the plain one, else the first."""
    bases = [key for key in runs if key[:2] == (backbone, "base") and num_together(key[2]) == num_together(variant)]
    for wanted in ((backbone, "base", variant), (backbone, "base", "")):
        if wanted in bases:
            return wanted
    return bases[0] if bases else None


def num_together(variant: str) -> int:
    """Says how many seeds a score of a row is the mean of: rows are compared with such of the same number only."""
    found = re.search(r"mean of (\d+) seeds$", variant)
    return int(found[1]) if found else 1


def _reference(runs: Runs, variant: str) -> tuple[str, str, str] | None:
    """Returns the best base of all backbones, by its mean AUC over the phases on `test`."""
    bases = [key for key in runs if key[1] == "base" and num_together(key[2]) == num_together(variant)]

    def mean(key: tuple[str, str, str]) -> float:
        found = [summarize(_values(runs[key], phase, "auc_test").values())["mean"] for phase in PHASES]
        return sum(value for value in found if value is not None)

    return max(bases, key=mean, default=None)


def _best_other(runs: Runs, method: str, variant: str, phase: str, name: str) -> tuple[str, str, str] | None:
    """Returns the row of another method with the highest mean AUC."""
    means = {key: summarize(_values(by_seed, phase, name).values())["mean"] for key, by_seed in runs.items()}
    num = num_together(variant)
    others = [k for k, mean in means.items() if k[1] != method and mean is not None and num_together(k[2]) == num]
    return max(others, key=lambda key: means[key] or 0.0, default=None)


def _rela_impr(auc: dict[int, float], base: dict[int, float]) -> Summary:
    """Gives RelaImpr of the mean AUCs over common seeds (so the table's own AUCs give it).

    Its spread is that over seeds.

    The mean of the per-seed figures would be another number: where one seed's base is close to a coin toss, its ratio
    outweighs all others.
    """
    common = auc.keys() & base.keys()
    summary = summarize(rela_impr(auc[seed], base[seed]) for seed in common)
    if common:
        mean, mean_base = (sum(values[seed] for seed in common) / len(common) for values in (auc, base))
        of_means = rela_impr(mean, mean_base) if mean_base >= _FEWEST_RELA_AUC else float("nan")
        summary["mean"] = of_means if of_means == of_means else None
        summary["std"] = summary["std"] if summary["mean"] is not None else None
    return summary


def _versus(
    auc: dict[int, float], other: tuple[str, str, str] | None, phase: str, name: str, runs: Runs
) -> dict[str, Any] | None:
    if other is None:
        return None
    difference, p_value = paired_t_test(auc, _values(runs[other], phase, name))
    num_seeds = len(auc.keys() & _values(runs[other], phase, name).keys())
    return {"row": row_label(*other), "difference": difference, "p_value": p_value, "num_seeds": num_seeds}


def _published(row: Row, dataset: str) -> dict[str, Any] | None:
    """Returns the paper's next-set AUCs for this row and ours minus the paper's; a variant is no row of the paper."""
    aucs = published_auc(dataset, row["backbone"], row["method"]) if not row["variant"] else None
    if aucs is None:
        return None
    ours = {phase: row["phases"][phase]["auc_next"]["mean"] for phase in PHASES}
    paper = dict(zip(PHASES, aucs, strict=True))
    return {
        "row": ROWS[row["backbone"], row["method"]],
        "auc_next": paper,
        "difference": {phase: None if ours[phase] is None else ours[phase] - paper[phase] for phase in PHASES},
    }


def _ceiling(results: list[Result]) -> dict[str, dict[str, float | None]] | None:
    """Returns Bayes AUC by scoring and phase, of generated data; None for data whose truth nobody knows."""
    ceiling = {
        scoring: {
            phase: summarize(result["phases"].get(phase, {}).get(f"ceiling_{scoring}") for result in results)["mean"]
            for phase in PHASES
        }
        for scoring in SCORINGS
    }
    known = any(value is not None for phases in ceiling.values() for value in phases.values())
    return ceiling if known else None
