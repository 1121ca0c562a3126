"""Deep & Cross (Wang et al., ADKDD 2017): cross layers of rank one beside an MLP."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.compiled_head import mlp_logit
from mwuf_dist.backbones.layers import MLP
from mwuf_dist.config import Depth, MlpConfig, section


@section
class DcnConfig(MlpConfig):
    """Keys of `dcn` and `dcn_v2`."""

    cross_layers: Depth = 3  # Number of cross layers.


class Dcn(Backbone):
    """Deep & Cross (Wang et al., ADKDD 2017).

    `backbone.cross_layers` times x_{l+1} = x_0 (x_l . w_l) + b_l + x_l, beside an MLP over x_0. The output layer over
    both is written as the sum of its two halves.
    """

    Config = DcnConfig
    config: DcnConfig

    def __init__(self, config: DcnConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.num_fields * shape.dim
        self.make_crosses(width, config.cross_layers)
        self.out = nn.Linear(width, 1, bias=False)  # the MLP's output has the bias
        self.mlp = MLP(width, config.hidden, config.batch_norm, config.dropout)

    def make_crosses(self, width: int, num: int) -> None:
        """Makes the parameters of so many cross layers over x_0, F*D wide."""
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(width) / width**0.5) for _ in range(num))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(num))

    def crossed(self, first: torch.Tensor) -> torch.Tensor:
        """Returns what the cross layers make of x_0 [B, F*D]."""
        x = first
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = first * (x @ weight)[:, None] + bias + x
        return x

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        first = torch.cat([item, context], dim=1)  # x_0 [B, F*D]
        return self.out(self.crossed(first)).squeeze(-1) + mlp_logit(self.mlp, [first], row_weight)
