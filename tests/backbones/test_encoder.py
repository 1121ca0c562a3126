"""The encoder against its equations in plain loops, and what it must not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mwuf_dist.backbones import EmbeddedHistory, Shape, build_backbone
from mwuf_dist.backbones.encoder import Encoder
from mwuf_dist.config import UserError
from mwuf_dist.config.registry import backbone_config
from mwuf_dist.runtime import draws

SHAPE = Shape(dim=3, num_item_fields=2, num_user_fields=3, user_id_field=1, item_fields=("a", "b"))
WIDTH, HEADS, RECENT = 4, 2, (1, 2)


def built(dropout: float = 0.0, field_dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    config = backbone_config(
        name="encoder", hidden=(WIDTH,), heads=HEADS, recent=RECENT, dropout=dropout, field_dropout=field_dropout
    )
    backbone = build_backbone(config, SHAPE).double()
    assert isinstance(backbone, Encoder)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.5)
    return backbone


def example() -> tuple[torch.Tensor, torch.Tensor, EmbeddedHistory]:
    """Five rows with three histories, of 3, 0 and 2 events, over two distinct items."""
    torch.manual_seed(1)
    item = torch.randn(5, SHAPE.dim).double()
    context = torch.randn(5, (SHAPE.num_fields - 1) * SHAPE.dim).double()
    history = EmbeddedHistory(
        items=torch.tensor([4, 7, 4, 7, 4]),
        labels=torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]).double(),
        offsets=torch.tensor([0, 3, 3, 5]),
        group=torch.tensor([2, 0, 0, 1, 2]),
        earlier=torch.tensor([2, 0, 3, 0, 1]),
        index=torch.tensor([0, 1, 0, 1, 0]),
        rows=torch.randn(2, SHAPE.dim).double(),
        fields=torch.randn(2, SHAPE.num_item_fields * SHAPE.dim).double(),
    )
    return item, context, history


def logits(backbone: Encoder, item: torch.Tensor, context: torch.Tensor, history: EmbeddedHistory) -> torch.Tensor:
    return backbone(item, torch.cat([context, backbone.encode(history, context)], dim=1))


def literal_logit(
    backbone: Encoder, row: int, item: torch.Tensor, context: torch.Tensor, history: EmbeddedHistory
) -> float:
    """The docstring's equations for one row, event by event."""
    assert history.fields is not None
    dim, content = SHAPE.dim, SHAPE.num_item_fields * SHAPE.dim
    group = int(history.group[row])
    events = []
    for event in range(int(history.offsets[group]), int(history.offsets[group + 1])):
        place = int(history.index[event])
        inner = backbone.event_fields(history.fields[place]) + backbone.event_id.weight @ history.rows[place]
        inner = torch.relu(inner + backbone.event_label.weight[int(history.labels[event])])
        events.append(torch.relu(backbone.event_out(inner)))
    query = backbone.query(context[row, :content])
    mean = torch.stack(events).mean(0) if events else torch.zeros(WIDTH).double()
    fields = context[row, content:].view(-1, dim)
    number = torch.tensor([math.log(1 + len(events)) / 5], dtype=torch.float64)
    earlier = events[: int(history.earlier[row])]
    recent = [torch.stack(earlier[-most:]).mean(0) if earlier else torch.zeros(WIDTH).double() for most in RECENT]
    user = backbone.user(torch.cat([mean, number, *recent, fields[0], fields[2]]))
    found = torch.zeros(WIDTH).double()
    size = WIDTH // HEADS
    for head in range(HEADS if events else 0):
        part = slice(head * size, (head + 1) * size)
        asked = backbone.attention_query(query)[part]
        scores = [math.exp(float(asked @ backbone.attention_key(h)[part]) / math.sqrt(size)) for h in events]
        for score, h in zip(scores, events, strict=True):
            found[part] += score / sum(scores) * backbone.attention_value(h)[part]
    cold = backbone.cold(torch.cat([user, found, query, user * query])) + backbone.cold_user(user)
    taste = backbone.taste(torch.relu(user)) + fields[SHAPE.user_id_field, : dim - 1]
    taste = torch.cat([taste, torch.tensor([0.775], dtype=torch.float64)])
    return float(cold + item[row] @ taste)


@torch.no_grad()
def test_logits_equal_the_equations_event_by_event() -> None:
    backbone = built().eval()
    item, context, history = example()
    found = logits(backbone, item, context, history)
    expected = [literal_logit(backbone, row, item, context, history) for row in range(5)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_cold_part_sees_no_item_id_and_no_user_id() -> None:
    backbone = built().eval()
    item, context, history = example()
    first = SHAPE.num_item_fields * SHAPE.dim + SHAPE.user_id_field * SHAPE.dim
    other = context.clone()
    other[:, first : first + SHAPE.dim] += 1
    whole, changed = backbone.encode(history, context), backbone.encode(history, other)
    assert torch.equal(changed[:, 0], whole[:, 0])
    # The user's ID is a part of the taste, and the intercept stays what it is.
    assert (changed[:, 1:-1] != whole[:, 1:-1]).all() and torch.equal(changed[:, -1], whole[:, -1])
    assert (logits(backbone, item, context, history) != logits(backbone, item + 1, context, history)).all()


@torch.no_grad()
def test_a_batch_in_which_nobody_has_a_history_works() -> None:
    backbone = built().eval()
    item, context, full = example()
    empty = EmbeddedHistory(
        items=full.items[:0],
        labels=full.labels[:0],
        offsets=torch.zeros(2, dtype=torch.int64),
        group=torch.zeros(5, dtype=torch.int64),
        earlier=torch.zeros(5, dtype=torch.int64),
        index=full.index[:0],
        rows=full.rows,
        fields=full.fields,
    )
    found = logits(backbone, item, context, empty)
    expected = [literal_logit(backbone, row, item, context, empty) for row in range(5)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_fields_are_left_out_in_training_alone() -> None:
    backbone = built(field_dropout=0.5)
    item, context, history = example()
    backbone.eval()
    assert torch.equal(logits(backbone, item, context, history), logits(backbone, item, context, history))
    backbone.train()
    assert not torch.equal(logits(backbone, item, context, history), logits(backbone, item, context, history))


def test_a_width_that_the_heads_do_not_divide_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"backbone\.heads = 3 divides"):
        build_backbone(backbone_config(name="encoder", hidden=(64,), heads=3), SHAPE)


def test_the_dropout_of_a_field_that_is_not_there_is_the_users_error() -> None:
    config = backbone_config(name="encoder", field_dropout_of={"colour": 0.5})
    with pytest.raises(UserError, match="colour: no such item field: there are a, b"):
        build_backbone(config, SHAPE)


def test_a_single_field_has_a_dropout_of_its_own() -> None:
    config = backbone_config(name="encoder", field_dropout=0.0, field_dropout_of={"b": 0.5})
    backbone = build_backbone(config, SHAPE)
    assert isinstance(backbone, Encoder)
    draws.begin(0, first_row=0)
    uniform = draws.row_uniform(1000, 2, torch.device("cpu"))
    kept = backbone._some_fields(torch.ones(1000, 2 * SHAPE.dim), uniform).view(1000, 2, SHAPE.dim)
    assert (kept[:, 0] == 1).all()
    assert (kept[:, 1] == kept[:, 1, :1]).all() and 0.4 < kept[:, 1].mean() < 0.6
