"""Ranks as Ray actors: the same results as one process (what happens to them: test_ray_faults.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import UserError
from mwuf_dist.launch import local
from tests.bounds import SAME_AUC
from tests.tiny import tiny

pytestmark = [pytest.mark.ray, pytest.mark.dist]

SMALL: dict[str, dict[str, Any]] = {"backbone": {"hidden": [8]}, "pretrain": {"epochs": 3, "learning_rate": 5e-3}}


def test_two_ray_ranks_give_the_result_of_one_process(cluster: Any, tmp_path: Path) -> None:
    from mwuf_dist.launch import ray as ray_launcher

    alone = local.train(tiny(**SMALL), tmp_path / "alone")
    together = ray_launcher.train(tiny(**SMALL), tmp_path / "ray", 2)
    assert together["world_size"] == 2
    for phase, metrics in alone["phases"].items():
        assert together["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=SAME_AUC)


def test_wrong_input_is_the_users_error_and_too_many_ranks_are_refused(cluster: Any, tmp_path: Path) -> None:
    from mwuf_dist.launch import ray as ray_launcher

    with pytest.raises(UserError, match="the cluster has 2"):
        ray_launcher.train(tiny(), tmp_path / "many", 64)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        ray_launcher.train(tiny(), tmp_path / "full", 1)
