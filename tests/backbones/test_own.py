"""A user's own module as a backbone, by its import path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.config import UserError
from mwuf_dist.config.registry import backbone_config
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from tests.tiny import tiny

SHAPE = Shape(dim=4, num_item_fields=2, num_user_fields=1)

MODULE = """
import torch
from torch import nn

class Sum(nn.Module):
    def __init__(self, config, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
    def forward(self, item, context):
        return self.weight * (item.sum(1) + context.sum(1))

class Weighted(Sum):
    def forward(self, item, context, row_weight=None):
        return super().forward(item, context) * (1 if row_weight is None else row_weight)

class Column(Sum):
    def forward(self, item, context):
        return super().forward(item, context)[:, None]

class NoModule:
    pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a module that lies in the current folder, which is not on the search path."""
    name = f"own_{len(request.node.name)}_{sum(map(ord, request.node.name))}"  # no two tests import the same
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return name


def test_the_example_trains_and_beats_chance(tmp_path: Path) -> None:
    config = tiny(backbone={"name": "examples.own_backbone:TwoTower"})
    with start(config) as runtime:
        results = run_module.run(config, tmp_path / "run", runtime)
    assert results["backbone"] == "examples.own_backbone:TwoTower"
    assert results["phases"]["warm-c"]["auc_test"] > 0.6


def test_a_module_without_row_weight_is_called_without_it_and_one_with_it_gets_it(own_module: str) -> None:
    item, context, weight = torch.ones(2, 4), torch.ones(2, 12), torch.tensor([1.0, 0.0])
    plain = build_backbone(backbone_config(name=f"{own_module}:Sum"), SHAPE)
    assert plain(item, context, weight).tolist() == [16, 16]
    weighted = build_backbone(backbone_config(name=f"{own_module}:Weighted"), SHAPE)
    assert weighted(item, context, weight).tolist() == [16, 0]
    assert plain.fold() is None and len(list(plain.parameters())) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:Net", r"cannot import no_such_module .*run from the folder"),
        ("{own}:Absent", r"Absent of .*own_\w+.py is nothing, it must be a subclass of torch.nn"),
        ("{own}:NoModule", r"NoModule .* must be a subclass of torch.nn.modules.module.Module"),
        ("deep_fm", r"did you mean 'deepfm'\? There are afn, .*package.module:Class"),
    ],
)
def test_a_wrong_name_is_the_users_error_and_says_what_to_do(own_module: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(backbone_config(name=path.format(own=own_module)), SHAPE)


def test_a_module_that_returns_no_logit_per_row_is_the_users_error(own_module: str) -> None:
    column: Any = build_backbone(backbone_config(name=f"{own_module}:Column"), SHAPE)
    with pytest.raises(UserError, match=r"returned \(2, 1\) for 2 rows, it must return logits of shape \(2,\)"):
        column(torch.ones(2, 4), torch.ones(2, 12))
