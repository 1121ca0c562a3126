"""A data set that trains in a second, for tests of whole stages."""

from __future__ import annotations

from typing import Any

from mwuf_dist.config import Config, build, merge

TINY: dict[str, Any] = {
    "data": {
        "name": "synthetic",
        "old_above": 60,
        "warm_rows": 8,
        "synthetic": {"num_rows": 20_000, "num_users": 300, "num_items": 300, "label_noise": 0.0},
    },
    "backbone": {"name": "deepfm", "hidden": [16, 8], "batch_norm": True},
    "embedding": {"dim": 8, "init_std": 0.1},
    "pretrain": {"epochs": 4, "batch_size": 256, "learning_rate": 1e-2},
    "meta_train": {"batch_size": 256, "learning_rate_cold": 1e-2, "learning_rate_warm": 1e-2},
    "warm_up": {"batch_size": 64, "learning_rate": 1e-2, "epochs": 2},
    "runtime": {"progress": "off"},
}


def tiny(**sections: dict[str, Any]) -> Config:
    """The tiny config with other values in some sections."""
    return build(merge(TINY, sections))
