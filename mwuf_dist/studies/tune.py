"""`mwuf tune`: chooses settings on old items played as new, so that the reported sets are never looked at.

A fifth of the old items is left out of a separate pretraining, cut to as many rows as a new item may have, split by the
same rule, and warmed up. Every setting is tried on the same folds (another fifth, another seed). Where several runs are
tuned, each has the same number of settings: an equal budget.

The tries are cells of the scheduler that `mwuf compare` has too. Ray Tune would bring pandas and tensorboardX, and
knows neither tries that share a pretraining nor folders that a second call goes on from; what it is for, searchers and
early stopping, a dozen settings do not need.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tomli_w
from annotated_types import Ge, Le

from mwuf_dist.config import PHASES, Config, UserError, build, merge
from mwuf_dist.config.registry import find_class, method_config
from mwuf_dist.evaluation.comparison import row_label

_LARGEST_LANE_COUNT = 64
_FIRST_ROWS = "method.initialisation"
# What decides how far a method's rows move in the warm-up, for every method alike. The first rows of MetaEmb go with
# mwuf; for a base they are the method metaemb.
STANDARD_GRID: dict[str, tuple[Any, ...]] = {
    _FIRST_ROWS: ("default", "random", "mean", "metaemb"),
    "warm_up.learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "warm_up.epochs": (1, 5),
}


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Tune:
    """Section `tune` of a config: what `mwuf tune` tries.

    Attributes:
        folds: how many choices of the items that play new.
        settings: for each setting, the keys that differ from the rest of the file; the file itself is tried first.
        runs: for each run that is tuned, the keys that differ from the rest of the file, and under `settings` what is
            tried for this run alone; empty: the file itself is the only run, or, with a grid, those of [study].
        grid: for dotted keys the values whose every combination is tried for every run; "standard" is `STANDARD_GRID`.
            A method that makes first rows of its own leaves `method.initialisation` alone, one that fits its rows (map)
            the keys of `warm_up`, which has no steps then.
    """

    folds: Annotated[int, Ge(1), Le(10_000)] = 2
    settings: tuple[dict[str, Any], ...] = ()
    runs: tuple[dict[str, Any], ...] = ()
    grid: Literal["standard"] | dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    def settings_of_runs(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Returns for each run its keys, and the settings to try: none, those of all runs, its own."""
        found = []
        for run in self.runs or ({},):
            keys = {key: value for key, value in run.items() if key != "settings"}
            found.append((keys, [{}, *self.settings, *run.get("settings", ()), *self.combinations(keys)]))
        return found

    def combinations(self, keys: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the settings of the grid that a run with these keys can have."""
        grid = STANDARD_GRID if self.grid == "standard" else self.grid
        fits_rows = find_class("method", method_config(**keys.get("method", {})).name).fits_items
        grid = {key: values[:1] if fits_rows and key.startswith("warm_up.") else values for key, values in grid.items()}
        combinations = []
        for values in itertools.product(*grid.values()) if grid else ():
            chosen = dict(zip(grid, values, strict=True))
            if _FIRST_ROWS not in chosen or _is_possible(keys.get("method", {}), chosen[_FIRST_ROWS]):
                combinations.append(functools.reduce(merge, (_nested(key, value) for key, value in chosen.items())))
        return combinations


def _is_possible(method: dict[str, Any], first_rows: str) -> bool:
    """Says whether a method can start new items so; of a grid each of its other values is tried once."""
    config = method_config(**method)
    if find_class("method", config.name).default_initialisation(config) == "own":
        return first_rows == "default"
    if first_rows == "default":
        return config.name not in ("base", "mwuf")  # the same as another value
    return first_rows in ("mean", "random", "zero") or config.name == "mwuf"


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@dataclasses.dataclass(frozen=True)
class Try:
    """One setting of one run on one fold."""

    run: int
    setting: int
    fold: int
    config: Config


def read_tune(values: dict[str, Any], where: str) -> Tune:
    """Returns the section `tune` of a config's plain values.

    Raises:
        UserError: it is missing or has a wrong key, or its runs have not the same number of settings.
    """
    try:
        tune = pydantic.TypeAdapter(Tune).validate_python(values.get("tune", {}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["tune", *map(str, first["loc"])])
        raise UserError(f"{where}: `{key}` = {first['input']!r}: {first['msg']}") from None
    for number, run in enumerate(tune.runs):
        own = run.get("settings", [])
        if not (isinstance(own, list) and all(isinstance(setting, dict) for setting in own)):
            raise UserError(f"{where}: `tune.runs.{number}.settings` must be a list of tables, not {own!r}")
    if tune.grid and not tune.runs:
        study = values.get("study")
        rows = tuple(study.get("runs", ())) if isinstance(study, dict) else ()
        tune = dataclasses.replace(tune, runs=rows)
    # What of a grid is possible depends on the method, and a run may leave that to the file.
    method = values.get("method", {})
    if tune.runs:
        tune = dataclasses.replace(tune, runs=tuple(_with_method(run, method) for run in tune.runs))
    else:
        settings = (*tune.settings, *tune.combinations({"method": method}))
        tune = dataclasses.replace(tune, settings=settings, grid={})
    nums = [len(settings) for _, settings in tune.settings_of_runs()]
    if max(nums) == 1 and values.get("tune", {}).get("grid"):
        raise UserError(f"{where}: of `tune.grid` no first rows are any that the method can have")
    if max(nums) == 1:
        raise UserError(f"{where}: no [[tune.settings]] to try, nor a `tune.grid`: see configs/movielens-1m-tune.toml")
    own = [len(run.get("settings", ())) for run in tune.runs]
    if len(set(own)) > 1:
        raise UserError(
            f"{where}: the runs of [tune] have {', '.join(map(str, nums))} settings: give each as many, or the one "
            "with more has the better chances"
        )
    return tune


def _with_method(run: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    own = run.get("method", {})
    return run if "name" in own else run | {"method": method | own}


def tries(values: dict[str, Any], tune: Tune, share_of_new: float, where: str) -> list[Try]:
    """Returns every setting of every run, fold by fold.

    Args:
        values: the config file's plain values, without `study` and `tune`.
        tune: what to try.
        share_of_new: items that play new, as a share of the real new items. A warm-up batch is made smaller by it, so
            that an item gets as many steps and as many rows a step as a real one: else another rate comes out best.
        where: named in error messages.

    Raises:
        UserError: a setting has a wrong key, or two runs have one name.
    """
    found = []
    for fold in range(tune.folds):
        for run, (keys, settings) in enumerate(tune.settings_of_runs()):
            for number, setting in enumerate(settings):
                name = f"{where}, setting {number} of [tune]" + (f", run {run + 1}" if tune.runs else "")
                config = build(merge(merge(values, keys), setting), name)
                label = f"{config.method.variant if tune.runs else ''} setting {number} fold {fold}".strip()
                forced = {
                    "seed": fold,
                    "data": dataclasses.replace(config.data, old_items_as_new=True, old_items_as_new_seed=fold),
                    # By run too, as the setting of one may be the backbone or the method of another.
                    "method": dataclasses.replace(
                        config.method, variant=f"run {run + 1} {label}" if tune.runs else label
                    ),
                    "warm_up": dataclasses.replace(
                        config.warm_up, batch_size=_scaled_batch(config.warm_up.batch_size, share_of_new)
                    ),
                }
                found.append(Try(run, number, fold, dataclasses.replace(config, **forced)))
    return found


def _scaled_batch(batch_size: int, share: float) -> int:
    lanes = min(_LARGEST_LANE_COUNT, batch_size)
    return max(1, round(batch_size * share / lanes)) * lanes


def summarise(tried: Sequence[Try], cells: Sequence[dict[str, Any]], tune: Tune) -> dict[str, Any]:
    """Returns the mean AUCs of every setting over the folds, best first within each run.

    Args:
        tried: the tries.
        cells: their results, in the same order.
        tune: what was to be tried.

    Returns:
        `rows`, one per run and setting: `run` (a label), `number` and `setting`, `auc_next` and `auc_test` [4], and
        `score`, the mean of both over all phases. None where a set has one class, which the score leaves out.
    """
    results: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one, cell in zip(tried, cells, strict=True):
        assert cell["variant"] == one.config.method.variant, "results in another order than the tries"
        results.setdefault((one.run, one.setting), []).append(cell)
    rows = []
    for run, (keys, settings) in enumerate(tune.settings_of_runs()):
        of_run = []
        for number, setting in enumerate(settings):
            row: dict[str, Any] = {"run": _label(keys, results[run, 0][0]), "setting": setting, "number": number}
            for scoring in ("next", "test"):
                row[f"auc_{scoring}"] = [
                    _mean(cell["phases"][phase][f"auc_{scoring}"] for cell in results[run, number]) for phase in PHASES
                ]
            row["score"] = mean_auc(row["auc_next"], row["auc_test"])
            of_run.append(row)
        rows += sorted(of_run, key=lambda row: -(row["score"] or 0.0))
    return {
        "schema": 1,
        "dataset": cells[0]["dataset"],
        "folds": tune.folds,
        "num_settings": max(len(settings) for _, settings in tune.settings_of_runs()),
        "split": cells[0]["split"],
        "rows": rows,
    }


def mean_auc(of_next: Iterable[float | None], of_test: Iterable[float | None]) -> float | None:
    """Averages AUCs over phases and both scorings, which settings are compared by; None where none is defined."""
    return _mean([*of_next, *of_test])


def score_of(cell: dict[str, Any]) -> float | None:
    """Returns the `mean_auc` of a run."""
    phases = [cell["phases"][phase] for phase in PHASES]
    return mean_auc((phase["auc_next"] for phase in phases), (phase["auc_test"] for phase in phases))


def _mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are defined: all settings have the same sets, so they lack the same ones."""
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _label(keys: dict[str, Any], cell: dict[str, Any]) -> str:
    method = keys.get("method", {})
    return row_label(cell["backbone"], method.get("name", cell["method"]), method.get("variant", ""))


def chosen_toml(summary: dict[str, Any], tune: Tune, source: Path, overridden: dict[str, Any], folder: Path) -> str:
    """Returns a config for `mwuf compare` in which every run has its best setting.

    Args:
        summary: of `summarise`.
        tune: what was tried.
        source: the config file of the search.
        overridden: keys that the command line set.
        folder: where the text will lie; it extends `source` from there.
    """
    num, first = summary["num_settings"], 0
    runs, words = [], []
    for keys, settings in tune.settings_of_runs():
        best = summary["rows"][first]
        first += len(settings)
        runs.append(merge(keys, best["setting"]))
        words.append(f"{best['run']}: {setting_words(best['setting'])}")
    sizes = {len(settings) for _, settings in tune.settings_of_runs()}
    up_to = "up to " if len(sizes) > 1 else ""
    folds = f"{summary['folds']} folds" if summary["folds"] > 1 else "one fold"
    note = (
        f"Settings by mwuf tune on old items played as new, {folds}, {up_to}{num} settings for each run; chosen: "
        f"{'; '.join(words)}."
    )
    extends = os.path.relpath(source.resolve(), folder.resolve())
    values = {"extends": extends} | overridden | {"study": {"note": note, "runs": runs}}
    return f"# Written by `mwuf tune {source.name}`: the best setting of each run.\n" + tomli_w.dumps(values)


def table(summary: dict[str, Any]) -> str:
    """Returns the settings of each run, best first, as lines of text."""
    lines = [f"{'':>3} {'score':>6}   {'fixed test':^27}   {'next set':^27}   setting"]
    run = summary["rows"][0]["run"] if len({row["run"] for row in summary["rows"]}) == 1 else None
    for row in summary["rows"]:
        if row["run"] != run:
            run = row["run"]
            lines.append(run)
        test, next_set = ("  ".join(map(_short, row[key])) for key in ("auc_test", "auc_next"))
        head = f"{row['number']:>3} {'–' if row['score'] is None else format(row['score'], '.4f'):>6}"
        lines.append(f"{head}   {test:^27}   {next_set:^27}   {setting_words(row['setting'])}")
    positives = summary["split"]["positives"]
    lines.append(
        f"{summary['folds']} fold{'' if summary['folds'] == 1 else 's'}; positives of the items that play new: "
        f"{positives['test']:.2f} in the test set, {positives['pretrain']:.2f} in pretraining"
    )
    return "\n".join(lines)


def _short(auc: float | None) -> str:
    return f"{'–':>5}" if auc is None else f"{auc:.4f}"[1:]


def setting_words(setting: dict[str, Any], prefix: str = "") -> str:
    """Returns a setting as `section.key=value` words."""
    parts = [
        setting_words(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}"
        for key, value in setting.items()
    ]
    return " ".join(parts) or "as configured"
