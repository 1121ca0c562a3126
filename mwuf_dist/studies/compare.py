"""`mwuf compare`: several methods, backbones and seeds on one protocol, one report.

Runs that share data, backbone, pretraining settings and seed share one pretraining. A finished run is never done
again: a comparison that was stopped goes on, and one with more seeds only does the new ones. What another machine has
done joins in as records. One run of every row is audited for leaks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Le

from mwuf_dist import methods
from mwuf_dist.config import (
    Config,
    CountOrZero,
    MetaTrainConfig,
    UserError,
    WarmUpConfig,
    build,
    config_hash,
    fitting,
    merge,
    to_dict,
)
from mwuf_dist.config.registry import ROOMS, find_class
from mwuf_dist.data import sources
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.comparison import row_label
from mwuf_dist.files import make_folder, remove, write_atomically, write_json
from mwuf_dist.studies.ensembles import ensemble_row, with_ensembles
from mwuf_dist.studies.records import Cell, Records, RowKey, cell_key, merged, read_audits, row_key, with_scores
from mwuf_dist.studies.schedule import Failure, Progress, Runner, Task, do_tasks
from mwuf_dist.training.folder import check_folder, check_same_data, finished_results, trained_on


@dataclass(frozen=True)
class Actions:
    """Holds what is done for a cell; another process must be able to import it.

    Attributes:
        train: (config, folder, checkpoint of its pretraining) -> the run's results.
        pretrain: (config, folder) -> the checkpoint.
        audit: (config, scratch folder) -> the leak audit of a run; None: no row is audited.
    """

    train: Callable[[Config, Path, Path | None], dict[str, Any]]
    pretrain: Callable[[Config, Path], Path]
    audit: Callable[[Config, Path], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Outcome:
    """Holds what a comparison has come to.

    Attributes:
        records: of its cells.
        failures: by task, what has failed.
        finished: the cells of this folder, each with the folder of its run.
    """

    records: Records
    failures: dict[str, Failure]
    finished: Sequence[tuple[Cell, Path]] = ()


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Study:
    """Section `study` of a config: what `mwuf compare` runs.

    Attributes:
        seeds: how many.
        runs: for each run, the keys that differ from the rest of the file.
        title: of the report.
        regime: `paper` or `strong`, or a word of your own: what the settings are for; the report says it.
        note: a sentence for the report.
        ensemble: also show, as a row of its own behind each row, the mean logit of so many seeds at a time
            (with fewer seeds there is none); 0: do not.
        protocol: `paper`: per item, by rows; `stream`: day by day, see section `data.stream`.
    """

    seeds: Annotated[int, Ge(1), Le(10_000)] = 1
    runs: tuple[dict[str, Any], ...] = ()
    title: str = ""
    regime: str = ""
    note: str = ""
    ensemble: CountOrZero = 0
    protocol: Literal["paper", "stream"] = "paper"


def read_study(values: dict[str, Any], where: str, seeds: int = 0) -> Study:
    """Returns the section `study` of a config's plain values.

    Args:
        values: of the config.
        where: named in error messages.
        seeds: number of seeds; 0 takes the section's.

    Raises:
        UserError: it is missing or has a wrong key.
    """
    if "study" not in values:
        raise UserError(f"{where}: no section [study] with `seeds` and [[study.runs]]: see configs/demo.toml")
    section = values["study"]
    if isinstance(section, dict) and seeds:
        section = section | {"seeds": seeds}
    try:
        study = pydantic.TypeAdapter(Study).validate_python(section)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["study", *map(str, first["loc"])])
        raise UserError(f"{where}: `{key}` = {first['input']!r}: {first['msg']}") from None
    if study.ensemble == 1:
        raise UserError(f"{where}: `study.ensemble` = 1: the mean of at least 2 seeds; 0 leaves it out")
    if study.ensemble and study.protocol == "stream":
        raise UserError(f"{where}: `study.ensemble` does not go with `study.protocol` = 'stream'")
    if not study.runs:
        raise UserError(f"{where}: [study] has no [[study.runs]]: see configs/demo.toml")
    return study


def run_configs(
    values: dict[str, Any], study: Study, where: str, overridden: dict[str, Any], first_seed: int = 0
) -> list[Config]:
    """Returns the config of every run, seed by seed.

    Args:
        values: of the config file.
        study: its section.
        where: named in error messages.
        overridden: keys that the command line sets, for every run.
        first_seed: the runs use seeds from this one on.

    Raises:
        UserError: a run has a wrong key, or two runs could not be told apart in the report.
    """
    shared = {key: value for key, value in values.items() if key not in ("study", "tune")}
    if "seed" in overridden or any("seed" in run for run in study.runs):
        raise UserError(f"{where}: a comparison has N seeds: give `study.seeds` or --seeds N, not `seed`")
    configs = []
    for seed in range(first_seed, first_seed + study.seeds):
        for number, run in enumerate(study.runs):
            own = merge(merge(run, _that_it_has(overridden, merge(shared, run))), {"seed": seed})
            own = merge(own, {"data": {"protocol": "stream"}}) if study.protocol == "stream" else own
            configs.append(build(merge(shared, own), f"{where}, run {number + 1} of [study]"))
    names = [cell_name(config) for config in configs[: len(study.runs)]]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(
                f"{where}: runs {names.index(name) + 1} and {number + 1} of [study] are both called {name}: give one "
                "of them a `method.variant`, a label of your own"
            )
    return configs


def _that_it_has(overridden: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Takes what the command line sets, without the keys that a run's own backbone or method does not have."""
    out = dict(overridden)
    for kind, room in ROOMS.items():
        if kind in out and "name" not in out[kind]:
            out[kind] = fitting(kind, out[kind], values.get(kind, {}).get("name", room.default))
    return out


@dataclass
class _Plan:
    """The cells of a comparison and its folder: `runs/`, `pretrained/`, `audits/` and `failures/` are made in it."""

    configs: Sequence[Config]
    folder: Path
    others: Sequence[tuple[str, Records]]
    done: dict[str, Cell] = field(default_factory=dict)  # by name, those of the folder
    audits: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for config in self.configs:
            check_names(config)
        # Before hours of training, and not when the results are put together.
        merged(Records([_planned_cell(config) for config in self.configs]), self.others)
        elsewhere = {cell_key(cell) for _, records in self.others for cell in records.cells}
        self.left: list[Config] = []
        for config in self.configs:
            target = self.run_folder(config)
            check_folder(config, target)
            results = finished_results(target)
            if results is not None:
                self.done[cell_name(config)] = with_scores(results, target)
            elif cell_key(_planned_cell(config)) not in elsewhere:
                self.left.append(config)

    def run_folder(self, config: Config) -> Path:
        """Names the folder of a run."""
        return self.folder / "runs" / cell_name(config)

    def tasks(self, actions: Actions) -> list[Task]:
        """Lists what is left to do: each cell after its pretraining, the audit of a row after its first cell."""
        tasks: dict[str, Task] = {}
        pretrained: dict[str, str] = {}  # hash of the pretraining -> name of its task
        rows_left = self._rows_to_audit()
        for config in self.configs:
            name = cell_name(config)
            if config in self.left:
                shared = pretraining_of(config)
                if config_hash(shared) not in pretrained:
                    task = pretrained[config_hash(shared)] = f"pretraining of {name}"
                    target = self.folder / "pretrained" / config_hash(shared)
                    action = functools.partial(actions.pretrain, shared, target)
                    tasks[task] = Task(task, action, is_counted=False)
                action = functools.partial(actions.train, config, self.run_folder(config))
                tasks[name] = Task(name, action, needs=(pretrained[config_hash(shared)],))
            if actions.audit is not None and _row_of(config) in rows_left:
                rows_left.remove(_row_of(config))
                task = f"leak audit of {name}"
                action = functools.partial(audit_row, actions.audit, config, self.folder / "audits")
                tasks[task] = Task(task, action, (name,) if name in tasks else (), is_counted=False)
        return list(tasks.values())

    def finished(self, outcomes: dict[str, Any]) -> list[tuple[Cell, Path]]:
        """Returns the cells of this folder, each with the folder of its run, in their order."""
        found = []
        for config in self.configs:
            name, target = cell_name(config), self.run_folder(config)
            if name in self.done:
                found.append((self.done[name], target))
            elif not isinstance(outcomes.get(name, Failure("elsewhere")), Failure):
                found.append((with_scores(outcomes[name], target), target))
        return found

    def _rows_to_audit(self) -> set[str]:
        """Returns rows without an audit; one of an earlier config counts for nothing."""
        left = {_row_of(config) for config in self.configs}
        hashes = {config_hash(config) for config in self.configs}
        self.audits = [audit for audit in read_audits(self.folder) if audit["config_hash"] in hashes]
        known = [*self.audits, *(audit for _, records in self.others for audit in records.audits)]
        return left - {audit["row"] for audit in known}


def compare(
    configs: Sequence[Config],
    folder: Path,
    actions: Actions,
    choose_runner: Callable[[Sequence[Config]], AbstractContextManager[Runner]],
    say: Callable[[str], None],
    others: Sequence[tuple[str, Records]] = (),
    ensemble: int = 0,
) -> Outcome:
    """Does every run that is not done yet, here or in what others have done.

    Args:
        configs: of the runs.
        folder: of the comparison.
        actions: what is done for a cell.
        choose_runner: gives who does it, from the configs of the runs that are left.
        say: tells progress.
        others: (where from, records of cells that count as done). Rows that this study has not are left out: one file
            may hold what several studies ask for.
        ensemble: see `Study.ensemble`; runs of others, whose scores are not here, are in none.

    Returns:
        The records, row by row in the order of `configs`, those of others behind; and what has failed.

    Raises:
        UserError: a config is wrong, or the folder or the records hold a cell of this name with another config.
    """
    rows = _rows(configs, ensemble)
    others = [(where, records.only(rows)) for where, records in others]
    plan = _Plan(configs, folder, others)
    tasks = plan.tasks(actions)
    progress = Progress(len(configs), len(configs) - len(plan.left), say)

    def ended(task: Task, outcome: Any) -> None:
        progress.ended(task, outcome)
        if isinstance(outcome, Failure) and outcome.trace:
            _keep_trace(folder / "failures", task.name, outcome.trace)

    remove(folder / "failures")
    with choose_runner(plan.left) as runner:
        outcomes = do_tasks(tasks, runner, ended)
    progress.close()
    audits = [outcome for name, outcome in outcomes.items() if name.startswith("leak audit of ")]
    audits = plan.audits + [outcome for outcome in audits if not isinstance(outcome, Failure)]
    finished = plan.finished(outcomes)
    ours = Records([cell for cell, _ in finished], audits)
    if ensemble:
        ours = with_ensembles(finished, audits, ensemble, prepare(configs[0].data))
    failures = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Failure)}
    records = merged(ours, others)
    records.cells.sort(key=lambda cell: rows.index(row_key(cell)))
    return Outcome(records, failures, finished)


def refuse_other_data(configs: Sequence[Config], folder: Path, prepared: Prepared) -> None:
    """Refuses a comparison whose runs of these configs were done or begun with other data: one table would hold both.

    Raises:
        UserError: a run was, or a pretraining.
    """
    for config in configs:
        shared = folder / "pretrained" / config_hash(pretraining_of(config))
        for one in (folder / "runs" / cell_name(config), shared):
            check_same_data(folder, trained_on(one), prepared)


def audit_row(
    audit: Callable[[Config, Path], dict[str, Any]], config: Config, folder: Path, *_results: dict[str, Any]
) -> dict[str, Any]:
    """Audits a run for leaks and keeps the result in `folder`, for its whole row; what the run found is not needed."""
    name = cell_name(config)
    found = {"row": _row_of(config), "seed": config.seed, **audit(config, folder / f"{name}.partial")}
    make_folder(folder)
    write_json(folder / f"{name}.json", found)
    return found


def _keep_trace(folder: Path, name: str, trace: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.txt", trace)


def _rows(configs: Sequence[Config], ensemble: int) -> list[RowKey]:
    """Returns the rows of a comparison in their order."""
    rows: dict[RowKey, None] = {}
    for config in configs:
        row = row_key(_planned_cell(config))
        rows |= dict.fromkeys([row, ensemble_row(row, ensemble)] if ensemble else [row])
    return list(rows)


def _planned_cell(config: Config) -> Cell:
    """Returns a cell as its record will name it."""
    return {
        "dataset": config.data.name,
        "backbone": config.backbone.name,
        "method": config.method.name,
        "variant": config.method.variant,
        "seed": config.seed,
        "config": to_dict(config),
    }


def _row_of(config: Config) -> str:
    return row_label(config.backbone.name, config.method.name, config.method.variant)


def check_names(config: Config) -> None:
    """Finds a wrong name before hours of training that come before its run."""
    sources.find(config.data.name)
    find_class("backbone", config.backbone.name)
    find_class("method", config.method.name)


def pretraining_of(config: Config) -> Config:
    """Returns the config reduced to what decides stage `pretrain`: equal for runs that can share it."""
    method = methods.pretraining_of(config.method)
    return dataclasses.replace(config, method=method, meta_train=MetaTrainConfig(), warm_up=WarmUpConfig())


def cell_name(config: Config) -> str:
    """Returns the name of a run's folder."""
    parts = [config.backbone.name, config.method.name, config.method.variant, f"seed{config.seed}"]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part) for part in parts if part)
