"""DCN V2 (Wang et al., WWW 2021): cross layers with a full matrix beside an MLP."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones.dcn import Dcn


class DcnV2(Dcn):
    """DCN V2 (Wang et al., WWW 2021), the parallel form.

    `backbone.cross_layers` times x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (equation 1, * elementwise), beside an MLP over
    x_0. The output layer over both is written as the sum of its two halves.
    """

    def make_crosses(self, width: int, num: int) -> None:
        """See `Dcn.make_crosses`."""
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(num))

    def crossed(self, first: torch.Tensor) -> torch.Tensor:
        """See `Dcn.crossed`."""
        x = first
        for cross in self.crosses:
            x = torch.addcmul(x, first, cross(x))
        return x
