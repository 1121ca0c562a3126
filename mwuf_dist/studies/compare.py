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

from mwuf_dist.config import Config, MetaTrainConfig, MethodConfig, UserError, WarmUpConfig, build, config_hash, merge

Train = Callable[[Config, Path, Path | None], dict[str, Any]]
Pretrain = Callable[[Config, Path], Path]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Study:
    """Section `study` of a config: what `mwuf compare` runs.

    Attributes:
        seeds: how many; the runs use seeds 0 to seeds - 1.
        runs: for each run, the keys that differ from the rest of the file.
    """

    seeds: int = 1
    runs: tuple[dict[str, Any], ...] = ()


def read_study(values: dict[str, Any], where: str) -> Study:
    """The section `study` of a config's plain values.

    Raises:
        UserError: it is missing or has a wrong key.
    """
    if "study" not in values:
        raise UserError(f"{where}: no section [study] with `seeds` and [[study.runs]]: see configs/demo.toml")
    try:
        study = pydantic.TypeAdapter(Study).validate_python(values["study"])
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: `study.{'.'.join(map(str, first['loc']))}`: {first['msg']}") from None
    if not study.runs:
        raise UserError(f"{where}: [study] has no [[study.runs]]: see configs/demo.toml")
    return study


def run_configs(values: dict[str, Any], study: Study, where: str) -> list[Config]:
    """The config of every run, seed by seed."""
    shared = {key: value for key, value in values.items() if key != "study"}
    return [
        build(merge(merge(shared, run), {"seed": seed}), f"{where}, run {number + 1} of [study]")
        for seed in range(study.seeds)
        for number, run in enumerate(study.runs)
    ]


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
    results = []
    for number, config in enumerate(configs):
        target = folder / "runs" / _name(config)
        say(f"[{number + 1}/{len(configs)}] {target.name}")
        shared = None
        if not (target / "results.json").exists():
            shared = pretrain(pretraining_of(config), folder / "pretrained" / config_hash(pretraining_of(config)))
        results.append(train(config, target, shared))
    return results


def pretraining_of(config: Config) -> Config:
    """The config reduced to what decides stage `pretrain`: equal for runs that can share it."""
    return dataclasses.replace(config, method=MethodConfig(), meta_train=MetaTrainConfig(), warm_up=WarmUpConfig())


def _name(config: Config) -> str:
    parts = [config.backbone.name, config.method.name, config.method.variant, f"seed{config.seed}"]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part) for part in parts if part)
