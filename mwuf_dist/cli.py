"""`mwuf ...`: the commands. Exit codes: 0 done, 2 the user's input is wrong (no traceback), 1 anything else."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import tyro

from mwuf_dist.config import Config, UserError, build, merge, read_toml, to_dict
from mwuf_dist.versions import version_problem

T = TypeVar("T", bound="_Options")

_USAGE = """\
usage: mwuf COMMAND CONFIG [options]

Makes new items rank well before they have clicks (MWUF, SIGIR 2021).

  mwuf run CONFIG       prepare, pretrain, meta_train, warm_up, evaluate; run it again to go on where it stopped
  mwuf compare CONFIG   several methods and seeds (section [study]) and one report
  mwuf prepare CONFIG   only read, split and write the data
  mwuf doctor           what this machine has, and what is wrong with it

examples:
  mwuf compare configs/demo.toml
  mwuf run configs/movielens-1m.toml --seed 1 --output runs/ml --backbone.name wide_deep
  torchrun --nproc-per-node=2 -m mwuf_dist run configs/movielens-1m.toml

`mwuf COMMAND CONFIG --help` lists every key of the config, with the value it has there."""


@dataclass
class _Options:
    """Every key of the config is an option; without any, the config's own values are used."""

    output: Path  # Folder of the results.
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass
class _CompareOptions(_Options):
    """Every key of the config is an option, for all runs; without any, the config's own values are used."""

    seeds: int = 0  # Number of seeds; 0 takes the config's.


def main(argv: list[str] | None = None) -> None:
    """Entry point; does not return."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(0 if arguments else 2)
    try:
        sys.exit(_command(arguments[0])(arguments[1:]))
    except UserError as error:
        print(f"mwuf: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mwuf: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _command(name: str) -> Callable[[list[str]], int]:
    commands = {"run": _run, "compare": _compare, "prepare": _prepare, "doctor": _doctor}
    if name not in commands:
        raise UserError(f"no command {name!r}: there are {', '.join(commands)}; `mwuf --help` says what they do")
    return commands[name]


def _doctor(arguments: list[str]) -> int:
    from mwuf_dist.doctor import main as doctor

    return doctor()


def _prepare(arguments: list[str]) -> int:
    options, _ = _parse("prepare", arguments, _Options)
    from mwuf_dist.data.prepare import prepare

    prepared = prepare(options.config.data, progress=os.isatty(2))
    rows = {name: split["rows"] for name, split in prepared.manifest["splits"].items()}
    print(f"{prepared.path}\n{prepared.num_old_items} old items, {prepared.num_new_items} new items, rows: {rows}")
    return 0


def _run(arguments: list[str]) -> int:
    options, _ = _parse("run", arguments, _Options)
    _check_environment()
    from mwuf_dist.evaluation import report
    from mwuf_dist.launch import local

    results = local.train(options.config, options.output)
    if _is_main():
        report.print_comparison(report.build_comparison([results]))
        print(f"results, metrics, plot and checkpoints: {options.output}")
    return 0


def _compare(arguments: list[str]) -> int:
    options, values = _parse("compare", arguments, _CompareOptions)
    _check_environment()
    from mwuf_dist.evaluation import report
    from mwuf_dist.launch import local
    from mwuf_dist.studies import compare

    where = arguments[0]
    study = compare.read_study(values, where)
    if options.seeds:
        study = compare.Study(options.seeds, study.runs)
    # What the command line says holds for every run; what a run says of itself stands above the file.
    overridden = _changed(to_dict(options.config), to_dict(build(_without_study(values), where)))
    study = compare.Study(study.seeds, tuple(merge(run, overridden) for run in study.runs))
    configs = compare.run_configs(values, study, where)
    say = (lambda text: print(text, flush=True)) if _is_main() else (lambda text: None)
    results = compare.compare(configs, options.output, local.train, local.pretrain, say)
    if _is_main():
        report.print_comparison(report.write_comparison(results, options.output))
        print(f"report: {options.output / 'report.html'}   plot: {options.output / 'phases.png'}")
    return 0


def _parse(command: str, arguments: list[str], cls: type[T]) -> tuple[T, dict[str, Any]]:
    """Options, with the config file's values as defaults, and the file's plain values."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print(_USAGE)
            sys.exit(0)
        raise UserError(f"name the config first: mwuf {command} CONFIG [options], for example configs/demo.toml")
    path = Path(arguments[0])
    values = read_toml(path)
    config = build(_without_study(values), str(path))
    default = cls(output=Path("runs") / path.stem, config=config)
    try:
        options = tyro.cli(cls, default=default, args=arguments[1:], prog=f"mwuf {command} {path}")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"option {'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}") from None
    return options, values


def _without_study(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "study"}


def _changed(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The nested keys of `ours` whose value is another in `theirs`."""
    out = {}
    for key, value in ours.items():
        if isinstance(value, dict):
            inner = _changed(value, theirs[key])
            if inner:
                out[key] = inner
        elif value != theirs[key]:
            out[key] = value
    return out


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _check_environment() -> None:
    problem = version_problem()
    if problem is not None:
        raise UserError(problem)
    # Deprecations inside torchrec and fbgemm, which a user can do nothing about.
    warnings.filterwarnings("ignore", module=r"(torchrec|fbgemm_gpu|torch)\b")
