"""DLRM (Naumov et al. 2019, arXiv 1906.00091): products of pairs of embeddings and of what an MLP makes of numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import MaxLen
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.layers import MLP
from mwuf_dist.config import MlpConfig, Width, section


@section
class DlrmConfig(MlpConfig):
    """Keys of `dlrm`; `hidden` is the top MLP."""

    # Widths of the hidden layers of the bottom MLP, which reads the numeric fields.
    bottom: Annotated[tuple[Width, ...], MaxLen(100)] = (64,)


class Dlrm(Backbone):
    """Deep learning recommendation model (Naumov et al. 2019, arXiv 1906.00091).

    z_0 = BottomMLP(numeric fields) has the width D of an embedding, with a ReLU behind every layer; z_1 ... z_n are the
    embeddings of the other fields, the item's ID first. The logit is TopMLP([z_0, <z_i, z_j> of every pair i < j]).
    Without numeric fields there is no z_0.

    Deviation: the bottom MLP reads the numeric fields as every backbone reads them, a row of a table per quantile
    bucket or a vector times a learned matrix, and not the numbers themselves.
    """

    Config = DlrmConfig
    config: DlrmConfig
    pairs: torch.Tensor
    numeric: torch.Tensor
    others: torch.Tensor

    def __init__(self, config: DlrmConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        is_numeric = torch.zeros(shape.num_fields, dtype=torch.bool)
        is_numeric[1 + torch.tensor(shape.numeric_fields, dtype=torch.int64)] = True
        self.register_buffer("numeric", is_numeric.nonzero().view(-1), persistent=False)
        self.register_buffer("others", (~is_numeric).nonzero().view(-1), persistent=False)
        widths = [len(self.numeric) * shape.dim, *config.bottom, shape.dim] if len(self.numeric) else []
        self.bottom = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        num_rows = len(self.others) + bool(widths)
        # Positions of the pairs i < j in a flattened [n, n] matrix.
        first, second = torch.triu_indices(num_rows, num_rows, offset=1)
        self.register_buffer("pairs", first * num_rows + second, persistent=False)
        self.mlp = MLP(shape.dim * bool(widths) + len(self.pairs), config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        fields = torch.cat([item, context], dim=1).view(len(item), -1, self.shape.dim)  # [B, F, D]
        signals: list[torch.Tensor] = []
        if len(self.numeric):
            dense = fields.index_select(1, self.numeric).flatten(1)
            for linear in self.bottom:
                dense = F.relu(linear(dense))  # [B, D] at the end
            fields = torch.cat([dense[:, None], fields.index_select(1, self.others)], dim=1)
            signals.append(dense)
        products = torch.bmm(fields, fields.transpose(1, 2)).flatten(1)  # [B, n*n]
        signals.append(products.index_select(1, self.pairs))
        return self.mlp(torch.cat(signals, dim=1), row_weight)
