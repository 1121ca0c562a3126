"""The hand-written forward and backward of training are the backbone's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mwuf_dist.backbones import BatchSide, Shape, build_backbone
from mwuf_dist.config import BackboneConfig, Config
from mwuf_dist.runtime import start

SHAPE = Shape(dim=4, num_item_fields=2, num_user_fields=3)
ITEM_WIDTH, USER_WIDTH, ROWS, ITEMS, PROFILES = 12, 12, 50, 7, 5
PLAIN = list(itertools.product(("fm", "wide_deep", "deepfm"), (False,), (0.0,)))
WITH_NORM_AND_DROPOUT = [("deepfm", True, 0.0), ("deepfm", False, 0.3), ("wide_deep", True, 0.3)]


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    with start(Config()):
        yield


def made(name: str, batch_norm: bool, dropout: float) -> Any:
    torch.manual_seed(0)
    config = BackboneConfig(name=name, hidden=(8, 6, 5), batch_norm=batch_norm, dropout=dropout)
    return build_backbone(config, SHAPE).double().train()


def outcome(backbone: Any, logit: torch.Tensor, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, gradients in everything, and moments."""
    named = dict(backbone.named_parameters())
    gradients = torch.autograd.grad(logit.sin().sum(), [*inputs, *named.values()])
    names = [*(f"input {i}" for i in range(len(inputs))), *named]
    buffers = {name: value.clone() for name, value in backbone.named_buffers()}
    return {"logit": logit.detach(), **dict(zip(names, gradients, strict=True)), **buffers}


@pytest.mark.parametrize(("name", "batch_norm", "dropout"), PLAIN + WITH_NORM_AND_DROPOUT)
def test_logits_gradients_and_moments_are_those_of_the_backbone_in_float64(
    name: str, batch_norm: bool, dropout: float
) -> None:
    draws = torch.Generator().manual_seed(1)

    def leaf(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, dtype=torch.float64, generator=draws).requires_grad_()

    # The item, a user's own field, and fields that users share: a side without an index need not be the first.
    item, user, profile = leaf(ITEMS, ITEM_WIDTH), leaf(ROWS, 4), leaf(PROFILES, USER_WIDTH - 4)
    of_item, of_profile = (torch.randint(0, n, (ROWS,), generator=draws) for n in (ITEMS, PROFILES))

    backbone = made(name, batch_norm, dropout)
    assert backbone.trains_by_sides(batch_is_ours=True)
    torch.manual_seed(2)
    sides = [
        BatchSide(item, of_item, slice(0, ITEM_WIDTH)),
        BatchSide(user, None, slice(ITEM_WIDTH, ITEM_WIDTH + 4)),
        BatchSide(profile, of_profile, slice(ITEM_WIDTH + 4, None)),
    ]
    found = outcome(backbone, backbone.logit_of_sides(sides), [item, user, profile])

    backbone = made(name, batch_norm, dropout)
    torch.manual_seed(2)
    item_rows = item[of_item]
    context = torch.cat([item_rows[:, 4:], user, profile[of_profile]], dim=1)
    expected = outcome(backbone, backbone(item_rows[:, :4], context), [item, user, profile])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")


def test_moments_over_a_batch_that_other_ranks_share_are_left_to_the_backbone() -> None:
    assert not made("deepfm", True, 0.0).trains_by_sides(batch_is_ours=False)
    assert made("deepfm", False, 0.0).trains_by_sides(batch_is_ours=False)
    assert not made("deepfm", False, 0.0).eval().trains_by_sides(batch_is_ours=True)
