"""Encoder of content and history: what a user liked before, attended to by what the item is."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MaxLen, MinLen
from mwuf_kernels import distinct_ids
from torch import nn

from mwuf_dist.backbones.base import Backbone, EmbeddedHistory, Shape
from mwuf_dist.backbones.layers import RowDropout
from mwuf_dist.config import BackboneConfig, Count, Share, UserError, Width, section
from mwuf_dist.runtime.draws import id_uniform, row_uniform

# Columns of a user's vector that are not learned: one constant, so that an item embedding has an intercept. Its square
# is the ratio of a coordinate's prior precision to the intercept's (chosen on old items played as new).
_INTERCEPT = 0.775
# Padded events of one attention call: histories are sorted by length and cut into pieces of about this size.
_CELLS = 1 << 16
# Where rows times distinct events are at most so many times the events of all histories, each row attends to all the
# distinct ones with a bias: a product for a cell takes about 1/24 of the time of the gathers for an event.
_DENSE = 16


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

        cells = None
        if 0 < len(query) * len(pairs) <= _DENSE * len(event):
            cells = _cells(event, history, pairs)
        if cells is None:
            mean = F.embedding_bag(event, pairs, history.offsets[:-1], mode="mean")  # [g, W], zeros without an event
        else:
            mean = (cells[0] / history.lengths.clamp(min=1)[:, None]).to(pairs.dtype) @ pairs
        person = context[:, num_item_columns:].unflatten(1, (-1, dim))
        num = self.shape.num_row_fields + self.shape.num_user_fields
        others = [field for field in range(num) if field != self.shape.user_id_field]
        known = torch.cat([mean, torch.log1p(history.lengths.to(mean))[:, None] / 5], dim=1)
        recent = [_recent_mean(pairs, event, history, most) for most in self.config.recent]
        known = torch.cat([known.index_select(0, history.group), *recent], dim=1)
        user = self.user(torch.cat([known, person[:, others].flatten(1)], dim=1))

        asked = self.attention_query(query)
        if cells is None:
            attended = self._attend(asked, pairs, event, history)
        else:
            attended = self._attend_to_all(asked, pairs, cells[1].index_select(0, history.group))
            attended = attended * (history.lengths[history.group] > 0)[:, None]
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

    def _attend_to_all(self, query: torch.Tensor, pairs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Attends with each row's query [B, W] to all distinct events, with a bias for each [B, p]."""
        q, k, v = (
            rows.unflatten(1, (self.config.heads, -1)).transpose(0, 1)[None]
            for rows in (query, self.attention_key(pairs), self.attention_value(pairs))
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))[0].transpose(0, 1).flatten(1)

    def _attend(
        self, query: torch.Tensor, pairs: torch.Tensor, event: torch.Tensor, history: EmbeddedHistory
    ) -> torch.Tensor:
        """Attends with each row's query [B, W] to the events of its history [B, W]; zeros where there are none."""
        keys, values = self.attention_key(pairs), self.attention_value(pairs)  # [p, W]
        lengths = history.lengths
        num_rows = torch.bincount(history.group, minlength=len(lengths))
        by_group = torch.argsort(history.group, stable=True)
        first_row = torch.cumsum(num_rows, 0) - num_rows
        found, rows = [], []
        for groups in _pieces(lengths, num_rows):
            place, is_event = _padded(history.offsets[groups], lengths[groups])  # [g, L]
            of_event = event[place.clamp(max=max(0, len(event) - 1))] if len(event) else place * 0
            of_row, is_row = _padded(first_row[groups], num_rows[groups])  # [g, T]
            of_row = by_group[of_row.clamp(max=len(by_group) - 1)]
            split = (len(groups), -1, self.config.heads, query.shape[1] // self.config.heads)
            q, k, v = (
                table[index].view(split).transpose(1, 2)
                for table, index in ((query, of_row), (keys, of_event), (values, of_event))
            )
            # A history without events attends to padding, and what it finds is taken away.
            has_events = is_event.any(1)
            mask = (is_event | ~has_events[:, None])[:, None, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # [g, T, W]
            found.append((out * has_events[:, None, None])[is_row])
            rows.append(of_row[is_row])
        place = torch.argsort(torch.cat(rows))
        return torch.cat(found).index_select(0, place)


def _cells(event: torch.Tensor, history: EmbeddedHistory, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how often each distinct event is in each history, and the bias of its attention, both [g, p].

    An event that is there twice weighs twice: exp(score + log(2)). A history without events attends to all. Both are
    float32 at least, as bfloat16 counts no further than 256.
    """
    shape = len(history.lengths), len(pairs)
    first = torch.arange(shape[0], device=event.device) * shape[1]
    cell = torch.repeat_interleave(first, history.lengths) + event  # [h]
    dtype = torch.promote_types(pairs.dtype, torch.float32)
    counts = torch.zeros(shape[0] * shape[1], dtype=dtype, device=pairs.device)
    counts.index_add_(0, cell, counts.new_ones(1).expand(len(cell)))
    # Logarithms of events alone: that of 0 is slow.
    bias = torch.full_like(counts, -torch.inf).scatter_(0, cell, counts[cell].log().to(dtype)).view(shape)
    return counts.view(shape), bias.index_fill_(0, (history.lengths == 0).nonzero().squeeze(1), 0.0)


def _recent_mean(pairs: torch.Tensor, event: torch.Tensor, history: EmbeddedHistory, most: int) -> torch.Tensor:
    """Gives mean of the last events, `most` at most, that are earlier than each row [b, W].

    Zeros where there are none.
    """
    number = history.earlier.clamp(max=most)
    offsets = F.pad(torch.cumsum(number, 0), (1, 0))
    first = history.offsets[history.group] + history.earlier - number
    place = torch.repeat_interleave(first - offsets[:-1], number)
    place = place + torch.arange(len(place), device=place.device)
    return F.embedding_bag(event[place], pairs, offsets[:-1], mode="mean")


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


def _pieces(lengths: torch.Tensor, num_rows: torch.Tensor) -> list[torch.Tensor]:
    """Sorts histories with a row by length and cuts them so that a padded piece is about `_CELLS` large."""
    order = torch.argsort(lengths, stable=True)
    order = order[num_rows[order] > 0]
    # Longest last: the padded size of a piece is its number of histories times its last length.
    sizes = torch.maximum(lengths[order], num_rows[order]).clamp(min=1)
    piece = torch.cumsum(sizes, 0) // _CELLS
    return [groups for groups in order.split(torch.bincount(piece).tolist()) if len(groups)]


def _padded(first: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns positions first[j], first[j] + 1, ... [g, longest], and which of them are within lengths[j]."""
    step = torch.arange(max(1, int(lengths.max())), device=first.device)
    return first[:, None] + step, step < lengths[:, None]
