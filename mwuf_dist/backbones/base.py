"""What a backbone is, and the frozen form that most of them have.

A backbone maps the item's ID embedding and the other fields' embeddings to a logit. It does not know where the item
embedding comes from: that is the method's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.backbones.layers import MLP, second_order
from mwuf_dist.config import BackboneConfig


@dataclass(frozen=True)
class Shape:
    """What a backbone is built for: embedding width, and how many item and user fields stand beside the item ID."""

    dim: int
    num_item_fields: int
    num_user_fields: int

    @property
    def num_fields(self) -> int:
        """Fields of a row, the item ID included."""
        return 1 + self.num_item_fields + self.num_user_fields


class Backbone(nn.Module):
    """Any `torch.nn.Module` with this forward is a backbone.

    Args:
        config: section `backbone`.
        shape: the fields.
    """

    def __init__(self, config: BackboneConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B].

        Args:
            item: item ID embedding [B, D].
            context: the other fields' embeddings side by side [B, F*D]: item fields, then user fields.
            row_weight: [B], 0 on padding; None when there is none. Only moments over the batch need it.
        """
        raise NotImplementedError

    def fold(self) -> FoldedHead | None:
        """The frozen form with one precomputed part per user and per item, where the backbone has one."""
        return None


class LinearFirstLayer(Backbone):
    """logit = [linear] + [second-order interactions] + [MLP]: FM, Wide & Deep, DeepFM.

    Its first layer is linear in the field embeddings, so with everything but the item embedding frozen, the part of
    each user and of each item can be computed once: see `FoldedHead`.
    """

    uses_interactions = False
    uses_mlp = True

    def __init__(self, config: BackboneConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.num_fields * shape.dim
        self.linear = nn.Linear(width, 1)
        self.mlp = MLP(width, config.hidden, config.batch_norm, config.dropout) if self.uses_mlp else None

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

    def fold(self) -> FoldedHead:
        """See `FoldedHead`."""
        return FoldedHead(self)


class FoldedHead:
    """A frozen `LinearFirstLayer` as a small head over (item embedding, user part + item part).

    The part of a user or an item is [its share of the first layer, H | the sum of its field embeddings, D (only with
    interactions) | a constant]; parts of the two sides add up. What is left per row is one D x H product and the
    layers above. With S the sum of all other fields' embeddings and v the item's, the second-order term is
    |S|^2 / 2 + S.v - (sum of the fields' |e|^2) / 2; the last goes into the constants.
    """

    def __init__(self, backbone: LinearFirstLayer) -> None:
        self.shape = backbone.shape
        self.interactions = backbone.uses_interactions
        dim = self.shape.dim
        self._linear = backbone.linear.weight.detach()[0].clone()
        self._linear_bias = backbone.linear.bias.detach().clone()
        self._layers = backbone.mlp.frozen_layers() if backbone.mlp is not None else []
        self.hidden = len(self._layers[0][1]) if self._layers else 0
        self._item_weight = self._layers[0][0][:, :dim].t().contiguous() if self._layers else None
        self._item_linear = self._linear[:dim].contiguous()
        self.constant = self.hidden + (dim if self.interactions else 0)
        # fbgemm wants widths that are multiples of 4.
        self.width = -(-(self.constant + 1) // 4) * 4

    def user_part(self, fields: torch.Tensor) -> torch.Tensor:
        """Parts [n, width] of users with field embeddings [n, Fu*D]."""
        return self._part(fields, 1 + self.shape.num_item_fields)

    def item_part(self, fields: torch.Tensor) -> torch.Tensor:
        """Parts [n, width] of items with field embeddings [n, Fi*D] (without the ID); the biases are in these."""
        part = self._part(fields, 1)
        if self._layers:
            part[:, : self.hidden] += self._layers[0][1]
            part[:, self.constant] += self._layers[-1][1]
        part[:, self.constant] += self._linear_bias
        return part

    def _part(self, fields: torch.Tensor, first_field: int) -> torch.Tensor:
        dim = self.shape.dim
        columns = slice(first_field * dim, first_field * dim + fields.shape[1])
        part = fields.new_zeros(len(fields), self.width)
        if self._layers:
            part[:, : self.hidden] = fields @ self._layers[0][0][:, columns].t()
        part[:, self.constant] = fields @ self._linear[columns]
        if self.interactions:
            part[:, self.hidden : self.hidden + dim] = fields.view(len(fields), -1, dim).sum(1)
            part[:, self.constant] -= 0.5 * fields.square().sum(1)
        return part

    def logit(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Logits [...] of item embeddings [..., D] with summed parts [..., width]; differentiable in the item."""
        logit = part[..., self.constant] + item @ self._item_linear
        if self.interactions:
            total = part[..., self.hidden : self.constant]
            logit = logit + (total * (0.5 * total + item)).sum(-1)
        if self._item_weight is not None:
            x = F.relu(part[..., : self.hidden] + item @ self._item_weight)
            for weight, bias in self._layers[1:-1]:
                x = F.relu(F.linear(x, weight, bias))
            logit = logit + x @ self._layers[-1][0][0]
        return logit
