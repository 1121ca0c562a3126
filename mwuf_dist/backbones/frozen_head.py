"""The frozen form of a backbone whose first layer is linear in the field embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.backbones.layers import MLP


class FoldedHead:
    """A frozen `LinearFirstLayer` as a small head over (item embedding, user part + item part).

    The part of a user or an item is [its part of the first layer, H | the sum of its field embeddings, D (only with
    interactions) | a constant]; parts of the two sides add up. What is left per row is one D x H product and the
    layers above. With S the sum of all other fields' embeddings and v the item's, the second-order term is
    |S|^2 / 2 + S.v - (sum of the fields' |e|^2) / 2; the last goes into the constants.

    Args:
        dim, num_item_fields: see `Shape`.
        linear, mlp: the backbone's; what they hold now is copied.
        interactions: whether it has the second-order term.
    """

    def __init__(self, dim: int, num_item_fields: int, linear: nn.Linear, mlp: MLP | None, interactions: bool) -> None:
        self.dim, self._num_item_fields = dim, num_item_fields
        self.interactions = interactions
        self._linear = linear.weight.detach()[0].clone()
        self._linear_bias = linear.bias.detach().clone()
        self._layers = mlp.frozen_layers() if mlp is not None else []
        self.hidden = len(self._layers[0][1]) if self._layers else 0
        self._item_weight = self._layers[0][0][:, :dim].t().contiguous() if self._layers else None
        self._item_linear = self._linear[:dim].contiguous()
        self.constant = self.hidden + (dim if self.interactions else 0)
        # fbgemm wants widths that are multiples of 4.
        self.width = -(-(self.constant + 1) // 4) * 4

    def weights(self) -> tuple[torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Gives (the item's rows of the first layer [D, H], the layers after it, the linear weight of the item [D])."""
        return self._item_weight, self._layers[1:], self._item_linear

    def user_part(self, fields: torch.Tensor) -> torch.Tensor:
        """Returns parts [n, width] of users with field embeddings [n, Fu*D]."""
        return self._part(fields, 1 + self._num_item_fields)

    def item_part(self, fields: torch.Tensor) -> torch.Tensor:
        """Gives parts [n, width] of items with field embeddings [n, Fi*D] (without the ID); the biases are in these."""
        part = self._part(fields, 1)
        if self._layers:
            part[:, : self.hidden] += self._layers[0][1]
            part[:, self.constant] += self._layers[-1][1]
        part[:, self.constant] += self._linear_bias
        return part

    def _part(self, fields: torch.Tensor, first_field: int) -> torch.Tensor:
        dim = self.dim
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
        """Computes logits [B] of item embeddings [B, D] with summed parts [B, width].

        Differentiable in the item any number of times (MetaEmb needs two).
        """
        logit = part[:, self.constant] + item @ self._item_linear
        if self.interactions:
            total = part[:, self.hidden : self.constant]
            logit = logit + (total * (0.5 * total + item)).sum(1)
        if self._item_weight is not None:
            x = F.relu(part[:, : self.hidden] + item @ self._item_weight)
            for weight, bias in self._layers[1:-1]:
                x = F.relu(F.linear(x, weight, bias))
            logit = logit + x @ self._layers[-1][0][0]
        return logit

    @torch.no_grad()
    def gradient(
        self, item: torch.Tensor, part: torch.Tensor, label: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Computes the gradient [B, D] of weighted cross entropies in item embeddings [B, D], with parts [B, width].

        For the steps of the daily job, of few rows each: autograd takes 1.4 to 4 times as long (16 to 2,000 rows).
        """
        logit, slope = part[:, self.constant], self._item_linear
        if self.interactions:
            total = part[:, self.hidden : self.constant]
            logit = torch.linalg.vecdot(total, total).mul_(0.5).add_(logit)
            slope = total + slope
            logit = logit + torch.linalg.vecdot(item, slope)
        else:
            logit = logit + item @ slope
        states = []
        if self._item_weight is not None:
            states.append((item @ self._item_weight).add_(part[:, : self.hidden]).relu_())
            for matrix, bias in self._layers[1:-1]:
                states.append(F.linear(states[-1], matrix, bias).relu_())
            logit += states[-1] @ self._layers[-1][0][0]
        d_logit = ((logit.sigmoid_() - label) * weight).unsqueeze(-1)
        d_item = d_logit * slope
        if self._item_weight is not None:
            d = d_logit * self._layers[-1][0][0]
            for state, (matrix, _) in zip(reversed(states[1:]), reversed(self._layers[1:-1]), strict=True):
                d = _relu_backward_(d, state) @ matrix
            d_item.addmm_(_relu_backward_(d, states[0]), self._item_weight.t())
        return d_item

    def served_part(self, item: torch.Tensor, item_part: torch.Tensor) -> torch.Tensor:
        """Returns parts [n, width] of items with embeddings [n, D] that stay as they are, from `item_part` [n, width].

        The embedding is one more field. With it in the part, a logit is a sum of two parts and the layers above.
        """
        return self._part(item, 0) + item_part


def _relu_backward_(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Returns the gradient where the ReLU let something through, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
