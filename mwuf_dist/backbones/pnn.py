"""Product-based neural network (Qu et al., ICDM 2016): products of the fields beside them, under an MLP."""

from __future__ import annotations

from typing import Literal

import torch

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.compiled_head import TrainedHead
from mwuf_dist.backbones.frozen_head import FoldedPairs
from mwuf_dist.backbones.layers import MLP, PairProducts
from mwuf_dist.config import MlpConfig, section


@section
class PnnConfig(MlpConfig):
    """Keys of `pnn`."""

    product: Literal["inner", "outer", "both"] = "inner"  # Products of pairs of fields.


class Pnn(Backbone):
    """Product-based neural network (Qu et al., ICDM 2016).

    The first hidden layer is relu(W_z z + W_p p + b) over the field embeddings z and their products p, which
    is an MLP over [z, p]. `backbone.product` chooses p:

    * `inner` (IPNN): <f_i, f_j> of every pair of fields i < j, F (F - 1) / 2 of them;
    * `outer` (OPNN): f_S f_S^T with f_S the sum of the fields, D * D of them: the paper's superposition of all pairs'
      outer products, which costs one product instead of F * F;
    * `both`: one after the other (the paper's PNN*).

    Deviation: inner products are of two different fields; the paper's matrix has a diagonal too.
    """

    Config = PnnConfig
    config: PnnConfig

    def __init__(self, config: PnnConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.has_inner = config.product in ("inner", "both")
        self.has_outer = config.product in ("outer", "both")
        fields, dim = shape.num_fields, shape.dim
        self.inner = PairProducts(fields)
        width = fields * dim + self.has_inner * self.inner.num_pairs + self.has_outer * dim * dim
        self.mlp = MLP(width, config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        signals = [item, context]
        fields = torch.cat(signals, dim=1).view(len(item), -1, self.shape.dim)  # [B, F, D]
        if self.has_inner:
            signals.append(self.inner(fields))
        if self.has_outer:
            total = fields.sum(1)  # [B, D]
            signals.append((total[:, :, None] * total[:, None, :]).flatten(1))
        return self.mlp(torch.cat(signals, dim=1), row_weight)

    @property
    def _has_loops(self) -> bool:
        """Whether the loops compute its formula: inner products alone, by this class, of rows without own fields."""
        is_ours = type(self).forward is Pnn.forward and not self.has_outer
        return is_ours and not self.shape.num_row_fields

    def fold(self) -> FoldedPairs | None:
        """See `FoldedPairs`; None with outer products, fields of rows, or a `forward` of a subclass."""
        if not self._has_loops:
            return None
        return FoldedPairs(self.shape.dim, self.shape.num_item_fields, self.mlp, self.shape.num_fields)

    def trained_head(self) -> TrainedHead | None:
        """See `TrainedHead`, of which `forward` is the reference; None where `fold` gives none, or not in float32."""
        is_float32 = self.config.precision == "float32" and self.mlp.out.weight.dtype == torch.float32
        if not self._has_loops or not is_float32:
            return None
        return TrainedHead(self.shape.dim, None, self.mlp, False, self.inner.num_pairs, dict(self.named_parameters()))
