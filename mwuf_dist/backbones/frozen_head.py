"""The frozen form of a backbone whose first layer is linear in the field embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mwuf_kernels import FrozenRows, PairWeights
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
        linear, mlp: the backbone's; what they hold now is copied. Without a linear part its weights are 0.
        interactions: whether it has the second-order term.

    Attributes:
        num_inputs: columns of the first layer's input that a row has of its own.
    """

    def __init__(
        self, dim: int, num_item_fields: int, linear: nn.Linear | None, mlp: MLP | None, interactions: bool
    ) -> None:
        self.dim, self._num_item_fields = dim, num_item_fields
        self.interactions = interactions
        self._layers = mlp.frozen_layers() if mlp is not None else []
        if linear is not None:
            self._linear, self._linear_bias = linear.weight.detach()[0].clone(), linear.bias.detach().clone()
        else:
            weight = self._layers[0][0]
            self._linear, self._linear_bias = weight.new_zeros(weight.shape[1]), weight.new_zeros(1)
        self.hidden = len(self._layers[0][1]) if self._layers else 0
        self._item_weight = self._layers[0][0][:, :dim].t().contiguous() if self._layers else None
        self._item_linear = self._linear[:dim].contiguous()
        self.num_inputs = dim
        self._set_kept(dim if self.interactions else 0)

    def _set_kept(self, num_columns: int) -> None:
        """Lets parts hold so many columns between those of the first layer and the constant."""
        self.constant = self.hidden + num_columns
        # fbgemm wants widths that are multiples of 4.
        self.width = -(-(self.constant + 1) // 4) * 4

    def compiled(self) -> FrozenRows:
        """Makes the compiled loop that computes the same in float32."""
        return FrozenRows(self._item_weight, self._layers[1:], self._item_linear, self.interactions)

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
            x = F.relu(self._first_layer(item, part))
            for weight, bias in self._layers[1:-1]:
                x = F.relu(F.linear(x, weight, bias))
            logit = logit + x @ self._layers[-1][0][0]
        return logit

    def _first_layer(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Computes sums of the first layer [B, H]."""
        assert self._item_weight is not None
        return part[:, : self.hidden] + item @ self._item_weight

    def _add_first_layer_back(self, d_item: torch.Tensor, d: torch.Tensor, part: torch.Tensor) -> None:
        """Adds to gradients in the item [B, D] what gradients [B, H] of `_first_layer` are there."""
        assert self._item_weight is not None
        d_item.addmm_(d, self._item_weight.t())

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
            states.append(self._first_layer(item, part).relu_())
            for matrix, bias in self._layers[1:-1]:
                states.append(F.linear(states[-1], matrix, bias).relu_())
            logit += states[-1] @ self._layers[-1][0][0]
        d_logit = ((logit.sigmoid_() - label) * weight).unsqueeze(-1)
        d_item = d_logit * slope
        if self._item_weight is not None:
            d = d_logit * self._layers[-1][0][0]
            for state, (matrix, _) in zip(reversed(states[1:]), reversed(self._layers[1:-1]), strict=True):
                d = _relu_backward_(d, state) @ matrix
            self._add_first_layer_back(d_item, _relu_backward_(d, states[0]), part)
        return d_item

    def served_part(self, item: torch.Tensor, item_part: torch.Tensor) -> torch.Tensor:
        """Returns parts [n, width] of items with embeddings [n, D] that stay as they are, from `item_part` [n, width].

        The embedding is one more field. With it in the part, a logit is a sum of two parts and the layers above.
        """
        return self._part(item, 0) + item_part


class FoldedPairs(FoldedHead):
    """A frozen `Pnn` with inner products.

    Its parts hold, in place of the sum of the fields, all fields' embeddings [F, D], in the order of the first layer's
    columns: a user's are zero in the part of an item and the other way round, and so is the item embedding until
    `served_part` puts it there. Products of two fields of a user or of an item are in their parts of the first layer.
    What is left per row are those of an item field and a user field, and those of the item embedding.

    Args:
        dim, num_item_fields: see `Shape`.
        mlp: the backbone's, over fields and products; what it holds now is copied.
        num_fields: F.
    """

    def __init__(self, dim: int, num_item_fields: int, mlp: MLP, num_fields: int) -> None:
        super().__init__(dim, num_item_fields, None, mlp, interactions=False)
        self._num_fields = num_fields
        self._set_kept(num_fields * dim)
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        # The first layer's rows of the product of fields i < j; zeros for the other i and j.
        self._of_pair = self._layers[0][0].new_zeros(num_fields, num_fields, self.hidden)
        self._of_pair[first, second] = self._layers[0][0][:, num_fields * dim :].t()
        self._of_item = self._of_pair[0, 1:].contiguous()
        self._sides = 1 + num_item_fields, num_fields - 1 - num_item_fields
        self._crossed = self._of_pair[: self._sides[0], self._sides[0] :].contiguous()
        self.num_inputs = dim + len(self._of_item) + num_item_fields * self._sides[1]

    def compiled(self) -> FrozenRows:
        """See `FoldedHead.compiled`."""
        pairs = PairWeights(self._of_item, self._crossed)
        return FrozenRows(self._item_weight, self._layers[1:], self._item_linear, False, pairs)

    def _part(self, fields: torch.Tensor, first_field: int) -> torch.Tensor:
        part = super()._part(fields, first_field)
        embeddings = fields.view(len(fields), -1, self.dim)
        own = slice(first_field, first_field + embeddings.shape[1])
        self._kept(part)[:, own] = embeddings
        products = torch.bmm(embeddings, embeddings.mT).flatten(1)
        part[:, : self.hidden] += products @ self._of_pair[own, own].flatten(0, 1)
        return part

    def _kept(self, part: torch.Tensor) -> torch.Tensor:
        """Views the embeddings [n, F, D] in parts [n, width]."""
        return part[:, self.hidden : self.constant].unflatten(1, (-1, self.dim))

    def _with_others(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Computes what the products of items [n, D] with the other fields in their parts add to the first layer."""
        # Not as a product of matrices, whose bits may depend on how many there are.
        return (self._kept(part)[:, 1:] * item.unsqueeze(1)).sum(-1) @ self._of_item

    def _first_layer(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        of_items, of_users = self._kept(part).split(self._sides, dim=1)
        crossed = (of_items.unsqueeze(2) * of_users.unsqueeze(1)).sum(-1).flatten(1)
        sums = super()._first_layer(item, part) + crossed @ self._crossed.flatten(0, 1)
        return sums + self._with_others(item, part)

    def _add_first_layer_back(self, d_item: torch.Tensor, d: torch.Tensor, part: torch.Tensor) -> None:
        super()._add_first_layer_back(d_item, d, part)
        with_others = (d @ self._of_item.t()).unsqueeze(-1)
        d_item += (with_others * self._kept(part)[:, 1:]).sum(1)

    def served_part(self, item: torch.Tensor, item_part: torch.Tensor) -> torch.Tensor:
        """See `FoldedHead.served_part`."""
        part = super().served_part(item, item_part)
        part[:, : self.hidden] += self._with_others(item, item_part)
        return part


def _relu_backward_(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Returns the gradient where the ReLU let something through, in place."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
