"""Deep interest network (Zhou et al., KDD 2018): the user's history pooled by its relevance to the item."""

from __future__ import annotations

import torch
from mwuf_kernels import activation_unit, has_loop
from torch import nn

from mwuf_dist.backbones.base import Backbone, EmbeddedHistory, Shape
from mwuf_dist.backbones.compiled_head import mlp_logit
from mwuf_dist.backbones.layers import MLP
from mwuf_dist.config import Count, MlpConfig, section

# Hidden units of the activation unit, as in figure 2 of the paper.
_UNITS = 36


@section
class DinConfig(MlpConfig):
    """Keys of `din`."""

    history_length: Count = 20  # L: a row looks back at the last L events of its user before it.


class Din(Backbone):
    """Deep interest network (Zhou et al., KDD 2018).

    With v_A the item's embedding and e_1, ..., e_H those of the items in the history, the user is (equation 3)

        v_U(A) = sum_j a(e_j, v_A) e_j

    The activation unit a is a feed-forward network with one hidden layer of 36 units (PReLU) over [e_j, e_j * v_A, v_A]
    whose output is the weight itself: no softmax, so that strong interests stay strong. v_U(A) enters an MLP beside the
    item's embedding and the other fields. It is zero for a user without history. An event is a positive row, as their
    behaviours are clicks (`data.events`).

    Deviation: PReLU instead of Dice, and the elementwise product instead of the outer one.
    """

    Config = DinConfig
    config: DinConfig
    uses_history = True

    def __init__(self, config: DinConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.history_length = config.history_length
        self.history_width = config.history_length * shape.dim
        self.unit = nn.Linear(3 * shape.dim, _UNITS)
        self.activation = nn.PReLU()
        self.relevance = nn.Linear(_UNITS, 1)
        self.mlp = MLP((shape.num_fields + 1) * shape.dim, config.hidden, config.batch_norm, config.dropout)

    @property
    def reads_events(self) -> bool:
        """See `Backbone`; a subclass that computes otherwise gets what it was written for."""
        own = (Din.forward, Din.encode, Din._interest)
        return (type(self).forward, type(self).encode, type(self)._interest) == own

    def encode(self, history: EmbeddedHistory, context: torch.Tensor) -> torch.Tensor:
        """See `Backbone.encode`: the embeddings of the last L items side by side [B, L*D], zeros where there are fewer.

        Everything else depends on the item.
        """
        return history.padded(self.history_length).flatten(1).index_select(0, history.group)

    def forward(
        self,
        item: torch.Tensor,
        context: torch.Tensor,
        row_weight: torch.Tensor | None = None,
        events: EmbeddedHistory | None = None,
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        if events is not None and has_loop(item, events.rows, *self.unit.parameters()):
            interest = self._by_loop(item, events.rows, events.index, events.offsets, events.group)
            return mlp_logit(self.mlp, [item, context, interest], row_weight)
        if events is not None:
            context = torch.cat([context, self.encode(events, context)], dim=1)
        fields, encoded = context.split([context.shape[1] - self.history_width, self.history_width], dim=1)
        interest = self._interest(item, encoded.reshape(len(item), -1, self.shape.dim))
        return mlp_logit(self.mlp, [item, fields, interest], row_weight)

    def _by_loop(self, item: torch.Tensor, events: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        unit, slope, out = self.unit, self.activation.weight, self.relevance
        return activation_unit(item, events, unit.weight, unit.bias, slope, out.weight, out.bias, *places)

    def _interest(self, item: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
        """Returns v_U(A) [B, D] from events [B, L, D]. Padding is a zero vector, so its weight does not matter."""
        if has_loop(item, events, *self.unit.parameters()):
            rows, length = events.shape[:2]
            places = torch.arange(rows * length), torch.arange(rows + 1) * length, torch.arange(rows)
            return self._by_loop(item, events.flatten(0, 1), *places)
        # The part of v_A in the unit is the same for every event of a row.
        of_event, of_item = self.unit.weight.split([2 * item.shape[1], item.shape[1]], dim=1)
        hidden = torch.cat([events, events * item[:, None]], dim=2) @ of_event.t()  # [B, L, 36]
        hidden = self.activation(hidden + (item @ of_item.t() + self.unit.bias)[:, None])
        return (self.relevance(hidden) * events).sum(1)
