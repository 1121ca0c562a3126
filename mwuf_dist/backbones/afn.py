"""Adaptive factorization network (Cheng et al., AAAI 2020): products of learned powers of the fields, under an MLP."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.layers import MLP, GlobalBatchNorm
from mwuf_dist.config import MlpConfig, Width, section

# |e| is not taken to be smaller than this, so that its logarithm and the gradient 1 / |e| stay finite.
_SMALLEST = 1e-4


@section
class AfnConfig(MlpConfig):
    """Keys of `afn`."""

    log_neurons: Width = 32  # Number of logarithmic neurons.


class Afn(Backbone):
    """Adaptive factorization network (Cheng et al., AAAI 2020).

    The j-th logarithmic neuron is y_j = exp(sum_i w_ij ln |e_i|) = prod_i |e_i|^w_ij, elementwise over the D columns of
    the F fields (the paper's logarithmic transformation layer): a cross feature of learned order. As there, embeddings
    enter as absolute values with zero replaced, BatchNorm stands after the logarithm and after the exponential, and an
    MLP follows. `backbone.log_neurons` is the number of neurons: the paper takes 600 to 1,500, which a GPU is for; each
    costs D more inputs of the MLP.
    """

    Config = AfnConfig
    config: AfnConfig
    trains_zero_item = False  # |v| has no slope at 0: a row that starts at zero would stay there

    def __init__(self, config: AfnConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.log_norm = GlobalBatchNorm(shape.num_fields)
        self.powers = nn.Linear(shape.num_fields, config.log_neurons)
        # Small powers: the first products are near 1 and the exponential cannot overflow.
        nn.init.normal_(self.powers.weight, std=0.1)
        nn.init.zeros_(self.powers.bias)
        self.exp_norm = GlobalBatchNorm(config.log_neurons)
        self.mlp = MLP(config.log_neurons * shape.dim, config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        dim = self.shape.dim
        fields = torch.cat([item, context], dim=1).view(len(item), -1, dim)
        logs = fields.abs().clamp(min=_SMALLEST).log().transpose(1, 2).reshape(len(item) * dim, -1)  # [B*D, F]
        weight = None if row_weight is None else row_weight.repeat_interleave(dim)
        products = self.powers(self.log_norm(logs, weight)).exp()  # [B*D, L]
        return self.mlp(self.exp_norm(products, weight).view(len(item), -1), row_weight)
