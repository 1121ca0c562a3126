"""DCN V2 (Wang et al., WWW 2021): cross layers with a full matrix beside an MLP."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.layers import MLP
from mwuf_dist.config import Depth, MlpConfig, section


@section
class DcnV2Config(MlpConfig):
    """Keys of `dcn_v2`."""

    cross_layers: Depth = 3  # Number of cross layers.


class DcnV2(Backbone):
    """DCN V2 (Wang et al., WWW 2021), the parallel form.

    `backbone.cross_layers` times x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (equation 1, * elementwise), beside an MLP over
    x_0. The output layer over both is written as the sum of its two halves.
    """

    Config = DcnV2Config
    config: DcnV2Config

    def __init__(self, config: DcnV2Config, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.num_fields * shape.dim
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.out = nn.Linear(width, 1, bias=False)  # the MLP's output has the bias
        self.mlp = MLP(width, config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        first = torch.cat([item, context], dim=1)  # x_0 [B, F*D]
        x = first
        for cross in self.crosses:
            x = torch.addcmul(x, first, cross(x))
        return self.out(x).squeeze(-1) + self.mlp(first, row_weight)
