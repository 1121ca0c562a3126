"""DLRM (Naumov et al. 2019, arXiv 1906.00091): products of pairs of embeddings and of what an MLP makes of numbers."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import MaxLen
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.compiled_head import mlp_logit
from mwuf_dist.backbones.layers import MLP, PairProducts, linear
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

    def __init__(self, config: DlrmConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        # The fields of the context in runs: whether they are numeric, and how many follow each other. Splitting into
        # runs takes no copy, and its backward one; picking fields by index a copy, and a scatter into zeros.
        kinds = [index in shape.numeric_fields for index in range(shape.num_fields - 1)]
        self.runs = [(is_numeric, len(list(run))) for is_numeric, run in groupby(kinds)]
        num_numeric = sum(kinds)
        widths = [num_numeric * shape.dim, *config.bottom, shape.dim] if num_numeric else []
        self.bottom = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        num_rows = shape.num_fields - num_numeric + bool(widths)
        self.products = PairProducts(num_rows)
        self.mlp = MLP(
            shape.dim * bool(widths) + self.products.num_pairs, config.hidden, config.batch_norm, config.dropout
        )

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        parts = context.view(len(item), -1, self.shape.dim).split([length for _, length in self.runs], dim=1)
        numeric, others = (
            [part for (is_numeric, _), part in zip(self.runs, parts, strict=True) if is_numeric is kind]
            for kind in (True, False)
        )
        others = [item[:, None], *others]  # [B, ., D] each
        signals: list[torch.Tensor] = []
        if numeric:
            dense = torch.cat(numeric, dim=1).flatten(1)
            for layer in self.bottom:
                dense = F.relu(linear(dense, layer))  # [B, D] at the end
            others.insert(0, dense[:, None])
            signals.append(dense)
        signals.append(self.products(torch.cat(others, dim=1)))
        return mlp_logit(self.mlp, signals, row_weight)
