"""What a run has found out: the metrics of a phase and `results.json`."""

from __future__ import annotations

import importlib.metadata
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.config import WARM_SETS, Config, config_hash, to_dict
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.metrics import auc, auc_by_clicks, calibration, log_loss
from mwuf_dist.files import make_folder, write_atomically
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.checkpoint.files import Meta

SCHEMA = 1
NEXT_SETS = (*WARM_SETS, "test")  # What the next-set scoring scores in each phase.
# Points of the curve of AUC by clicks within a warm set.
_BUCKETS_PER_SET = 4


def phase_metrics(
    prepared: Prepared, phase: int, warm_rows: int, scores: Mapping[str, np.ndarray | None], threads: int = 1
) -> dict[str, Any]:
    """Returns metrics of one phase under both scorings.

    Args:
        prepared: holds the labels and, for synthetic data, the true log-odds.
        phase: 0 to 3.
        warm_rows: K.
        scores: logits by split, in stored order.
        threads: that sort them.

    Returns:
        `auc_next`, `auc_test`, `logloss_*`, `calibration_*`, `auc_by_clicks` (the phase's part of the curve) and, where
        the truth is known, `ceiling_*` (the Bayes AUC). What is not defined, as an AUC of one class, is None.
    """
    next_set = NEXT_SETS[phase]
    metrics: dict[str, Any] = {}
    for scoring, split in (("next", next_set), ("test", "test")):
        logits = scores[split]
        assert logits is not None
        known = "bayes_logit" in prepared.manifest["columns"]
        columns = prepared.columns(split, ("label", "bayes_logit") if known else ("label",))
        metrics[f"auc_{scoring}"] = auc(logits, columns["label"], threads)
        metrics[f"logloss_{scoring}"] = log_loss(logits, columns["label"])
        metrics[f"calibration_{scoring}"] = calibration(logits, columns["label"])
        if known:
            metrics[f"ceiling_{scoring}"] = auc(columns["bayes_logit"], columns["label"], threads)
    metrics["auc_by_clicks"] = _clicks_curve(prepared, phase, warm_rows, scores[next_set])
    return defined(metrics)


def defined(values: Any) -> Any:
    """Replaces what is not defined, a NaN, which JSON has not, by None."""
    if isinstance(values, Mapping):
        return {key: defined(value) for key, value in values.items()}
    if isinstance(values, list):
        return [defined(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


def _clicks_curve(prepared: Prepared, phase: int, warm_rows: int, logits: np.ndarray | None) -> list[dict[str, Any]]:
    """Gives AUC of the next set by the number of rows that the item had before the row.

    Its warm sets and earlier rows here.

    The model has learned from the rows of finished sets only, so within a set the curve tells how predictions age. The
    rows after the last warm set are one bucket.
    """
    assert logits is not None
    columns = prepared.columns(NEXT_SETS[phase], ("item", "label"))
    counted = prepared.is_counted(columns["label"])
    num_clicks = phase * warm_rows + counted_within_item(columns["item"], counted)
    buckets = _BUCKETS_PER_SET if phase < len(WARM_SETS) else 1
    edges = sorted({phase * warm_rows + part * warm_rows // buckets for part in range(buckets)})
    curve = auc_by_clicks(logits, columns["label"], num_clicks, edges)
    if phase < len(WARM_SETS):
        curve[-1]["to"] = (phase + 1) * warm_rows
    return curve


def counted_within_item(item: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Says how many counted rows of the same item stand before each row [n], in the order of the rows."""
    order = np.argsort(item, kind="stable")
    ordered, counts = item[order], counted[order].astype(np.int64)
    before = np.cumsum(counts) - counts
    place = np.empty(len(item), dtype=np.int64)
    place[order] = before - before[np.searchsorted(ordered, ordered)]
    return place


def write_scores(folder: Path, name: str, scores: Mapping[str, np.ndarray | None]) -> None:
    """Keeps a phase's logits as `scores/PHASE-SET.npy`, float32 where that loses nothing."""
    make_folder(folder / "scores")
    for split, logits in scores.items():
        assert logits is not None
        short = logits.astype(np.float32)
        buffer = io.BytesIO()
        np.save(buffer, short if np.array_equal(short, logits, equal_nan=True) else logits)
        write_atomically(folder / "scores" / f"{name}-{split}.npy", buffer.getvalue())


def results_of(
    config: Config, prepared: Prepared, runtime: Runtime, meta: Meta, implementation: dict[str, object]
) -> dict[str, Any]:
    """Returns the content of `results.json` (schema in README)."""
    splits = prepared.manifest["splits"]
    return {
        "schema": SCHEMA,
        "dataset": prepared.manifest["name"],
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
        "prepared_path": str(prepared.path.resolve()),
        "prepared_checksum": prepared.checksum,
        "phases": defined(meta.phases),  # a checkpoint of an earlier version may hold a NaN
        "stages": meta.stages,
        "config_hash": config_hash(config),
        "config": to_dict(config),
        "versions": meta.versions,
        "implementation": implementation,
    }


def versions() -> dict[str, str]:
    """Returns versions of what decides the numbers."""
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
