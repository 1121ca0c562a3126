"""A user's own method by its import path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from tests.tiny import tiny


def test_the_template_is_meta_trained_and_warms_up(tmp_path: Path) -> None:
    config = tiny(method={"name": "examples.own_method:ContentShift"})
    with start(config) as runtime:
        results = run_module.run(config, tmp_path / "run", runtime)
    assert results["stages"]["meta_train"]["samples"] == results["split"]["pretrain"]
    assert results["phases"]["warm-c"]["auc_test"] > 0.65


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("examples.own_backbone:TwoTower", "must be a subclass of mwuf_dist.methods.interface.Method"),
        ("examples.own_method:Shift", "Shift of .* is nothing"),
        ("mwaf", r"did you mean 'mwuf'\?"),
    ],
)
def test_a_wrong_name_is_the_users_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(method_config(name=name), 4, 8)
