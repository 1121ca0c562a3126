"""The backbones whose first layer is linear in the field embeddings, which have a frozen and a compiled form."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.compiled_head import TrainedHead
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.backbones.layers import MLP, second_order
from mwuf_dist.config import BackboneConfig, MlpConfig


class LinearFirstLayer(Backbone):
    """Computes logit = [linear] + [second-order interactions] + [MLP]: FM, Wide & Deep, DeepFM.

    Its first layer is linear in the field embeddings, so with everything but the item embedding frozen, the part of
    each user and of each item can be computed once: see `FoldedHead`.
    """

    uses_interactions = False
    uses_mlp = True

    def __init__(self, config: BackboneConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.num_fields * shape.dim
        self.linear = nn.Linear(width, 1)
        self.mlp = None
        if self.uses_mlp:
            assert isinstance(config, MlpConfig)
            self.mlp = MLP(width, config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        x = torch.cat([item, context], dim=1)
        logit = self.linear(x).squeeze(-1)
        if self.uses_interactions:
            logit = logit + second_order(x.view(len(x), -1, self.shape.dim))
        if self.mlp is not None:
            logit = logit + self.mlp(x, row_weight)
        return logit

    @property
    def _is_own_formula(self) -> bool:
        """Whether a row's logit is the formula above, and not what a subclass makes of it in a `forward` of its own."""
        return type(self).forward is LinearFirstLayer.forward

    def fold(self) -> FoldedHead | None:
        """See `FoldedHead`; None for a subclass with a `forward` of its own, which every stage then calls.

        None too where rows have fields of their own, which are no part of a user or an item.
        """
        if not self._is_own_formula or self.shape.num_row_fields:
            return None
        return FoldedHead(self.shape.dim, self.shape.num_item_fields, self.linear, self.mlp, self.uses_interactions)

    def trained_head(self) -> TrainedHead | None:
        """See `TrainedHead`, of which `forward` is the reference; None for a subclass with a `forward` of its own."""
        is_float32 = self.config.precision == "float32" and self.linear.weight.dtype == torch.float32
        takes_all = self._is_own_formula and not self.shape.num_row_fields
        if not takes_all or not is_float32:
            return None
        named = dict(self.named_parameters())
        return TrainedHead(self.shape.dim, self.linear, self.mlp, self.uses_interactions, 0, named)
