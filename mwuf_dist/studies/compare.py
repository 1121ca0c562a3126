"""`mwuf compare`: several methods, backbones and seeds on one protocol, one report.

Runs that share data, backbone, pretraining settings and seed share one pretraining. A finished run is never done
again: a comparison that was stopped goes on, and one with more seeds only does the new ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
from torch import nn

from mwuf_dist import methods
from mwuf_dist.backbones import BACKBONES
from mwuf_dist.config import (
    Config,
    Count,
    MetaTrainConfig,
    UserError,
    WarmUpConfig,
    build,
    config_hash,
    merge,
)
from mwuf_dist.data import sources
from mwuf_dist.registry import find_class

Train = Callable[[Config, Path, Path | None], dict[str, Any]]
Pretrain = Callable[[Config, Path], Path]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Study:
    """Section `study` of a config: what `mwuf compare` runs.

    Attributes:
        seeds: how many; the runs use seeds 0 to seeds - 1.
        runs: for each run, the keys that differ from the rest of the file.
    """

    seeds: Count = 1
    runs: tuple[dict[str, Any], ...] = ()


def read_study(values: dict[str, Any], where: str, seeds: int = 0) -> Study:
    """The section `study` of a config's plain values.

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
    if not study.runs:
        raise UserError(f"{where}: [study] has no [[study.runs]]: see configs/demo.toml")
    return study


def run_configs(values: dict[str, Any], study: Study, where: str, overridden: dict[str, Any]) -> list[Config]:
    """The config of every run, seed by seed.

    Args:
        values: of the config file.
        study: its section.
        where: named in error messages.
        overridden: keys that the command line sets, for every run.

    Raises:
        UserError: a run has a wrong key, or two runs could not be told apart in the report.
    """
    shared = {key: value for key, value in values.items() if key not in ("study", "tune")}
    if "seed" in overridden or any("seed" in run for run in study.runs):
        raise UserError(f"{where}: a comparison has the seeds 0 to N - 1: give `study.seeds` or --seeds N, not `seed`")
    configs = []
    for seed in range(study.seeds):
        for number, run in enumerate(study.runs):
            own = merge(merge(run, overridden), {"seed": seed})
            configs.append(build(merge(shared, own), f"{where}, run {number + 1} of [study]"))
    names = [_name(config) for config in configs[: len(study.runs)]]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(
                f"{where}: runs {names.index(name) + 1} and {number + 1} of [study] are both called {name}: give one "
                "of them a `method.variant`, a label of your own"
            )
    return configs


def compare(
    configs: list[Config], folder: Path, train: Train, pretrain: Pretrain, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Does every run that is not done yet.

    Args:
        configs: of the runs.
        folder: of the comparison: `runs/` and `pretrained/` are made in it.
        train: launches a run.
        pretrain: launches a shared pretraining.
        say: tells progress.

    Returns:
        The results of all runs.
    """
    for config in configs:
        _check_names(config)
    results = []
    for number, config in enumerate(configs):
        target = folder / "runs" / _name(config)
        say(f"[{number + 1}/{len(configs)}] {target.name}")
        shared = None
        if not (target / "results.json").exists():
            shared = pretrain(pretraining_of(config), folder / "pretrained" / config_hash(pretraining_of(config)))
        results.append(train(config, target, shared))
    return results


def _check_names(config: Config) -> None:
    """Finds a wrong name before hours of training that come before its run."""
    sources.find(config.data.name)
    find_class("backbone.name", config.backbone.name, BACKBONES, nn.Module)
    find_class("method.name", config.method.name, methods.METHODS, methods.Method)


def pretraining_of(config: Config) -> Config:
    """The config reduced to what decides stage `pretrain`: equal for runs that can share it."""
    method = methods.pretraining_of(config.method)
    return dataclasses.replace(config, method=method, meta_train=MetaTrainConfig(), warm_up=WarmUpConfig())


def _name(config: Config) -> str:
    parts = [config.backbone.name, config.method.name, config.method.variant, f"seed{config.seed}"]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part) for part in parts if part)
