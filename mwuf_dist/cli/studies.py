"""`mwuf compare` and `mwuf tune`, from options to files: where the runs are done, and what is written of them."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mwuf_dist.cli import explain
from mwuf_dist.config import Config, DataConfig, RuntimeConfig, UserError, merge, read_toml, to_dict, without_studies
from mwuf_dist.data.both_classes import data_notes
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.escape import printable
from mwuf_dist.evaluation import report, stream_report
from mwuf_dist.evaluation.comparison import build_comparison
from mwuf_dist.files import remove_left_overs, write_atomically, write_json
from mwuf_dist.locks import locked
from mwuf_dist.studies import compare, tune
from mwuf_dist.studies.audit import HiddenLabels, audit
from mwuf_dist.studies.audit_stream import audit_stream
from mwuf_dist.studies.intervals import add_intervals, add_stream_intervals
from mwuf_dist.studies.probes import without_training
from mwuf_dist.studies.records import read_records, write_records
from mwuf_dist.studies.schedule import Failure, Here, Runner

# Starting Ray and its workers takes long. Below about these training rows it does not pay: an estimate, not tuned.
_ROWS_WORTH_RAY = 20_000_000


@dataclass(frozen=True)
class Executor:
    """Says where the runs of a study are done.

    Attributes:
        train, pretrain: see `compare.Actions`.
        side_by_side: (number at once, section `runtime`, address) -> a runner on a Ray cluster, see
            `mwuf_dist.launch.side_by_side`.
        parallel: runs at once; 0: as many as cores allow, where it pays.
        ray_address: of a running cluster.
        is_main: this is the rank that prints and writes.
        num_ranks: of the launcher that this process belongs to.
    """

    train: Callable[[Config, Path, Path | None], dict[str, Any]]
    pretrain: Callable[[Config, Path], Path]
    side_by_side: Callable[[int, RuntimeConfig, str], AbstractContextManager[Runner]]
    parallel: int
    ray_address: str
    is_main: bool
    num_ranks: int

    def check(self) -> None:
        """Refuses what contradicts itself."""
        if self.num_ranks > 1 and (self.parallel > 1 or self.ray_address):
            raise UserError(
                f"--parallel and --ray-address do several runs at once, and this is one of {self.num_ranks} ranks that "
                "do each run together: leave them out, or start without torchrun"
            )

    def runner(self, configs: Sequence[Config]) -> AbstractContextManager[Runner]:
        """Says who does these runs: this process, or Ray where it was asked for or pays."""
        if not configs:
            return contextlib.nullcontext(Here(alone=self.num_ranks == 1))
        runtime = configs[0].runtime
        asked = self.parallel > 1 or self.ray_address or (self.parallel == 0 and "RAY_ADDRESS" in os.environ)
        if self.num_ranks == 1 and asked:
            return self.side_by_side(self.parallel, runtime, self.ray_address)
        slots = min(_slots(runtime), len(configs))
        if self.num_ranks == 1 and self.parallel == 0 and slots > 1 and _training_rows(configs) > _ROWS_WORTH_RAY:
            return self.side_by_side(slots, runtime, "")
        return contextlib.nullcontext(Here(alone=self.num_ranks == 1))

    def say(self, text: str) -> None:
        """Prints a line."""
        if self.is_main:
            tqdm.write(printable(text))  # above the bars
            sys.stdout.flush()


def check_sections(values: dict[str, Any], where: str) -> None:
    """Checks the sections [study] and [tune] of a config's plain values, where it has them.

    Raises:
        UserError: one of them, or a run or a setting in it, has a wrong key.
    """
    if "study" in values:
        compare.run_configs(values, compare.read_study(values, where), where, {})
    if "tune" in values:
        tune.tries(without_studies(values), tune.read_tune(values, where), 1.0, where)


def compare_command(
    where: str,
    overridden: dict[str, Any],
    folder: Path,
    executor: Executor,
    *,
    seeds: int,
    first_seed: int,
    record_paths: Sequence[Path],
    explained: str = "",
) -> int:
    """`mwuf compare`.

    Args:
        where: path of the config file.
        overridden: the keys that the command line sets.
        folder: of the output.
        executor: where runs are done.
        seeds: number of seeds; 0 takes the study's.
        first_seed: the first of them.
        record_paths: results of other comparisons.
        explained: ID of an item that the report is to show; empty: none.

    Returns:
        The exit code: 1 where a cell failed or a leak was found.
    """
    executor.check()
    values = read_toml(Path(where))
    study = compare.read_study(values, where, seeds)
    configs = compare.run_configs(values, study, where, overridden, first_seed)
    others = [(str(path), read_records(path)) for path in record_paths]
    with alone(folder, "compare", executor):
        prepare_all(configs, executor, folder)
        if explained:
            _check_explained(explained, configs[0], where, executor)
        actions = compare.Actions(executor.train, executor.pretrain, _audit_of(configs[0]))
        outcome = compare.compare(configs, folder, actions, executor.runner, executor.say, others, study.ensemble)
        if executor.is_main:
            about = {key: getattr(study, key) for key in ("title", "regime", "note")}
            shown = ["--explain", explained] if explained else []
            about["command"] = shlex.join(["mwuf", "compare", where, *_options(overridden, seeds, first_seed), *shown])
            _write_report(outcome, configs[0], about, folder, executor, explained)
    return 1 if outcome.failures or not all(one["passed"] for one in outcome.records.audits) else 0


@contextlib.contextmanager
def alone(folder: Path, command: str, executor: Executor) -> Iterator[None]:
    """Nobody else writes into the folder of a study meanwhile."""
    with contextlib.ExitStack() as stack:
        if executor.is_main:
            stack.enter_context(locked(folder, command))
            remove_left_overs(folder, folder / "audits")
        yield


def _write_report(
    outcome: compare.Outcome,
    config: Config,
    about: dict[str, str],
    folder: Path,
    executor: Executor,
    explained: str,
) -> None:
    failures = reasons(outcome.failures, folder)
    if outcome.records.cells:
        records = outcome.records
        prepared = prepare(config.data)
        if config.data.protocol == "stream":
            _write_stream_report(outcome, prepared, about, failures, folder, executor)
            return
        around = without_training(prepared, config)
        comparison = build_comparison(records.cells, records.audits, about, failures, around)
        add_intervals(comparison, outcome.finished, prepared)
        items = explain.sections(outcome.finished, explained, folder) if explained else ()
        report.print_comparison(report.write_comparison(comparison, folder, items))
        write_records(records, folder / "records.json")
        executor.say(f"report: {folder / 'report.html'}   plot: {folder / 'phases.png'}")
    _tell_failures(len(failures), executor)


def _check_explained(raw_id: str, config: Config, where: str, executor: Executor) -> None:
    """Refuses --explain where it cannot be, before anything is trained."""
    if config.data.protocol == "stream" or executor.num_ranks > 1:
        raise UserError(f"{where}: --explain does a warm-up again, in one process: not by days, and not under torchrun")
    explain.check_item(raw_id, prepare(config.data).raw_ids("item"), where)


def _audit_of(config: Config) -> Callable[[Config, Path], dict[str, Any]] | None:
    """Gives the leak audit of the config's protocol; None where each scored set has one class: nothing to shuffle."""
    if config.data.protocol == "stream":
        return audit_stream
    return audit if HiddenLabels(config.seed).num_moved(prepare(config.data)) > 0 else None


def _write_stream_report(
    outcome: compare.Outcome,
    prepared: Prepared,
    about: dict[str, str],
    failures: dict[str, str],
    folder: Path,
    executor: Executor,
) -> None:
    records = outcome.records
    comparison = stream_report.build_stream_comparison(records.cells, records.audits, about, failures)
    add_stream_intervals(comparison, outcome.finished, prepared)
    stream_report.write_stream_comparison(comparison, folder)
    stream_report.print_stream_comparison(comparison)
    write_records(records, folder / "records.json")
    executor.say(f"report: {folder / 'report.html'}   plot: {folder / 'stream.png'}")
    _tell_failures(len(failures), executor)


def _tell_failures(num_failures: int, executor: Executor) -> None:
    if num_failures:
        executor.say(f"{num_failures} failed: the same command does what is missing")


def reasons(failures: dict[str, Failure], folder: Path) -> dict[str, str]:
    """Tells why tasks have failed, and where their traces are."""
    return {
        name: failure.reason + (f" (see {folder / 'failures' / name}.txt)" if failure.trace else "")
        for name, failure in failures.items()
    }


def tune_command(where: str, config: Config, overridden: dict[str, Any], folder: Path, executor: Executor) -> int:
    """`mwuf tune`; as `compare_command`, and `config` is the file's with what the command line sets."""
    executor.check()
    plan = tune.read_tune(merge(read_toml(Path(where)), overridden), where)
    show = executor.is_main and os.isatty(2)
    played = prepare(replace(config.data, old_items_as_new=True), show).num_new_items
    tries = tune.tries(to_dict(config), plan, played / prepare(config.data, show).num_new_items, where)
    configs = [one.config for one in tries]
    with alone(folder, "tune", executor):
        prepare_all(configs, executor, folder)
        actions = compare.Actions(executor.train, executor.pretrain)
        outcome = compare.compare(configs, folder, actions, executor.runner, executor.say)
        failures = reasons(outcome.failures, folder)
        if executor.is_main and not failures:  # which setting is best is not known before all are done
            summary = tune.summarise(tries, outcome.records.cells, plan)
            write_json(folder / "tune.json", summary)
            # Named after the search: `compare` names the folder of its results after the config.
            chosen = folder / f"{Path(where).stem}-chosen.toml"
            write_atomically(chosen, tune.chosen_toml(summary, plan, Path(where), overridden, folder))
            print(printable(tune.table(summary)))
            print(f"the best of each run: mwuf compare {chosen}")
    _tell_failures(len(failures), executor)
    return 1 if failures else 0


def prepare_all(configs: Sequence[Config], executor: Executor, folder: Path) -> None:
    """Prepares every data set of the runs once, before several want it; refuses a folder with runs on other data."""
    for data in _data_sets(configs):
        prepared = prepare(data, progress=executor.is_main and os.isatty(2))
        compare.refuse_other_data([config for config in configs if config.data == data], folder, prepared)
        for note in data_notes(prepared, data):
            executor.say(note)


def _data_sets(configs: Sequence[Config]) -> list[DataConfig]:
    found: list[DataConfig] = []
    for config in configs:
        if config.data not in found:
            found.append(config.data)
    return found


def _options(overridden: dict[str, Any], seeds: int, first_seed: int, prefix: str = "--") -> list[str]:
    """Gives the options that make a comparison what it is, as on a command line."""
    words = []
    for key, value in overridden.items():
        name = f"{prefix}{key.replace('_', '-')}"
        if isinstance(value, dict):
            words += _options(value, 0, 0, f"{name}.")
        else:
            words += [name, *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    words += ["--seeds", str(seeds)] if seeds else []
    return words + (["--first-seed", str(first_seed)] if first_seed else [])


def _slots(runtime: RuntimeConfig) -> int:
    import torch

    if runtime.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) // max(1, runtime.threads)


def _training_rows(configs: Sequence[Config]) -> int:
    """About how many rows these runs train on: a pass for each run, and the epochs of each pretraining."""
    pretrainings = {(one.backbone.name, one.seed, one.pretrain): one for one in configs}
    num_passes = len(configs) + sum(one.pretrain.epochs for one in pretrainings.values())
    return num_passes * prepare(configs[0].data).num_rows("pretrain")
