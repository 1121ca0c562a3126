"""GRU4Rec (Hidasi et al., ICLR 2016): a recurrent network over the items of the user's history, under an MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mwuf_kernels import has_loop, history_gru
from torch import nn

from mwuf_dist.backbones.base import Backbone, EmbeddedHistory, Shape
from mwuf_dist.backbones.compiled_head import mlp_logit
from mwuf_dist.backbones.layers import MLP
from mwuf_dist.config import Count, MlpConfig, section


@section
class Gru4RecConfig(MlpConfig):
    """Keys of `gru4rec`."""

    history_length: Count = 20  # L: a row looks back at the last L events of its user before it.


class Gru4Rec(Backbone):
    """GRU4Rec (Hidasi et al., ICLR 2016) as a model of clicks.

    Over the item ID embeddings x_t of a history, oldest first, with h_0 = 0 (equations 1 to 4 of their section 2.1):

        h_t  = (1 - z_t) h_{t-1} + z_t h^_t
        z_t  = sigmoid(W_z x_t + U_z h_{t-1})
        h^_t = tanh(W x_t + U (r_t * h_{t-1}))
        r_t  = sigmoid(W_r x_t + U_r h_{t-1})

    `torch.nn.GRU` computes it in cuDNN's form: with biases, with r_t * (U h_{t-1} + b) instead of
    U (r_t * h_{t-1}), and with 1 - z_t called z_t. The paper ranks all items by the last state. Here, as in MWUF's
    evaluation, the last state (D wide) enters an MLP beside the item's embedding and the other fields. It is zero for a
    user without history. An event is a positive row, as theirs are clicks (`data.events`).

    Deviation: a model of clicks, not of the next item; a new item stands in a history by its row v, not by its warm
    embedding.
    """

    Config = Gru4RecConfig
    config: Gru4RecConfig
    uses_history = True

    def __init__(self, config: Gru4RecConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.history_length = config.history_length
        self.history_width = shape.dim
        self.gru = nn.GRU(shape.dim, shape.dim, batch_first=True)
        self.mlp = MLP((shape.num_fields + 1) * shape.dim, config.hidden, config.batch_norm, config.dropout)

    def encode(self, history: EmbeddedHistory, context: torch.Tensor) -> torch.Tensor:
        """See `Backbone.encode`: the last state [B, D]."""
        of_event, of_state, of_event_bias, of_state_bias = self.gru.all_weights[0]
        if has_loop(history.rows, of_state):
            gates = F.linear(history.rows, of_event, of_event_bias)
            states = history_gru(gates, of_state, of_state_bias, history.index, history.offsets)
            return states.index_select(0, history.group)
        lengths = history.lengths
        longest = max(1, int(lengths.max()))
        # Padded rather than packed: on a CPU the packed form costs more than the padding saves.
        states, _ = self.gru(history.padded(longest))  # [g, T, D]
        last = torch.arange(len(lengths), device=lengths.device) * longest + lengths.clamp(min=1) - 1
        state = states.flatten(0, 1).index_select(0, last) * (lengths > 0)[:, None]
        return state.index_select(0, history.group)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        return mlp_logit(self.mlp, [item, context], row_weight)
