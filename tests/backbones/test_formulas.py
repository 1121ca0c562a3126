"""Each backbone's forward against its paper's formula, written in plain loops over float64 numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from mwuf_dist.backbones import Backbone, Shape, build_backbone
from mwuf_dist.backbones.layers import MLP, GlobalBatchNorm
from mwuf_dist.config.registry import config_class

SHAPE = Shape(dim=3, num_item_fields=2, num_user_fields=2, numeric_fields=(0, 3))
ROWS = 4


def built(shape: Shape = SHAPE, **keys: Any) -> Backbone:
    """In eval mode, with all weights and running moments away from their starting points."""
    torch.manual_seed(0)
    cls = config_class("backbone", keys.get("name", "wide_deep"))
    known = {field.name for field in dataclasses.fields(cls)}
    config = cls(**{key: value for key, value in ({"hidden": (5, 4)} | keys).items() if key in known})
    backbone = build_backbone(config, shape).double().eval()
    for parameter in backbone.parameters():
        # A mean above zero keeps hidden units alive.
        nn.init.normal_(parameter, mean=0.2 if parameter.dim() == 1 else 0.0, std=0.4)
    for module in backbone.modules():
        if isinstance(module, GlobalBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return backbone


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, SHAPE.dim).double(), torch.randn(ROWS, (SHAPE.num_fields - 1) * SHAPE.dim).double()


def fields_of(item: torch.Tensor, context: torch.Tensor) -> list[list[list[float]]]:
    """[row][field][column], the item ID first."""
    return torch.cat([item, context], dim=1).view(ROWS, -1, SHAPE.dim).tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def affine(weight: torch.Tensor, bias: torch.Tensor, x: list[float]) -> list[float]:
    return [dot(row, x) + b for row, b in zip(weight.tolist(), bias.tolist(), strict=True)]


def mlp(module: MLP, x: list[float]) -> float:
    for linear in module.linears:
        assert isinstance(linear, nn.Linear)
        x = [max(0.0, y) for y in affine(linear.weight, linear.bias, x)]
    return affine(module.out.weight, module.out.bias, x)[0]


def flat(row: list[list[float]]) -> list[float]:
    return [value for field in row for value in field]


def norm(module: GlobalBatchNorm, channel: int, value: float) -> float:
    columns = (module.running_mean, module.running_var, module.weight, module.bias)
    mean, variance, scale, offset = (column[channel].item() for column in columns)
    return (value - mean) / math.sqrt(variance + module.eps) * scale + offset


def pnn(backbone: Any, row: list[list[float]]) -> float:
    product = backbone.config.product
    signals = flat(row)
    if product in ("inner", "both"):
        signals += [dot(row[i], row[j]) for i in range(len(row)) for j in range(i + 1, len(row))]
    if product in ("outer", "both"):  # the sum of all pairs' outer products, not the paper's shortcut to it
        signals += [sum(a[k] * b[m] for a in row for b in row) for k in range(SHAPE.dim) for m in range(SHAPE.dim)]
    return mlp(backbone.mlp, signals)


def dcn(backbone: Any, row: list[list[float]]) -> float:
    first = flat(row)
    x = first
    for weight, bias in zip(backbone.weights, backbone.biases, strict=True):
        inner = dot(x, weight.tolist())
        x = [a * inner + b + c for a, b, c in zip(first, bias.tolist(), x, strict=True)]
    return dot(backbone.out.weight[0].tolist(), x) + mlp(backbone.mlp, first)


def dcn_v2(backbone: Any, row: list[list[float]]) -> float:
    first = flat(row)
    x = first
    for cross in backbone.crosses:
        x = [a * y + c for a, y, c in zip(first, affine(cross.weight, cross.bias, x), x, strict=True)]
    return dot(backbone.out.weight[0].tolist(), x) + mlp(backbone.mlp, first)


def afn(backbone: Any, row: list[list[float]]) -> float:
    crossed = []
    for column in range(SHAPE.dim):
        logs = [
            norm(backbone.log_norm, field, math.log(max(abs(row[field][column]), 1e-4))) for field in range(len(row))
        ]
        powers = affine(backbone.powers.weight, backbone.powers.bias, logs)
        crossed += [norm(backbone.exp_norm, neuron, math.exp(power)) for neuron, power in enumerate(powers)]
    return mlp(backbone.mlp, crossed)


def dlrm(backbone: Any, row: list[list[float]]) -> float:
    numeric = [1 + field for field in backbone.shape.numeric_fields]
    vectors = [field for place, field in enumerate(row) if place not in numeric]
    dense = flat([row[place] for place in numeric])
    for linear in backbone.bottom:
        dense = [max(0.0, y) for y in affine(linear.weight, linear.bias, dense)]
    vectors = [dense, *vectors] if numeric else vectors
    pairs = [dot(vectors[i], vectors[j]) for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
    return mlp(backbone.mlp, dense + pairs)


def fm(backbone: Any, row: list[list[float]]) -> float:
    pairs = sum(dot(row[i], row[j]) for i in range(len(row)) for j in range(i + 1, len(row)))
    return affine(backbone.linear.weight, backbone.linear.bias, flat(row))[0] + pairs


def wide_deep(backbone: Any, row: list[list[float]]) -> float:
    return affine(backbone.linear.weight, backbone.linear.bias, flat(row))[0] + mlp(backbone.mlp, flat(row))


def deepfm(backbone: Any, row: list[list[float]]) -> float:
    return fm(backbone, row) + mlp(backbone.mlp, flat(row))


@pytest.mark.parametrize(
    ("formula", "keys"),
    [
        (fm, {"name": "fm"}),
        (wide_deep, {"name": "wide_deep"}),
        (deepfm, {"name": "deepfm"}),
        (pnn, {"name": "pnn", "product": "inner"}),
        (pnn, {"name": "pnn", "product": "outer"}),
        (pnn, {"name": "pnn", "product": "both"}),
        (dcn, {"name": "dcn", "cross_layers": 2}),
        (dcn_v2, {"name": "dcn_v2", "cross_layers": 2}),
        (afn, {"name": "afn", "log_neurons": 6}),
        (dlrm, {"name": "dlrm", "bottom": (6, 5)}),
        (dlrm, {"name": "dlrm", "bottom": ()}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_forward_is_the_formula_of_the_paper(formula: Any, keys: dict[str, Any]) -> None:
    backbone = built(**keys)
    item, context = rows()
    expected = torch.tensor([formula(backbone, row) for row in fields_of(item, context)], dtype=torch.float64)
    torch.testing.assert_close(backbone(item, context).detach(), expected, rtol=1e-12, atol=1e-12)
    assert expected.std() > 0.01  # the rows can be told apart


def test_dlrm_without_numeric_fields_is_products_alone() -> None:
    shape = dataclasses.replace(SHAPE, numeric_fields=())
    backbone: Any = built(shape, name="dlrm")
    item, context = rows()
    expected = torch.tensor([dlrm(backbone, row) for row in fields_of(item, context)], dtype=torch.float64)
    assert backbone.mlp.linears[0].in_features == 5 * 4 / 2
    torch.testing.assert_close(backbone(item, context).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["dlrm", "pnn"])
def test_gradients_of_products_of_pairs_are_those_of_differences(name: str) -> None:
    backbone = built(name=name)
    assert torch.autograd.gradcheck(backbone, [value.requires_grad_() for value in rows()])


def test_a_logarithmic_neuron_is_a_product_of_powers_of_the_fields() -> None:
    backbone: Any = built(name="afn", log_neurons=1)
    for module in (backbone.log_norm, backbone.exp_norm):  # without BatchNorm: the equation alone
        module.running_mean.zero_()
        module.running_var.fill_(1 - module.eps)
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    nn.init.zeros_(backbone.powers.bias)
    seen: list[torch.Tensor] = []
    backbone.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    item, context = rows()
    backbone(item, context)
    powers = backbone.powers.weight[0]
    fields = torch.cat([item, context], dim=1).view(ROWS, -1, SHAPE.dim).abs()
    expected = torch.ones(ROWS, SHAPE.dim).double()
    for field in range(SHAPE.num_fields):
        expected = expected * fields[:, field] ** powers[field]
    torch.testing.assert_close(seen[0], expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["afn", "dcn", "dcn_v2", "deepfm", "dlrm", "fm", "pnn", "wide_deep"])
def test_padding_rows_change_neither_the_other_logits_nor_the_moments(name: str) -> None:
    item, context = rows()
    weight = torch.ones(ROWS + 3).double()
    weight[ROWS:] = 0
    padded = [torch.cat([x, 9 * torch.randn(3, x.shape[1]).double()]) for x in (item, context)]

    def trained(*inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        backbone = built(name=name, batch_norm=True).train()
        logit = backbone(*inputs)[:ROWS]
        return logit.detach(), [value.clone() for key, value in backbone.state_dict().items() if "running" in key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mwuf_dist.backbones.layers.dist.get_world_size", lambda: 1)
        expected, moments = trained(item, context)
        found, padded_moments = trained(*padded, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(padded_moments, moments, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# A weight whose gradient is rounding noise is moved by Adam all the same, otherwise on every number of ranks. Such
# gradients are up to 1e-5 here, for a norm divides by a deviation and a bit; others from 1e-3 on.
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", ["afn", "dcn", "dcn_v2", "deepfm", "pnn", "wide_deep"])
def test_what_a_norm_takes_away_again_is_not_trained(
    name: str, batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwuf_dist.backbones.layers.dist.get_world_size", lambda: 1)
    backbone = built(name=name, batch_norm=batch_norm, log_neurons=6).train()
    is_trained = {key: parameter.requires_grad for key, parameter in backbone.named_parameters()}
    torch.manual_seed(2)
    item, context = torch.randn(400, SHAPE.dim), torch.randn(400, (SHAPE.num_fields - 1) * SHAPE.dim)
    label = (torch.rand(400) < 0.3).double()
    logit = backbone.requires_grad_()(item.double(), context.double())
    nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().max() > 1e-4) == is_trained[key], key
