"""The compiled forward and backward of training are the backbone's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mwuf_kernels import BatchSide, TrainedLayer, TrainedNorm, TrainedRows, native

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.backbones.deepfm import DeepFM
from mwuf_dist.config import Config
from mwuf_dist.config.registry import backbone_config
from mwuf_dist.runtime import draws, start
from tests.bounds import assert_float32_close

ROWS, ITEMS, PROFILES = 150, 7, 5
# (D, widths of the hidden layers): multiples of every register's width, and of none.
SIZES = [(16, (64, 32)), (4, (8, 6, 5)), (5, (13,))]
PLAIN = list(itertools.product(("fm", "wide_deep", "deepfm", "pnn"), (False,), (0.0,)))
WITH_NORM_AND_DROPOUT = [("deepfm", True, 0.0), ("deepfm", False, 0.3), ("wide_deep", True, 0.3), ("pnn", True, 0.3)]


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    with start(Config()):
        yield


def made(name: str, batch_norm: bool, dropout: float, dim: int = 4, hidden: tuple[int, ...] = (8, 6, 5)) -> Any:
    torch.manual_seed(0)
    mlp = {"hidden": hidden, "batch_norm": batch_norm, "dropout": dropout}
    config = backbone_config(name, **({} if name == "fm" else mlp))
    return build_backbone(config, Shape(dim=dim, num_item_fields=2, num_user_fields=3)).train()


def outcome(backbone: Any, logit: torch.Tensor, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, gradients in everything, and moments."""
    named = dict(backbone.named_parameters())
    gradients = torch.autograd.grad(logit.sin().sum(), [*inputs, *named.values()])
    names = [*(f"input {i}" for i in range(len(inputs))), *named]
    buffers = {name: value.clone() for name, value in backbone.named_buffers()}
    return {"logit": logit.detach(), **dict(zip(names, gradients, strict=True)), **buffers}


needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("dim", "hidden"), SIZES)
@pytest.mark.parametrize(("name", "batch_norm", "dropout"), PLAIN + WITH_NORM_AND_DROPOUT)
def test_logits_gradients_and_moments_are_those_of_the_backbone_in_float64(
    name: str, batch_norm: bool, dropout: float, dim: int, hidden: tuple[int, ...], is_padded: bool
) -> None:
    generator = torch.Generator().manual_seed(1)

    def leaf(rows: int, width: int) -> torch.Tensor:
        return (torch.randn(rows, width, generator=generator) / 2).requires_grad_()

    # The item, a user's own field, and fields that users share: a side without an index need not be the first.
    item, user, profile = leaf(ITEMS, 3 * dim), leaf(ROWS, dim), leaf(PROFILES, 2 * dim)
    of_item, of_profile = (torch.randint(0, n, (ROWS,), generator=generator) for n in (ITEMS, PROFILES))

    # Padding, here every fifth row, has no part in moments and gradients, and a logit that nobody reads.
    weight = (torch.arange(ROWS) % 5 > 0).float() if is_padded else None
    runs = []
    for _ in range(3):
        backbone = made(name, batch_norm, dropout, dim, hidden)
        draws.begin(2, first_row=ROWS)
        sides = [
            BatchSide(item, of_item, 0),
            BatchSide(user, None, 3 * dim),
            BatchSide(profile, of_profile, 4 * dim),
        ]
        runs.append(outcome(backbone, backbone.trained_head().logit(sides, weight), [item, user, profile]))
    found = runs[0]
    for key, value in found.items():
        assert torch.equal(value, runs[1][key]) and torch.equal(value, runs[2][key]), f"{key} has other bits"

    backbone = made(name, batch_norm, dropout, dim, hidden).double()
    draws.begin(2, first_row=ROWS)
    inputs = [x.detach().double().requires_grad_() for x in (item, user, profile)]
    item_rows = inputs[0][of_item]
    context = torch.cat([item_rows[:, dim:], inputs[1], inputs[2][of_profile]], dim=1)
    logit = backbone(item_rows[:, :dim], context, weight)
    expected = outcome(backbone, logit if weight is None else logit * weight.double(), inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Layers there and back, and a sum over the batch in gradients and moments.
        num_terms = 6 * dim + sum(hidden) if key == "logit" else 2 * (6 * dim + sum(hidden)) + ROWS
        assert_float32_close(found[key], value, num_terms=num_terms)


@needs_compiler
@pytest.mark.parametrize("batch_norm", [True, False])
def test_what_is_no_number_comes_through_every_layer(batch_norm: bool) -> None:
    """A ReLU that made a zero of it would hide that training has diverged."""
    backbone = made("wide_deep", batch_norm, 0.0)
    item, user = torch.randn(ROWS, 12, requires_grad=True), torch.randn(ROWS, 12, requires_grad=True)
    with torch.no_grad():
        backbone.mlp.linears[0].weight[0] = float("nan")
    logit = backbone.trained_head().logit([BatchSide(item, None, 0), BatchSide(user, None, 12)])
    logit.sum().backward()
    assert logit.isnan().all() and item.grad is not None and item.grad.isnan().all()


@needs_compiler
def test_a_rank_without_rows_sends_gradients_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its part of a batch may be empty, and the items and profiles that it has looked up for it padding."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(777))  # what nobody writes
    nothing = torch.empty(0, dtype=torch.int64)
    for dim, interactions, norm in itertools.product((4, 16), (False, True), (None, normed(8))):
        sides = [BatchSide(torch.randn(2, 2 * dim), nothing, 0), BatchSide(torch.randn(0, dim), None, 2 * dim)]
        layer = TrainedLayer(torch.randn(8, 3 * dim), torch.zeros(8) if norm is None else None, norm, None)
        linear, out = (torch.randn(3 * dim), torch.zeros(1)), (torch.randn(8), torch.zeros(1))
        rows = TrainedRows(sides, [layer], linear, out, dim, interactions)
        assert not len(rows.forward())
        found = rows.backward(torch.empty(0))
        assert len(found.sides[0]) == 2 and not found.sides[0].any()
        for one in (found.layers[0].weight, found.linear, found.out, found.bias):
            assert one is not None and not one.any()


def normed(width: int) -> TrainedNorm:
    """A norm that takes the moments of a batch as they are."""
    return TrainedNorm(torch.ones(width), torch.zeros(width), torch.zeros(width), torch.ones(width), 1.0, 1e-5)


@needs_compiler
@pytest.mark.parametrize("shift", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("num_rows", [2, 47, 145, 1000])
def test_moments_of_a_batch_keep_the_digits_that_its_numbers_have(num_rows: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    x, norm = torch.randn(num_rows, 5, generator=generator) + shift, normed(5)
    layer = TrainedLayer(torch.eye(5), None, norm, None)
    TrainedRows([BatchSide(x, None, 0)], [layer], None, (torch.ones(5), torch.zeros(1)), 1, False).forward()
    torch.testing.assert_close(norm.running_mean.double(), x.double().mean(0), rtol=2e-7, atol=1e-7)
    # Squares about zero in float64 lose some times (mean / deviation)^2 2^-53: 1.1e-6 with the largest shift.
    torch.testing.assert_close(norm.running_var.double(), x.double().var(0), rtol=1e-5, atol=0)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_moments_of_what_is_no_number_are_none(value: float) -> None:
    """3e38 is one, but the sum of squares is not."""
    x, norm = torch.randn(60, 3), normed(3)
    x[50, 1] = value
    layer = TrainedLayer(torch.eye(3), None, norm, None)
    TrainedRows([BatchSide(x, None, 0)], [layer], None, (torch.ones(3), torch.zeros(1)), 1, False).forward()
    assert not norm.running_var[1].isfinite()


def test_other_types_than_float32_are_left_to_the_backbone() -> None:
    assert made("deepfm", True, 0.0).trained_head() is not None
    assert made("deepfm", False, 0.0).double().trained_head() is None
    config = backbone_config("deepfm", precision="bfloat16")
    assert build_backbone(config, Shape(dim=4, num_item_fields=2, num_user_fields=3)).trained_head() is None


def test_a_subclass_with_a_forward_of_its_own_is_computed_by_that_alone() -> None:
    class Doubled(DeepFM):
        def forward(self, item: torch.Tensor, context: torch.Tensor, row_weight: Any = None) -> torch.Tensor:
            return 2 * super().forward(item, context, row_weight)

    backbone = made("deepfm", False, 0.0)
    assert backbone.fold() is not None
    doubled = Doubled(backbone.config, backbone.shape).train()
    assert doubled.fold() is None and doubled.trained_head() is None


@pytest.mark.parametrize("product", ["outer", "both"])
def test_outer_products_are_left_to_the_backbone(product: str) -> None:
    shape = Shape(dim=4, num_item_fields=2, num_user_fields=3)
    backbone = build_backbone(backbone_config("pnn", product=product), shape)
    assert backbone.fold() is None and backbone.trained_head() is None
    assert made("pnn", False, 0.0).fold() is not None
