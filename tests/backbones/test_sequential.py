"""Backbones that look at histories: their papers' formulas in plain loops over float64 numbers, and who sees what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mwuf_dist.backbones import Backbone, EmbeddedHistory, build_backbone
from mwuf_dist.config.registry import backbone_config
from tests.backbones.test_formulas import SHAPE, affine, dot, mlp
from tests.bounds import assert_float32_close

D = SHAPE.dim
LENGTHS = (3, 0, 5, 1)  # of the histories; the second user has none
GROUP = (2, 0, 1, 3, 0, 2)  # the history of each of six rows
NAMES = ("gru4rec", "din")
Event = list[float]


def built(name: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    config = backbone_config(name=name, hidden=(5, 4), history_length=6, **keys)
    backbone = build_backbone(config, SHAPE).double().eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, mean=0.2 if parameter.dim() == 1 else 0.0, std=0.4)
    return backbone


def rows() -> tuple[torch.Tensor, torch.Tensor, EmbeddedHistory]:
    torch.manual_seed(1)
    num = sum(LENGTHS)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    history = EmbeddedHistory(
        torch.arange(num),
        torch.ones(num),
        offsets,
        torch.tensor(GROUP),
        torch.tensor(LENGTHS)[torch.tensor(GROUP)],
        index=torch.arange(num),
        rows=torch.randn(num, D).double(),
    )
    item, context = torch.randn(len(GROUP), D), torch.randn(len(GROUP), (SHAPE.num_fields - 1) * D)
    return item.double(), context.double(), history


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in compiled loops, and by torch's operators
def test_histories_as_they_are_give_what_their_encoding_does(dtype: torch.dtype) -> None:
    found, expected = [], []
    for to, as_they_are in ((found, True), (expected, False)):
        item, context, history = rows()
        kind = dtype if as_they_are else torch.float64
        leaves = [x.to(kind).requires_grad_() for x in (item, context, history.rows)]
        backbone, history = built("din").to(kind), replace(history, rows=leaves[2])
        logit = backbone(*leaves[:2], None, history) if as_they_are else logits(backbone, *leaves[:2], history)
        to += [logit, *torch.autograd.grad(logit.sin().sum(), [*leaves, *backbone.parameters()])]
    # Fields, units, hidden layers and the events of all rows, there and back.
    assert_float32_close(found, expected, num_terms=2 * (6 * D + 36 + 9 + len(GROUP) * max(LENGTHS)))


class Total(nn.Module):
    """In the place of an MLP, whose hidden units may all be off."""

    def forward(self, x: torch.Tensor, row_weight: torch.Tensor | None = None) -> torch.Tensor:
        """The sum of each row."""
        return x.sum(1)


def logits(backbone: Backbone, item: torch.Tensor, context: torch.Tensor, history: EmbeddedHistory) -> torch.Tensor:
    return backbone(item, torch.cat([context, backbone.encode(history, context)], dim=1))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gru4rec(backbone: Any, item: Event, events: list[Event]) -> list[float]:
    """Equations 1 to 4 with cuDNN's place of the reset gate; torch's weights are in the order r, z, n."""
    gru = backbone.gru
    state = [0.0] * D
    for event in events:
        inputs = affine(gru.weight_ih_l0, gru.bias_ih_l0, event)
        recurrent = affine(gru.weight_hh_l0, gru.bias_hh_l0, state)
        for k in range(D):
            r = sigmoid(inputs[k] + recurrent[k])
            keep = sigmoid(inputs[D + k] + recurrent[D + k])
            new = math.tanh(inputs[2 * D + k] + r * recurrent[2 * D + k])
            state[k] = (1 - keep) * new + keep * state[k]
    return state


def din(backbone: Any, item: Event, events: list[Event]) -> list[float]:
    """Equation 3."""
    interest, slope = [0.0] * D, backbone.activation.weight.item()
    for event in events:
        inputs = [*event, *[a * b for a, b in zip(event, item, strict=True)], *item]
        hidden = [x if x > 0 else slope * x for x in affine(backbone.unit.weight, backbone.unit.bias, inputs)]
        weight = dot(backbone.relevance.weight[0].tolist(), hidden) + backbone.relevance.bias.item()
        interest = [a + weight * b for a, b in zip(interest, event, strict=True)]
    return interest


@pytest.mark.parametrize("formula", [gru4rec, din])
def test_forward_is_the_formula_of_the_paper_for_users_with_and_without_history(formula: Any) -> None:
    backbone = built(formula.__name__)
    item, context, history = rows()
    expected = []
    for row, group in enumerate(GROUP):
        events = history.embeddings[history.offsets[group] : history.offsets[group + 1]].tolist()
        summary = formula(backbone, item[row].tolist(), events)
        assert events or summary == [0.0] * D
        expected.append(mlp(backbone.mlp, [*item[row].tolist(), *context[row].tolist(), *summary]))
    found = logits(backbone, item, context, history).detach()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert found.std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_each_event_counts_and_only_for_the_rows_of_its_history(name: str) -> None:
    backbone = built(name)
    backbone.mlp = Total()
    item, context, history = rows()
    history.rows.requires_grad_()
    found = logits(backbone, item, context, history)
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for row, group in enumerate(GROUP):
        (gradient,) = torch.autograd.grad(found[row], history.rows, retain_graph=True)
        assert torch.equal(gradient.abs().sum(1) > 0, owner == group)


@pytest.mark.parametrize("name", NAMES)
def test_logits_can_be_differentiated_twice_in_the_item(name: str) -> None:
    backbone = built(name)
    item, context, history = rows()
    with torch.no_grad():
        part = torch.cat([context, backbone.encode(history, context)], dim=1)

    def loss(item: torch.Tensor) -> torch.Tensor:
        return backbone(item, part).sigmoid()

    item.requires_grad_()
    assert torch.autograd.gradgradcheck(loss, item)


@pytest.mark.parametrize("name", NAMES)
def test_padding_rows_change_neither_the_other_logits_nor_the_moments(name: str) -> None:
    item, context, history = rows()
    weight = torch.cat([torch.ones(len(GROUP)), torch.zeros(2)]).double()
    padded = [torch.cat([x, 9 * torch.randn(2, x.shape[1]).double()]) for x in (item, context)]
    # As the loader makes them: a row of padding has a history of its own, which is empty.
    offsets = torch.cat([history.offsets, history.offsets[-1:], history.offsets[-1:]])
    group = torch.tensor([*GROUP, len(LENGTHS), len(LENGTHS) + 1])
    earlier = torch.cat([history.earlier, torch.zeros(2, dtype=torch.int64)])
    longer = EmbeddedHistory(history.items, history.labels, offsets, group, earlier, history.index, history.rows)

    def trained(row_weight: torch.Tensor | None, *inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        backbone = built(name, batch_norm=True).train()
        part = torch.cat([inputs[1], backbone.encode(inputs[2], inputs[1])], dim=1)
        logit = backbone(inputs[0], part, row_weight)[: len(GROUP)]
        return logit.detach(), [value.clone() for key, value in backbone.state_dict().items() if "running" in key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mwuf_dist.backbones.layers.dist.get_world_size", lambda: 1)
        expected, moments = trained(None, item, context, history)
        found, padded_moments = trained(weight, *padded, longer)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded_moments, moments, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["forward", "encode", "_interest"])
def test_a_din_of_ones_own_gets_what_it_was_written_for(name: str) -> None:
    din = built("din")
    own = type("Own", (type(din),), {name: lambda self, *inputs: getattr(super(type(self), self), name)(*inputs)})
    assert din.reads_events and not own(din.config, SHAPE).reads_events
