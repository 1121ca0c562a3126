"""Encoder of content and history: what a user liked before, attended to by what the item is."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MaxLen, MinLen
from mwuf_kernels import distinct_ids, history_attention, user_mean
from torch import nn

from mwuf_dist.backbones.base import Backbone, EmbeddedHistory, Shape
from mwuf_dist.backbones.layers import RowDropout
from mwuf_dist.config import BackboneConfig, Count, Share, UserError, Width, section
from mwuf_dist.runtime.draws import id_uniform, row_uniform

# Columns of a user's vector that are not learned: one constant, so that an item embedding has an intercept. Its square
# is the ratio of a coordinate's prior precision to the intercept's (chosen on old items played as new).
_INTERCEPT = 0.775


@section
class EncoderConfig(BackboneConfig):
    """Keys of `encoder`."""

    hidden: Annotated[tuple[Width, ...], MinLen(1), MaxLen(100)] = (64, 64)  # The first is the width of every layer.
    dropout: Share = 0.0  # In each of its MLPs, in pretrain only.
    heads: Width = 4  # Attention heads; they divide the width, the first of `hidden`.
    field_dropout: Share = 0.05  # Fraction of the values of each item field that are left out in pretrain.
    field_dropout_of: dict[str, Share] = dataclasses.field(default_factory=dict)  # The same for single item fields.
    # Windows of recent events: for each, the model also sees the mean of the user's last so many events before a row.
    recent: Annotated[tuple[Count, ...], MaxLen(100)] = ()
    # A recent event is more than this many seconds older than the row, so that it is of an earlier session; 0: of an
    # earlier second; -1: it only stands before the row in the file.
    recent_gap_s: Annotated[float, Ge(-1), Le(1e9)] = 3600.0


class Encoder(Backbone):
    """A click model whose cold part knows no item ID, and in which the ID is a residual in the last layer.

        logit = f(z_u, a_ui, q_i) + v_i . x_u

    * q_i = MLP(fields of the item), W wide.
    * An event of a history is h_j = ReLU(W2 ReLU(Wc c_j + We v_j + r[y_j])), from the fields c_j, the ID embedding v_j
      and the label y_j of its item (all 1 unless `data.events` is "all"). Equal pairs are encoded once per batch.
    * The user is z_u = MLP([mean_j h_j, user fields, log(1 + events) / 5]), without the user's ID. For each k of
      `backbone.recent`, the mean h_j of the last k events before the row goes in too: what the user was about.
    * a_ui: multi-head attention (Vaswani et al. 2017) of the query q_i over the h_j. The query is made of content
      alone, so an item without a click can ask.
    * f = MLP([z_u, a_ui, q_i, z_u * q_i]) + w . z_u, and x_u = [W_x ReLU(z_u) + ID embedding of the user, constant].

    With everything but v frozen the logit is linear in v, so that warming up an item is a convex problem (method
    `map`). W is `backbone.hidden[0]`. Its history is all of a user's `pretrain` rows but the row itself, later ones
    too: as much as a user ID embedding has seen. `pretrain.order = "users"` shares a history among a user's rows.
    """

    Config = EncoderConfig
    config: EncoderConfig
    uses_history = True
    uses_history_fields = True
    history_scope = "all"
    linear_in_item = True
    linear_in_user = True

    def __init__(self, config: EncoderConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        width, dim = config.hidden[0], shape.dim
        if width % config.heads or dim < 2:
            raise UserError(
                f"backbone.name = 'encoder' needs an embedding.dim of at least 2, not {dim}, and a width backbone."
                f"hidden[0] = {width} that backbone.heads = {config.heads} divides"
            )
        self.history_width = 1 + dim
        self._field_dropout = _field_dropout(config, shape)
        content = shape.num_item_fields * dim
        self.query = self._mlp(content, width)
        self.event_fields = nn.Linear(content, width)
        self.event_id = nn.Linear(dim, width, bias=False)
        self.event_label = nn.Embedding(2, width)
        self.event_out = nn.Linear(width, width)
        # Only where something depends on it, as it needs the times of events.
        self.recent_gap_s = config.recent_gap_s if config.recent else -1.0
        num_others = shape.num_row_fields + shape.num_user_fields - 1
        self.user = self._mlp((1 + len(config.recent)) * width + num_others * dim + 1, width)
        self.attention_query = nn.Linear(width, width)
        self.attention_key = nn.Linear(width, width)
        self.attention_value = nn.Linear(width, width)
        self.cold = self._mlp(4 * width, width, 1)
        self.cold_user = nn.Linear(width, 1)
        self.taste = nn.Linear(width, dim - 1)

    def _mlp(self, inputs: int, hidden: int, outputs: int = 0) -> nn.Sequential:
        dropout = RowDropout(self.config.dropout)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), dropout, nn.Linear(hidden, outputs or hidden))

    def encode(self, history: EmbeddedHistory, context: torch.Tensor) -> torch.Tensor:
        """See `Backbone.encode`: [f, x_u], [B, 1 + D]."""
        assert history.fields is not None
        dim, num_item_columns = self.shape.dim, self.shape.num_item_fields * self.shape.dim
        draws = row_uniform(len(context), self.shape.num_item_fields, context.device) if self.training else None
        query = self.query(self._some_fields(context[:, :num_item_columns], draws))  # [B, W]
        draws = id_uniform(history.ids, self.shape.num_item_fields) if self.training else None
        items = self.event_fields(self._some_fields(history.fields, draws)) + self.event_id(history.rows)  # [n, W]
        # One more, so that there is always one.
        pair, event = distinct_ids(F.pad(history.index * 2 + history.labels.long(), (0, 1)), 2 * len(items))
        event = event[:-1]  # [h]
        pairs = torch.relu(items.index_select(0, pair // 2) + self.event_label(pair % 2))
        pairs = torch.relu(self.event_out(pairs))  # [p, W]

        mean = user_mean(pairs, event, history.offsets)  # [g, W], zeros without an event
        person = context[:, num_item_columns:].unflatten(1, (-1, dim))
        num = self.shape.num_row_fields + self.shape.num_user_fields
        others = [field for field in range(num) if field != self.shape.user_id_field]
        known = torch.cat([mean, torch.log1p(history.lengths.to(mean))[:, None] / 5], dim=1)
        recent = [_recent_mean(pairs, event, history, most) for most in self.config.recent]
        known = torch.cat([known.index_select(0, history.group), *recent], dim=1)
        user = self.user(torch.cat([known, person[:, others].flatten(1)], dim=1))

        asked, keys, values = self.attention_query(query), self.attention_key(pairs), self.attention_value(pairs)
        attended = history_attention(asked, keys, values, event, history.offsets, history.group, self.config.heads)
        cold = self.cold(torch.cat([user, attended, query, user * query], dim=1)) + self.cold_user(user)
        taste = self.taste(torch.relu(user)) + person[:, self.shape.user_id_field, : dim - 1]
        return torch.cat([cold, taste, taste.new_full((len(taste), 1), _INTERCEPT)], dim=1)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        cold, taste = context[:, -self.history_width :].split([1, self.shape.dim], dim=1)
        return cold.squeeze(1) + (item * taste).sum(1)

    def _some_fields(self, fields: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Returns item fields [n, Fi*D], each left out (zero) where its draw [n, Fi] is below what the config gives it.

        Against content that memorises old items: what it knows of one of them is not to hang on a single field.
        """
        if draws is None:
            return fields
        share = torch.tensor(self._field_dropout, device=fields.device)
        kept = (draws >= share)[:, :, None]
        return (fields.unflatten(1, (-1, self.shape.dim)) * kept).flatten(1)


def _recent_mean(pairs: torch.Tensor, event: torch.Tensor, history: EmbeddedHistory, most: int) -> torch.Tensor:
    """Gives mean of the last events, `most` at most, that are earlier than each row [b, W].

    Zeros where there are none.
    """
    number = history.earlier.clamp(max=most)
    offsets = F.pad(torch.cumsum(number, 0), (1, 0))
    first = history.offsets[history.group] + history.earlier - number
    place = torch.repeat_interleave(first - offsets[:-1], number)
    place = place + torch.arange(len(place), device=place.device)
    return user_mean(pairs, event.index_select(0, place), offsets)


def _field_dropout(config: EncoderConfig, shape: Shape) -> list[float]:
    """Returns the dropout of each item field.

    Raises:
        UserError: the config names one that is not there.
    """
    for name in config.field_dropout_of:
        if name not in shape.item_fields:
            raise UserError(
                f"backbone.field_dropout_of.{name}: no such item field: there are {', '.join(shape.item_fields)}"
            )
    return [config.field_dropout_of.get(name, config.field_dropout) for name in shape.item_fields]
