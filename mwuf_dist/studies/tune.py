"""`mwuf tune`: chooses settings on old items played as new, so that the reported sets are never looked at.

A fifth of the old items is left out of a separate pretraining, cut to as many rows as a new item may have, split by the
same rule, and warmed up. Every setting is tried on the same folds (another fifth, another seed).
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pydantic

from mwuf_dist.config import PHASES, Config, Count, UserError, build, merge

_LARGEST_LANE_COUNT = 64


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Tune:
    """Section `tune` of a config: what `mwuf tune` tries.

    Attributes:
        folds: how many choices of the items that play new.
        settings: for each setting, the keys that differ from the rest of the file; the file itself is tried first.
    """

    folds: Count = 2
    settings: tuple[dict[str, Any], ...] = ()


def read_tune(values: dict[str, Any], where: str) -> Tune:
    """The section `tune` of a config's plain values.

    Raises:
        UserError: it is missing or has a wrong key.
    """
    try:
        tune = pydantic.TypeAdapter(Tune).validate_python(values.get("tune", {}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["tune", *map(str, first["loc"])])
        raise UserError(f"{where}: `{key}` = {first['input']!r}: {first['msg']}") from None
    if not tune.settings:
        raise UserError(f"{where}: no [[tune.settings]] to try: see configs/movielens-1m-tune.toml")
    return tune


def tune_configs(values: dict[str, Any], tune: Tune, share_of_new: float, where: str) -> list[Config]:
    """The config of every try, fold by fold.

    Args:
        values: the config file's plain values, without `study` and `tune`.
        tune: what to try.
        share_of_new: items that play new, as a share of the real new items. A warm-up batch is made smaller by it, so
            that an item gets as many steps and as many rows a step as a real one: else another rate comes out best.
        where: named in error messages.
    """
    configs = []
    for fold in range(tune.folds):
        for number, setting in enumerate(({}, *tune.settings)):
            forced = {
                "seed": fold,
                "data": {"old_items_as_new": True, "old_items_as_new_seed": fold},
                "method": {"variant": f"setting {number} fold {fold}"},
            }
            config = build(merge(merge(values, setting), forced), f"{where}, setting {number} of [tune]")
            batch = _scaled_batch(config.warm_up.batch_size, share_of_new)
            configs.append(dataclasses.replace(config, warm_up=dataclasses.replace(config.warm_up, batch_size=batch)))
    return configs


def _scaled_batch(batch_size: int, share: float) -> int:
    lanes = min(_LARGEST_LANE_COUNT, batch_size)
    return max(1, round(batch_size * share / lanes)) * lanes


def summarise(results: list[dict[str, Any]], tune: Tune) -> dict[str, Any]:
    """Mean AUCs of every setting over the folds, best first (by the mean of both scorings over all phases)."""
    num = 1 + len(tune.settings)
    rows = []
    for number, setting in enumerate(({}, *tune.settings)):
        of_setting = results[number::num]
        row: dict[str, Any] = {"setting": setting, "number": number}
        for scoring in ("next", "test"):
            row[f"auc_{scoring}"] = [
                statistics.fmean(result["phases"][phase][f"auc_{scoring}"] for result in of_setting) for phase in PHASES
            ]
        row["score"] = statistics.fmean([*row["auc_next"], *row["auc_test"]])
        rows.append(row)
    first = results[0]["split"]
    return {
        "schema": 1,
        "dataset": results[0]["dataset"],
        "folds": tune.folds,
        "split": first,
        "rows": sorted(rows, key=lambda row: -row["score"]),
    }


def table(summary: dict[str, Any]) -> str:
    """The settings, best first, as lines of text."""
    lines = [f"{'':>3} {'score':>6}   {'fixed test':^27}   {'next set':^27}   setting"]
    for row in summary["rows"]:
        test, next_set = ("  ".join(f"{value:.4f}"[1:] for value in row[key]) for key in ("auc_test", "auc_next"))
        head = f"{row['number']:>3} {row['score']:.4f}"
        lines.append(f"{head}   {test:^27}   {next_set:^27}   {_words(row['setting'])}")
    positives = summary["split"]["positives"]
    lines.append(
        f"{summary['folds']} folds; positives of the items that play new: {positives['test']:.2f} in the test set, "
        f"{positives['pretrain']:.2f} in pretraining"
    )
    return "\n".join(lines)


def _words(setting: dict[str, Any], prefix: str = "") -> str:
    parts = [
        _words(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}"
        for key, value in setting.items()
    ]
    return " ".join(parts) or "(the config itself)"
