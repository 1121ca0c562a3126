"""`mwuf recommend`: which method for these data, within a time budget, on old items played as new.

Candidates are methods at a few warm-up rates. What they have to beat is the plain alternative: a base whose new items
start from the mean row, at its own best rate. Successive halving (Jamieson and Talwalkar 2016) over folds: all are
tried on a first choice of items that play new, with a pretraining of its own; the better half on a second; and so on,
until one method and one alternative are left or the time is up. The best of many is so partly by luck, so the gain that
counts is measured once more, on folds that had no part in the choice.

It is `mwuf tune` with another rule of what is tried next: the tries, their folders and the scheduler are the same.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from mwuf_dist.config import PHASES, Config, UserError, build, config_hash, merge, to_dict
from mwuf_dist.config.registry import find_class
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.evaluation.significance import Difference, bootstrap_folds
from mwuf_dist.studies.compare import cell_name, pretraining_of
from mwuf_dist.studies.intervals import fold_difference
from mwuf_dist.studies.records import Cell
from mwuf_dist.studies.schedule import duration
from mwuf_dist.studies.tune import Try, Tune, score_of, tries

# Those that learn in a fraction of a pretraining, and that go with every backbone; two more where rows can be fitted.
CHEAP_METHODS = ("mwuf", "metaemb", "align", "content_delta", "semantic_id", "cvar")
_FITTED = {"map": {"item_dropout": 0.3}, "map, prior by content": {"prior": "content", "prior_strength": 2.0}}
# The alternative has more of them than a method: whoever is to be replaced gets the better chances.
_METHOD_RATES = (1e-2, 3e-3, 3e-2)
_PLAIN_RATES = (1e-2, 3e-3, 3e-2, 1e-3, 1e-1)
_MOST_ROUNDS = 6  # of choosing, a fold each; enough to halve 64 candidates
_MOST_CHECKS = 3  # folds that had no part in the choice

Do = Callable[[Sequence[Config]], Mapping[str, tuple[Cell, Path]]]


@dataclass(frozen=True)
class Candidate:
    """A method with its settings.

    Attributes:
        label: for people.
        keys: that differ from the config.
        is_plain: it is the alternative, at one of its rates.
    """

    label: str
    keys: dict[str, Any]
    is_plain: bool = False


def candidates(config: Config, only: Collection[str] = ()) -> list[Candidate]:
    """Lists what is tried: breadth first, so that where time is short every method has been tried at one rate.

    Args:
        config: of the data and the backbone; its own method is tried as it is configured.
        only: names of methods; empty: those that are cheap.

    Raises:
        UserError: there is no method of such a name, or none that could beat the alternative.
    """
    for name in only:
        find_class("method", name)
    if set(only) == {"base"}:
        raise UserError("--methods base: it is what every other method has to beat: name one of those, or none for all")
    methods = [name for name in only if name != "base"] or list(CHEAP_METHODS)
    found = [Candidate(f"{config.method.name}, as configured", {})]
    for place, rate in enumerate(_PLAIN_RATES):
        keys = {"name": "base", "initialisation": "mean"}
        found.append(Candidate(f"base from the mean row, rate {rate:g}", _keys(keys, rate), is_plain=True))
        if place < len(_METHOD_RATES):
            found += [
                Candidate(f"{name}, rate {rate:g}", _keys({"name": name, "initialisation": "default"}, rate))
                for name in methods
                if name != "map"
            ]
    if find_class("backbone", config.backbone.name).linear_in_item and (not only or "map" in only):
        fitted = [{"name": "map", "initialisation": "default"} | keys for keys in _FITTED.values()]
        found[1:1] = [Candidate(label, {"method": keys}) for label, keys in zip(_FITTED, fitted, strict=True)]
    # The config itself may be one of them, the alternative even.
    built: list[Config] = []
    distinct = []
    for one in reversed(found):
        values = build(merge(to_dict(config), one.keys))
        if values not in built:
            built.append(values)
            distinct.insert(0, one)
    return distinct


def _keys(method: dict[str, Any], rate: float) -> dict[str, Any]:
    return {"method": method, "warm_up": {"learning_rate": rate}}


@dataclass(frozen=True)
class Tried:
    """A candidate on a fold: its record, the folder of its run, its score, and what it cost beside the pretraining."""

    cell: Cell
    folder: Path
    score: float
    own_s: float


@dataclass
class Search:
    """Tries candidates until one is left or the time is up.

    Args:
        config: of the data and the backbone.
        candidates: what is tried, plain ones among them.
        share_of_new: see `tune.tries`.
        where: named in error messages.
        do: does runs, those that are not done yet, and gives what has been finished, by the name of the cell.
        left_s: seconds that are left.
        say: tells progress.
    """

    config: Config
    candidates: Sequence[Candidate]
    share_of_new: float
    where: str
    do: Do
    left_s: Callable[[], float]
    say: Callable[[str], None]
    tried: dict[tuple[int, int], Tried] = field(init=False, default_factory=dict)  # by candidate and fold
    out: dict[int, str] = field(init=False, default_factory=dict)  # why a candidate is no more tried
    chosen_by: list[int] = field(init=False, default_factory=list)  # folds
    checked_by: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        plan = Tune(folds=_MOST_ROUNDS + _MOST_CHECKS, runs=tuple(one.keys for one in self.candidates))
        found: Iterable[Try] = tries(to_dict(self.config), plan, self.share_of_new, self.where)
        self._configs = {(one.run, one.fold): one.config for one in found}

    def configs(self, fold: int = 0) -> list[Config]:
        """Returns the runs of all candidates on a fold."""
        return [self._configs[number, fold] for number in range(len(self.candidates))]

    def run(self) -> tuple[int, int] | None:
        """Tries them; returns the best method and the best alternative, or None where time was too short for that."""
        alive = list(range(len(self.candidates)))
        for fold in range(_MOST_ROUNDS):
            self.say(f"fold {fold + 1}: {len(alive)} candidates, {duration(max(0.0, self.left_s()))} left")
            done = self._try(alive, fold)
            is_whole = len(done) == len(alive)
            if is_whole or not self.chosen_by:
                self.chosen_by.append(fold)
                alive = done
            if not self._best(alive):
                return None
            if not is_whole:
                break
            staying = self.staying(alive)
            self.out |= {one: f"after fold {fold + 1}" for one in alive if one not in staying}
            is_last = len(staying) == 2 or fold == _MOST_ROUNDS - 1
            if is_last or self.left_s() < self._seconds(staying, fold + 1) + self._seconds(staying[:2], _MOST_ROUNDS):
                alive = staying
                break
            alive = staying
        best = self._best(alive)
        assert best is not None
        self._check(best)
        return best

    def staying(self, alive: Sequence[int]) -> list[int]:
        """Returns the better half of the methods and of the alternatives, one of each at least."""
        halves = []
        for is_plain in (False, True):
            group = [one for one in alive if self.candidates[one].is_plain == is_plain]
            halves += sorted(group, key=lambda one: -self.score(one))[: max(1, len(group) // 2)]
        return sorted(halves)

    def score(self, number: int) -> float:
        """Returns the mean score of a candidate over the folds that it was chosen by."""
        return statistics.fmean(
            self.tried[number, fold].score for fold in self.chosen_by if (number, fold) in self.tried
        )

    def difference(self, ours: int, theirs: int, folds: Sequence[int]) -> Difference | None:
        """Returns the gain in score of one candidate over another on the folds that both have, with its interval."""
        common = [fold for fold in folds if (ours, fold) in self.tried and (theirs, fold) in self.tried]
        if not common:
            return None
        pairs = [
            fold_difference(
                self.tried[ours, fold].folder, self.tried[theirs, fold].folder, prepare(self._configs[ours, fold].data)
            )
            for fold in common
        ]
        return bootstrap_folds([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def _best(self, alive: Sequence[int]) -> tuple[int, int] | None:
        groups = [[one for one in alive if self.candidates[one].is_plain == is_plain] for is_plain in (False, True)]
        if not all(groups):
            return None
        method, plain = (max(group, key=self.score) for group in groups)
        return method, plain

    def _try(self, numbers: Sequence[int], fold: int) -> list[int]:
        """Tries candidates on a fold; returns those that have been finished."""
        wanted = {cell_name(self._configs[number, fold]): number for number in numbers}
        for name, (cell, folder) in self.do([self._configs[number, fold] for number in numbers]).items():
            score = score_of(cell)
            if score is not None:
                stages = {key: stage for key, stage in cell["stages"].items() if key not in ("prepare", "pretrain")}
                own_s = sum(stage.get("seconds") or 0.0 for stage in stages.values())
                self.tried[wanted[name], fold] = Tried(cell, folder, score, own_s)
        done = [number for number in numbers if (number, fold) in self.tried]
        if not self.chosen_by:
            self.out |= {number: "not finished" for number in numbers if number not in done}
        return done

    def _seconds(self, numbers: Sequence[int], fold: int) -> float:
        """Estimates what it takes to try candidates on a fold, by what it took on the folds before."""
        of_pretraining: dict[str, float] = {}
        total = 0.0
        for number in numbers:
            earlier = [one for (other, _), one in self.tried.items() if other == number]
            total += statistics.fmean(one.own_s for one in earlier)
            shared = config_hash(pretraining_of(self._configs[number, fold]))
            seconds = (one.cell["stages"].get("pretrain", {}).get("seconds") or 0.0 for one in earlier)
            of_pretraining[shared] = max(of_pretraining.get(shared, 0.0), *seconds)
        return total + sum(of_pretraining.values())

    def _check(self, best: tuple[int, int]) -> None:
        """Tries the two that are left on folds that had no part in the choice."""
        for fold in range(_MOST_ROUNDS, _MOST_ROUNDS + _MOST_CHECKS):
            if self.left_s() < self._seconds(best, fold):
                return
            if not self.checked_by:
                labels = " against ".join(self.candidates[one].label for one in best)
                self.say(f"{labels}, on items that had no part in the choice")
            if len(self._try(best, fold)) < len(best):
                return
            self.checked_by.append(fold)


def summarise(search: Search, best: tuple[int, int]) -> dict[str, Any]:
    """Summarises what was found.

    Returns:
        `rows`, one per candidate, best first: `label`, `keys`, `is_plain`, `folds` (how many), `score` (mean AUC over
        phases and both scorings), `auc_test` [4], `gain` over the best alternative with `low` and `high` (95 %) on the
        items that the choice was made by, `seconds` (of its own stages, without the pretraining), `out` (why it was no
        more tried). `check`: the gain on items that had no part in the choice, None where there was no time.
        `recommended`: the label; the best method's where the whole interval of `check` is above zero.
    """
    method, plain = best
    rows = []
    for number, one in enumerate(search.candidates):
        of_folds = [search.tried[number, fold] for fold in search.chosen_by if (number, fold) in search.tried]
        row: dict[str, Any] = {"label": one.label, "keys": one.keys, "is_plain": one.is_plain, "folds": len(of_folds)}
        row |= {"score": None, "auc_test": None, "gain": None, "seconds": None, "out": search.out.get(number, "")}
        if of_folds:
            phases = [one.cell["phases"] for one in of_folds]
            row["score"] = search.score(number)
            row["auc_test"] = [_mean(found[phase]["auc_test"] for found in phases) for phase in PHASES]
            row["gain"] = None if number == plain else search.difference(number, plain, search.chosen_by)
            row["seconds"] = statistics.fmean(one.own_s for one in of_folds)
        rows.append(row)
    check = search.difference(method, plain, search.checked_by)
    is_sure = check is not None and check["low"] > 0
    rows.sort(key=lambda row: (-row["folds"], -(row["score"] or 0.0)))
    return {
        "schema": 1,
        "dataset": search.tried[method, search.chosen_by[0]].cell["dataset"],
        "chosen_by": len(search.chosen_by),
        "checked_by": len(search.checked_by),
        "rows": rows,
        "method": search.candidates[method].label,
        "alternative": search.candidates[plain].label,
        "check": check,
        "recommended": search.candidates[method if is_sure else plain].label,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def table(summary: dict[str, Any]) -> str:
    """Returns the candidates as lines of text, best first, and what follows from them."""
    lines = [f"{'score':>6}  {'gain, 95 %':>22}  {'seconds':>7}  {'folds':>5}  candidate"]
    for row in summary["rows"]:
        score = "–" if row["score"] is None else f"{row['score']:.4f}"
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.1f}"
        out = f"   ({row['out']})" if row["out"] else ""
        lines.append(f"{score:>6}  {_gain(row['gain']):>22}  {seconds:>7}  {row['folds']:>5}  {row['label']}{out}")
    lines.append(f"gain: over {summary['alternative']}, on the items that the choice was made by")
    return "\n".join([*lines, verdict(summary)])


def _gain(found: Difference | None) -> str:
    return "–" if found is None else f"{found['difference']:+.4f} {found['low']:+.4f} {found['high']:+.4f}"


def verdict(summary: dict[str, Any]) -> str:
    """Says what is recommended and why, in a sentence."""
    check, method, plain = summary["check"], summary["method"], summary["alternative"]
    if check is None:
        return (
            f"recommended: {plain}; there was no time to try {method} against it on items that had no part in the "
            "choice: the same command goes on from here"
        )
    found = (
        f"{method} has {check['difference']:+.4f} (95 %: {check['low']:+.4f} to {check['high']:+.4f}) over {plain} on "
        f"items that had no part in the choice, {_folds(summary['checked_by'])}"
    )
    if check["low"] > 0:
        return f"recommended: {method}; {found}"
    return f"recommended: {plain}; {found}, which is not surely a gain"


def _folds(num: int) -> str:
    return "one fold" if num == 1 else f"{num} folds"


def config_toml(summary: dict[str, Any], source: Path, overridden: dict[str, Any], folder: Path) -> str:
    """Writes the config to deploy: the source's, keys of what is recommended, a study of it and the alternative.

    Args:
        summary: of `summarise`.
        source: the config file.
        overridden: keys that the command line set.
        folder: where the text will lie; it extends `source` from there.
    """
    keys = {row["label"]: row["keys"] for row in summary["rows"]}
    recommended, alternative = keys[summary["recommended"]], keys[summary["alternative"]]
    runs = [merge(alternative, {"method": {"variant": "mean row, own rate"}})]
    if summary["recommended"] != summary["alternative"]:
        runs = [{**recommended}, *runs]
    extends = os.path.relpath(source.resolve(), folder.resolve())
    study = {"note": f"By mwuf recommend: {verdict(summary)}.", "runs": runs}
    values = {"extends": extends} | merge(overridden, recommended) | {"study": study}
    head = f"# Written by `mwuf recommend {source.name}`.\n# {verdict(summary).replace('; ', chr(10) + '# ')}\n"
    return head + tomli_w.dumps(values)


def clock(minutes: float) -> Callable[[], float]:
    """Starts a clock; it tells the seconds that are left of so many minutes."""
    end = time.monotonic() + 60 * minutes
    return lambda: end - time.monotonic()
