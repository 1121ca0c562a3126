"""`mwuf ...`: the commands.

Exit codes: 0 done, 2 the user's input is wrong (no traceback), 143 stopped by SIGTERM, 130 by Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from mwuf_dist.cli.help import EXAMPLES, USAGE
from mwuf_dist.config import Config, UserError, build, merge, read_toml, to_dict, without_studies
from mwuf_dist.config.registry import ROOMS, config_class
from mwuf_dist.runtime.shutdown import STOPPED_EXIT_CODE, RankLostError, StoppedError, sigterm_asks
from mwuf_dist.runtime.versions import version_problem

if TYPE_CHECKING:
    from mwuf_dist.cli.studies import Place

T = TypeVar("T", bound="_ConfigOptions")

# Time for the launcher to end the ranks that wait for the main one to say what is wrong.
_OTHER_RANKS_WAIT_S = 10.0
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class _ConfigOptions:
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass
class _Options(_ConfigOptions):
    output: Path  # Folder of the results.


@dataclass
class _PrepareOptions(_ConfigOptions):
    launcher: Literal["here", "ray"] = "here"  # ray: on workers (the ranks of a run) of a Ray cluster.
    num_workers: int = 1  # Workers that `--launcher ray` starts.
    ray_address: str = ""  # Ray cluster that exists; empty: $RAY_ADDRESS, or a cluster of this machine.


@dataclass
class _RunOptions(_PrepareOptions, _Options):
    profile: bool = False  # Trace a few steps of each stage, for Perfetto; short for --runtime.profile True.


@dataclass
class _StudyOptions(_Options):
    # Runs side by side, each in a process of its own (Ray): 1 none, 0 as many as the cores allow where it pays.
    parallel: int = 0
    ray_address: str = ""  # A running Ray cluster that does the runs; RAY_ADDRESS names one too.


@dataclass
class _CompareOptions(_StudyOptions):
    seeds: int = 0  # Number of seeds; 0 takes the config's.
    first_seed: int = 0  # The first of them: another machine takes the next ones.
    # Results of other comparisons, their folders or records.json: cells of this one's rows count as done.
    records: tuple[Path, ...] = ()


@dataclass
class _PlanOptions(_ConfigOptions):
    world_size: int = 1  # Number of ranks.
    device: Literal["cpu", "a100", "h100", "h200"] = "cpu"  # Device of each rank; cpu: one thread of this machine.
    rows: float = 0  # Rows of pretrain; 0: those of the data.
    users: float = 0  # Number of users; 0: in proportion to the rows.
    items: float = 0  # Number of items; 0: in proportion to the rows.


@dataclass
class _InitOptions:
    logs: Annotated[Path, tyro.conf.Positional]  # File or folder of the interactions.
    output: Path = Path("logs.toml")  # The config to write; must not exist.
    users: str = ""  # Table of the users, to join.
    items: str = ""  # Table of the items, to join.
    user: str = ""  # Column of the user; empty: look for it.
    item: str = ""  # Column of the item.
    time: str = ""  # Column of the time.
    label: str = ""  # Column of the label.


def main(argv: list[str] | None = None) -> None:
    """Entry point; does not return."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        sys.exit(_command(arguments[0])(arguments[1:]))
    except UserError as error:
        _let_main_rank_speak()
        print(f"mwuf: {error}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as stop:
        print(f"mwuf: {stop}", file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except RankLostError as error:
        print(f"mwuf: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code:  # a wrong option, which the main rank's parser tells
            _let_main_rank_speak()
        raise
    except KeyboardInterrupt:
        print("mwuf: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `mwuf ... | head`: nobody reads on. Python must not find out again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        print(f"mwuf: {error}: make room, then the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(1)


def _command(name: str) -> Callable[[list[str]], int]:
    commands = {"run": _run, "compare": _compare, "tune": _tune, "plan": _plan, "prepare": _prepare}
    commands |= {"init": _init, "synthesize": _synthesize}
    commands |= {name: functools.partial(_serve, name) for name in ("export", "warm", "explain", "adopt")}
    commands["doctor"] = _doctor
    if name not in commands:
        raise UserError(f"no command {name!r}: there are {', '.join(commands)}; `mwuf --help` says what they do")
    return commands[name]


def _doctor(arguments: list[str]) -> int:
    if arguments:
        print("usage: mwuf doctor\n\nPrints what this machine has, and what is wrong with it. It takes no options.")
        return 0 if arguments[0] in ("-h", "--help") else 2
    from mwuf_dist.doctor import main as doctor

    return doctor()


def _prepare(arguments: list[str]) -> int:
    options = _parse("prepare", arguments, _PrepareOptions)
    _check_launcher(options, "mwuf prepare")
    data, progress = options.config.data, os.isatty(2)
    if options.launcher == "ray":
        from mwuf_dist.launch import ray

        prepared = ray.prepare_data(data, options.num_workers, options.ray_address, progress)
    else:
        from mwuf_dist.data.prepare.prepare import prepare

        with sigterm_asks():
            prepared = prepare(data, progress)
    rows = {name: split["rows"] for name, split in prepared.manifest["splits"].items()}
    print(f"{prepared.path}\n{prepared.num_old_items} old items, {prepared.num_new_items} new items, rows: {rows}")
    return 0


def _plan(arguments: list[str]) -> int:
    options = _parse("plan", arguments, _PlanOptions)
    _check_environment()
    from mwuf_dist.planning.report import plan

    print(plan(options.config, options.world_size, options.device, options.rows, options.users, options.items))
    return 0


def _init(arguments: list[str]) -> int:
    options = tyro.cli(_InitOptions, args=arguments, prog="mwuf init", description=EXAMPLES["init"])
    from mwuf_dist.data.init_config.propose import propose
    from mwuf_dist.data.init_config.write_config import write_config

    if options.output.exists():
        raise UserError(f"{options.output}: exists already; name another file with --output")
    columns = {"user": options.user, "item": options.item, "time": options.time, "label": options.label}
    text = write_config(propose(str(options.logs), options.users, options.items, **columns))
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written ({error.strerror}); name another with --output") from None
    print(f"{text}\nwritten to {options.output}: read it, correct it, then `mwuf run {options.output}`")
    return 0


def _synthesize(arguments: list[str]) -> int:
    from mwuf_dist.cli.synthesize import run_command

    return run_command(arguments)


def _run(arguments: list[str]) -> int:
    options = _parse("run", arguments, _RunOptions)
    _check_launcher(options, "torchrun --nproc-per-node=N -m mwuf_dist run")
    config = options.config
    if options.profile:
        config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, profile=True))
    _check_environment()
    _check_studies(arguments[0])
    if options.launcher == "ray":
        from mwuf_dist.launch import ray

        results = ray.train(config, options.output, options.num_workers, options.ray_address)
    else:
        from mwuf_dist.embeddings.torchrec_import import import_torchrec

        import_torchrec()
        from mwuf_dist.launch import local

        results = local.train(config, options.output)
    if _is_main():
        from mwuf_dist.evaluation import report

        report.print_comparison(report.build_comparison([results]))
        print(f"results, metrics, plot and checkpoints: {options.output}")
        if config.runtime.profile:
            print(f"traces, for https://ui.perfetto.dev: {options.output / 'profile'}")
    return 0


def _check_studies(where: str) -> None:
    values = read_toml(Path(where))
    if values.keys() & {"study", "tune"}:
        from mwuf_dist.cli import studies

        studies.check_sections(values, where)


def _check_launcher(options: _PrepareOptions, without_ray: str) -> None:
    if options.num_workers < 1:
        raise UserError(f"--num-workers {options.num_workers}: there must be at least one")
    if options.num_workers > 1 and options.launcher == "here":
        raise UserError(f"--num-workers is for --launcher ray; without Ray: {without_ray}")
    if options.ray_address and options.launcher == "here":
        raise UserError("--ray-address is for --launcher ray")


def _compare(arguments: list[str]) -> int:
    options = _parse("compare", arguments, _CompareOptions)
    _check_environment()
    from mwuf_dist.cli import studies

    where = arguments[0]
    return studies.compare_command(
        where,
        _overridden(where, options),
        options.output,
        _studies_place(options),
        seeds=options.seeds,
        first_seed=options.first_seed,
        record_paths=options.records,
    )


def _tune(arguments: list[str]) -> int:
    options = _parse("tune", arguments, _StudyOptions)
    _check_environment()
    from mwuf_dist.cli import studies

    where = arguments[0]
    overridden = _overridden(where, options)
    return studies.tune_command(where, options.config, overridden, options.output, _studies_place(options))


def _overridden(where: str, options: _StudyOptions) -> dict[str, Any]:
    """What the command line says, which holds for every run; what a run says of itself stands above the file."""
    values, config = without_studies(read_toml(Path(where))), options.config
    of_file = build(values, where)
    names: dict[str, Any] = {
        kind: {"name": getattr(config, kind).name}
        for kind in ROOMS
        if getattr(config, kind).name != getattr(of_file, kind).name
    }
    return merge(names, _changed(to_dict(config), to_dict(build(merge(values, names), where))))


def _studies_place(options: _StudyOptions) -> Place:
    """Where the runs of a study are done."""
    from mwuf_dist.embeddings.torchrec_import import import_torchrec

    import_torchrec()
    from mwuf_dist.cli.studies import Place
    from mwuf_dist.launch import local
    from mwuf_dist.launch.side_by_side import side_by_side

    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return Place(
        local.train, local.pretrain, side_by_side, options.parallel, options.ray_address, _is_main(), num_ranks
    )


def _serve(command: str, arguments: list[str]) -> int:
    _check_environment()
    from mwuf_dist.cli.serving import run_command

    return run_command(command, arguments)


def _parse(command: str, arguments: list[str], cls: type[T]) -> T:
    """The options of a command: those of the config file, with what the command line says above them.

    Args:
        command: its name.
        arguments: what stands behind it; the config comes first.
        cls: the options that it takes.
    """
    if not arguments or arguments[0].startswith("-"):
        if not any(argument in ("-h", "--help") for argument in arguments):
            raise UserError(f"name the config first: mwuf {command} CONFIG [options], for example configs/demo.toml")
        path, config, arguments = Path("CONFIG"), Config(), ["CONFIG", "--help"]
    else:
        path = Path(arguments[0])
        # First, because the keys of these sections are those of the class that the name chooses.
        config = build(merge(without_studies(read_toml(path)), _named_classes(arguments[1:])), str(path))
    output = {"output": Path("runs") / path.stem} if issubclass(cls, _Options) else {}
    options = tyro.cli(
        cls,
        default=cls(config=config, **output),
        args=arguments[1:],
        prog=f"mwuf {command} {path}",
        description=EXAMPLES[command],
        registry=_sections_stay_plain(),
        console_outputs=_is_main(),
    )
    # The type does not say so, but the registry has left the config as plain values.
    values: Any = options.config
    return dataclasses.replace(options, config=build(values, "command line"))


def _named_classes(arguments: list[str]) -> dict[str, Any]:
    """The backbone and the method that the command line names, as a config would."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    found = {}
    for kind in ROOMS:
        for place, word in enumerate(words[:-1]):
            if word == f"--{kind}.name":
                config_class(kind, words[place + 1])  # says what is wrong with the name, and not that a file has it
                found[kind] = {"name": words[place + 1]}
    return found


def _sections_stay_plain() -> ConstructorRegistry:
    """Makes tyro hand over the config's sections as nested dicts, so that `build` checks them as it checks a file's."""
    registry = ConstructorRegistry()
    asking = False

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or not pydantic.dataclasses.is_pydantic_dataclass(info.type):
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # tyro's own, which has the comments as help
        finally:
            asking = False
        assert isinstance(spec, StructConstructorSpec)

        def section(**values: Any) -> dict[str, Any]:
            return values

        section.__doc__ = info.type.__doc__  # heads the section in --help
        return dataclasses.replace(spec, instantiate=section)

    return registry


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


def _let_main_rank_speak() -> None:
    # Every rank finds most mistakes: one message is enough.
    if not _is_main():
        time.sleep(_OTHER_RANKS_WAIT_S)


def _check_environment() -> None:
    problem = version_problem()
    if problem is not None:
        raise UserError(problem)
    # Deprecations inside torchrec and fbgemm, which a user can do nothing about.
    warnings.filterwarnings("ignore", module=r"(torchrec|fbgemm_gpu|torch)\b")
