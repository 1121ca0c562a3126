"""The frozen form of a backbone whose first layer is linear in the field embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from mwuf_dist.backbones.base import LinearFirstLayer


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

    def weights(self) -> tuple[torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """(the item's rows of the first layer [D, H], the layers after it, the linear weight of the item [D])."""
        return self._item_weight, self._layers[1:], self._item_linear

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
        """Logits [..., B] of item embeddings [..., B, D] with summed parts [B, width].

        Differentiable once, in the item. Its backward is written by hand, without the graph and the copies of autograd;
        `logit_by_autograd` is the reference that a test holds it equal to.
        """
        out = _HeadFunction.apply(item, part, self)
        assert isinstance(out, torch.Tensor)
        return out

    def logit_by_autograd(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """The same, differentiable any number of times (MetaEmb needs two)."""
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

    def forward(self, item: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """(logits [..., B], outputs of the hidden layers [..., B, H], slope of the rest in the item [B, D] or [D])."""
        slope = self._item_linear
        logit = self.served_linear(part)
        if self.interactions:
            slope = part[:, self.hidden : self.constant] + slope
            logit = logit + torch.linalg.vecdot(item, slope)
        else:
            logit = logit + item @ slope
        states = []
        if self._item_weight is not None:
            x = (item @ self._item_weight).add_(part[:, : self.hidden]).relu_()
            states.append(x)
            for weight, bias in self._layers[1:-1]:
                x = F.linear(x, weight, bias).relu_()
                states.append(x)
            logit += x @ self._layers[-1][0][0]
        return logit, states, slope

    def served_linear(self, part: torch.Tensor) -> torch.Tensor:
        """What of a logit [B] is not of the hidden layers, from summed parts [B, width]."""
        logit = part[:, self.constant]
        if not self.interactions:
            return logit
        total = part[:, self.hidden : self.constant]
        return torch.linalg.vecdot(total, total).mul_(0.5).add_(logit)

    def served_part(self, item: torch.Tensor, item_part: torch.Tensor) -> torch.Tensor:
        """Parts [n, width] of items with embeddings [n, D] that stay as they are, from `item_part` [n, width].

        The embedding is one more field. With it in the part, a logit is a sum of two parts and the layers above.
        """
        return self._part(item, 0) + item_part

    def served_logit(self, part: torch.Tensor) -> torch.Tensor:
        """Logits [B] of sums of a user part and a `served_part` [B, width]; no gradients, and the sums are used up."""
        logit = self.served_linear(part)
        if not self._layers:
            return logit.clone()
        x = part[:, : self.hidden].relu_()
        for weight, bias in self._layers[1:-1]:
            x = F.linear(x, weight, bias).relu_()
        return torch.addmv(logit, x, self._layers[-1][0][0])

    def backward(self, gradient: torch.Tensor, states: Sequence[torch.Tensor], slope: torch.Tensor) -> torch.Tensor:
        """Gradient [..., B, D] in the item of logits with gradient [..., B]."""
        d_item = gradient.unsqueeze(-1) * slope
        if self._item_weight is not None:
            d = gradient.unsqueeze(-1) * self._layers[-1][0][0]
            for state, (weight, _) in zip(reversed(states[1:]), reversed(self._layers[1:-1]), strict=True):
                d = _relu_backward_(d, state) @ weight
            d = _relu_backward_(d, states[0])
            d_item.view(-1, self.shape.dim).addmm_(d.view(-1, self.hidden), self._item_weight.t())
        return d_item


def _relu_backward_(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The gradient where the ReLU let something through, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)


class _HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, item: torch.Tensor, part: torch.Tensor, head: FoldedHead) -> torch.Tensor:
        logit, states, slope = head.forward(item, part)
        ctx.save_for_backward(slope, *states)
        ctx.head = head
        return logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        slope, *states = ctx.saved_tensors
        return ctx.head.backward(gradient, states, slope), None, None
