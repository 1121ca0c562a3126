"""What a run has found out: the metrics of a phase and `results.json`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from mwuf_dist.config import Config, config_hash, to_dict
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.metrics import auc, calibration, log_loss
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.checkpoint_files import Meta

SCHEMA = 1


def phase_metrics(prepared: Prepared, next_set: str, scores: Mapping[str, np.ndarray | None]) -> dict[str, float]:
    """Metrics of one phase under both scorings.

    Args:
        prepared: holds the labels and, for synthetic data, the true log-odds.
        next_set: the set that the next-set scoring uses in this phase.
        scores: logits by split, in stored order.

    Returns:
        `auc_next`, `auc_test`, `logloss_*`, `calibration_*` and, where the truth is known, `ceiling_*` (the Bayes AUC).
    """
    metrics = {}
    for scoring, split in (("next", next_set), ("test", "test")):
        logits = scores[split]
        assert logits is not None
        known = "bayes_logit" in prepared.manifest["columns"]
        columns = prepared.columns(split, ("label", "bayes_logit") if known else ("label",))
        metrics[f"auc_{scoring}"] = auc(logits, columns["label"])
        metrics[f"logloss_{scoring}"] = log_loss(logits, columns["label"])
        metrics[f"calibration_{scoring}"] = calibration(logits, columns["label"])
        if known:
            metrics[f"ceiling_{scoring}"] = auc(columns["bayes_logit"], columns["label"])
    return metrics


def results_of(config: Config, prepared: Prepared, runtime: Runtime, meta: Meta) -> dict[str, Any]:
    """The content of `results.json` (schema in README)."""
    splits = prepared.manifest["splits"]
    return {
        "schema": SCHEMA,
        "dataset": config.data.name,
        "backbone": config.backbone.name,
        "method": config.method.name,
        "variant": config.method.variant,
        "seed": config.seed,
        "world_size": runtime.world_size,
        "device": runtime.device.type,
        "split": {
            "old_items": prepared.num_old_items,
            "new_items": prepared.num_new_items,
            **{name: split["rows"] for name, split in splits.items()},
            "positives": {name: split["positives"] / max(1, split["rows"]) for name, split in splits.items()},
        },
        "prepared": prepared.path.name,
        "phases": meta.phases,
        "stages": meta.stages,
        "config_hash": config_hash(config),
        "config": to_dict(config),
        "versions": meta.versions,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {}
    for name, distributions in {
        "mwuf_dist": ("mwuf-dist",),
        "torch": ("torch",),
        "torchrec": ("torchrec",),
        "fbgemm": ("fbgemm-gpu-cpu", "fbgemm-gpu"),
        "numpy": ("numpy",),
        "pyarrow": ("pyarrow",),
    }.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
