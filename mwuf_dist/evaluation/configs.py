"""In what the configurations of the rows of a comparison differ, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_CONFIG_OF_ONE_RUN = ("seed", "data.prepared_dir")  # differs between runs of one row, or between machines


def distinct(dicts: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns the distinct values of each key, in order of first appearance."""
    values: dict[str, list[Any]] = {}
    for one in dicts:
        for key, value in one.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return values


def split_configs(rows: list[dict[str, Any]], runs: Mapping[Any, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    """Returns the keys that all runs share; gives each row under `config` those in which the rows differ."""
    configs = [[_flat(result.get("config", {})) for result in by_seed.values()] for by_seed in runs.values()]
    all_values = distinct(config for of_row in configs for config in of_row)
    common = {key: values[0] for key, values in all_values.items() if len(values) == 1}
    for row, of_row in zip(rows, configs, strict=True):
        row["config"] = {
            key: values[0] if len(values) == 1 else values
            for key, values in distinct(of_row).items()
            if key not in common
        }
    return common


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif name not in _CONFIG_OF_ONE_RUN:
            flat[name] = value
    return flat
