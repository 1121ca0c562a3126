"""The options of the commands that take a config: those of its file, with what the command line says above them."""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import tyro
from annotated_types import Ge, Gt, Le
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from mwuf_dist.cli.help import EXAMPLES
from mwuf_dist.config import Config, UserError, build, is_within, merge, range_of, read_toml, without_studies
from mwuf_dist.config.registry import ROOMS, config_class

R = TypeVar("R")
T = TypeVar("T", bound="ConfigOptions")


@dataclass
class ConfigOptions:
    """Names the config, whose keys are options too."""

    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass
class Options(ConfigOptions):
    """Adds the folder of the results."""

    output: Path  # Folder of the results.


@dataclass
class PrepareOptions(ConfigOptions):
    """Says who prepares the data."""

    launcher: Literal["here", "ray"] = "here"  # ray: on workers (the ranks of a run) of a Ray cluster.
    num_workers: Annotated[int, Ge(1), Le(100_000)] = 1  # Workers that `--launcher ray` starts.
    ray_address: str = ""  # Running Ray cluster; empty: $RAY_ADDRESS, or one started on this machine.


@dataclass
class RunOptions(PrepareOptions, Options):
    """`mwuf run`."""

    profile: bool = False  # Trace a few steps of each stage, for Perfetto; short for --runtime.profile True.


@dataclass
class StudyOptions(Options):
    """Says who does the runs of a study."""

    # Runs at the same time, each in its own process (Ray); 0: as many as the cores allow, where this saves time.
    parallel: Annotated[int, Ge(0), Le(100_000)] = 0
    ray_address: str = ""  # A running Ray cluster that does the runs; RAY_ADDRESS names one too.


@dataclass
class CompareOptions(StudyOptions):
    """`mwuf compare`."""

    seeds: Annotated[int, Ge(0), Le(10_000)] = 0  # Number of seeds; 0 takes the config's.
    first_seed: Annotated[int, Ge(0), Le(1 << 62)] = 0  # First seed: several machines can share the seeds.
    # Results of other comparisons (folders or records.json): runs found there are not done again.
    records: tuple[Path, ...] = ()
    explain: str = ""  # ID of a new item: report.html shows how it warmed up in the first run of each row.


@dataclass
class RecommendOptions(StudyOptions):
    """`mwuf recommend`."""

    minutes: Annotated[float, Gt(0), Le(1e6)] = 30.0  # Time budget: after it no run is started; running ones finish.
    methods: tuple[str, ...] = ()  # Methods to try beside the config's; empty: the cheap ones.


@dataclass
class PlanOptions(ConfigOptions):
    """`mwuf plan`."""

    world_size: Annotated[int, Ge(1), Le(1_000_000)] = 1  # Number of ranks.
    device: Literal["cpu", "a100", "h100", "h200"] = "cpu"  # Device of each rank; cpu: one thread of this machine.
    rows: Annotated[float, Ge(0), Le(1e15)] = 0  # Rows of the split `pretrain`; 0: those of the data.
    users: Annotated[float, Ge(0), Le(1e15)] = 0  # Number of users; 0: in proportion to the rows.
    items: Annotated[float, Ge(0), Le(1e15)] = 0  # Number of items; 0: in proportion to the rows.
    ranks_per_host: Annotated[int, Ge(0), Le(1_000_000)] = 0  # Ranks of a host; 0: one for each device, or core.
    network_gbit_per_s: Annotated[float, Ge(0), Le(1e6)] = 0  # Between hosts, for a rank, one way; 0: the device's.
    network_delay_ms: Annotated[float, Ge(0), Le(1e6)] = 0  # Between hosts, one way: half of a ping.


def is_main() -> bool:
    """Says whether this is the rank that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def parse(command: str, arguments: list[str], cls: type[T]) -> T:
    """Reads the options of a command: those of the config file, with what the command line says above them.

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
    # The output of other commands is the study or the run that the config names.
    stem = f"{path.stem}-recommend" if issubclass(cls, RecommendOptions) else path.stem
    output: dict[str, Any] = {"output": Path("runs") / stem} if issubclass(cls, Options) else {}
    default = cls(config=config, **output)
    prog, description = f"mwuf {command} {path}", EXAMPLES[command]
    options = read_options(cls, arguments[1:], prog, description, default=default, console_outputs=is_main())
    # The type does not say so, but the registry has left the config as plain values.
    values: Any = options.config
    return dataclasses.replace(options, config=build(values, "command line"))


def parse_run_options(command: str, arguments: list[str], cls: type[R], examples: str) -> R:
    """Reads the options of a command whose first argument is a folder, of a run unless said otherwise.

    Args:
        command: its name.
        arguments: what stands behind it.
        cls: a dataclass of its options.
        examples: heads its help.

    Raises:
        UserError: the folder is missing, or a number is out of its bounds.
    """
    if not any(argument in ("-h", "--help") for argument in arguments) and (
        not arguments or arguments[0].startswith("-")
    ):
        first = {"adopt": ("the weights", "WEIGHTS"), "apply": ("the folder of an export or a run", "FOLDER DELTAS")}
        first["serve-check"] = ("the folder of an export", "EXPORT")
        what, called = first.get(command, ("the folder of a finished run", "RUN"))
        raise UserError(f"name {what} first: mwuf {command} {called} [options]")
    return read_options(cls, arguments, f"mwuf {command}", examples)


def read_options(cls: type[R], arguments: list[str], prog: str, description: str, **more: Any) -> R:
    """Reads the options of a command: every number of theirs has bounds, which `--help` shows.

    Args:
        cls: a dataclass of them.
        arguments: of the command line.
        prog: what the help calls the command.
        description: heads the help.
        more: that `tyro.cli` takes.

    Raises:
        UserError: a number is out of its bounds.
    """
    found: Any = tyro.cli(cls, args=arguments, prog=prog, description=description, registry=_help_with_bounds(), **more)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if not is_within(value := getattr(found, name), hint):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {range_of(hint)}")
    return found


def _named_classes(arguments: list[str]) -> dict[str, Any]:
    """Finds the backbone and the method that the command line names, as a config would."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    found = {}
    for kind in ROOMS:
        for place, word in enumerate(words[:-1]):
            if word == f"--{kind}.name":
                config_class(kind, words[place + 1])  # says what is wrong with the name, and not that a file has it
                found[kind] = {"name": words[place + 1]}
    return found


def _help_with_bounds() -> ConstructorRegistry:
    """Makes tyro say the bounds of numbers, and hand over the config's sections as nested dicts.

    So `build` checks them as it checks a file's.
    """
    registry = ConstructorRegistry()
    asking = False

    @registry.struct_rule
    def told(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or not dataclasses.is_dataclass(info.type):
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # tyro's own, which has the comments as help
        finally:
            asking = False
        assert isinstance(spec, StructConstructorSpec)
        hints = typing.get_type_hints(info.type, include_extras=True)
        spec = dataclasses.replace(spec, fields=tuple(_with_bounds(one, hints[one.name]) for one in spec.fields))
        if not pydantic.dataclasses.is_pydantic_dataclass(info.type):
            return spec

        def section(**values: Any) -> dict[str, Any]:
            return values

        section.__doc__ = info.type.__doc__  # heads the section in --help
        return dataclasses.replace(spec, instantiate=section)

    return registry


def _with_bounds(field: StructFieldSpec, hint: Any) -> StructFieldSpec:
    bounds = range_of(hint)
    if not bounds:
        return field
    said = field.helptext() if callable(field.helptext) else field.helptext
    return dataclasses.replace(field, helptext=f"{(said or '').rstrip('. ')} ({bounds})")


def changed(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Gives the nested keys of `ours` whose value is another in `theirs`."""
    out = {}
    for key, value in ours.items():
        if isinstance(value, dict):
            inner = changed(value, theirs[key])
            if inner:
                out[key] = inner
        elif value != theirs[key]:
            out[key] = value
    return out
