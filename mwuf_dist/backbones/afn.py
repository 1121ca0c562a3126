"""Adaptive factorization network (Cheng et al., AAAI 2020): products of learned powers of the fields, under an MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mwuf_kernels import FrozenRows, LogNeurons, PowerWeights, has_loop, log_neurons
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.compiled_head import mlp_logit, rank_sums, trained_norm
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.backbones.layers import MLP, GlobalBatchNorm
from mwuf_dist.config import MlpConfig, Width, section

# |e| is not taken to be smaller than this, so that its logarithm and the gradient 1 / |e| stay finite.
_SMALLEST = 1e-4


@section
class AfnConfig(MlpConfig):
    """Keys of `afn`."""

    log_neurons: Width = 32  # Number of logarithmic neurons.


class FoldedPowers(FoldedHead):
    """A frozen `Afn`, with its norms in the weights behind them.

    A part is [the logarithms of all fields, F*D | a constant]: those of users' fields are zero in the part of an item
    and the other way round, and so is the item embedding's until `served_part` puts it there.

    Args:
        shape: of the backbone.
        powers: weight [L, F] and bias [L] of the logarithms.
        layers: (weight, bias) of each layer over the powers, output last.
    """

    def __init__(
        self, shape: Shape, powers: tuple[torch.Tensor, torch.Tensor], layers: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self.dim, self._num_item_fields = shape.dim, shape.num_item_fields
        self._powers, self._layers = powers, layers
        self.num_inputs = layers[0][0].shape[1]
        self.hidden = 0
        self._set_kept(shape.num_fields * shape.dim)

    def compiled(self) -> FrozenRows:
        """See `FoldedHead.compiled`."""
        (first, bias), *others = self._layers
        powers = PowerWeights(*self._powers, bias, _SMALLEST)
        return FrozenRows(first.t(), others, first.new_zeros(self.dim), False, powers=powers)

    def item_part(self, fields: torch.Tensor) -> torch.Tensor:
        """See `FoldedHead.item_part`."""
        part = self._part(fields, 1)
        part[:, self.constant] = self._layers[-1][1]
        return part

    def _part(self, fields: torch.Tensor, first_field: int) -> torch.Tensor:
        part = fields.new_zeros(len(fields), self.width)
        part[:, first_field * self.dim :][:, : fields.shape[1]] = _logarithms(fields)
        return part

    def logit(self, item: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """See `FoldedHead.logit`."""
        weight, bias = self._powers
        others = part[:, self.dim : self.constant].unflatten(1, (-1, self.dim)).mT  # [B, D, F - 1]
        sums = torch.addcmul(F.linear(others, weight[:, 1:], bias), _logarithms(item).unsqueeze(-1), weight[:, 0])
        x = sums.exp().flatten(1)
        for matrix, offset in self._layers[:-1]:
            x = F.relu(F.linear(x, matrix, offset))
        return part[:, self.constant] + x @ self._layers[-1][0][0]

    def gradient(
        self, item: torch.Tensor, part: torch.Tensor, label: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """See `FoldedHead.gradient`."""
        with torch.enable_grad():
            leaf = item.detach().requires_grad_()
            loss = F.binary_cross_entropy_with_logits(self.logit(leaf, part), label, weight, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]


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
        # What the first two add scales a neuron's products, and the norm behind takes it away again, as that of the MLP
        # does with what the third adds: they would only collect rounding noise, other noise on other numbers of ranks.
        for bias in (self.log_norm.bias, self.powers.bias, *([self.exp_norm.bias] if config.batch_norm else [])):
            bias.requires_grad_(False)
        self.mlp = MLP(config.log_neurons * shape.dim, config.hidden, config.batch_norm, config.dropout)

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`."""
        return mlp_logit(self.mlp, [self._powers(item, context, row_weight)], row_weight)

    def _powers(self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None) -> torch.Tensor:
        """Returns the neurons of the D columns side by side [B, D*L]."""
        weights = [*self.log_norm.parameters(), *self.powers.parameters(), *self.exp_norm.parameters()]
        if self.training and has_loop(item, context, *weights):
            norms = trained_norm(self.log_norm), trained_norm(self.exp_norm)
            how = LogNeurons(*norms, _SMALLEST, rank_sums())
            return log_neurons(item, context, self.powers.weight, self.powers.bias, how, row_weight)
        dim = self.shape.dim
        fields = torch.cat([item, context], dim=1).view(len(item), -1, dim)
        logs = _logarithms(fields).transpose(1, 2).reshape(len(item) * dim, -1)  # [B*D, F]
        weight = None if row_weight is None else row_weight.repeat_interleave(dim)
        products = self.powers(self.log_norm(logs, weight)).exp()  # [B*D, L]
        return self.exp_norm(products, weight).view(len(item), -1)

    @torch.no_grad()
    def fold(self) -> FoldedPowers | None:
        """See `FoldedPowers`; None with fields of rows, or a `forward` of a subclass."""
        if type(self).forward is not Afn.forward or self.shape.num_row_fields:
            return None
        scale, offset = self.log_norm.affine()
        powers = self.powers.weight * scale, self.powers.bias + self.powers.weight @ offset
        layers = self.mlp.frozen_layers()
        first, bias = layers[0]
        scale, offset = (one.repeat(self.shape.dim) for one in self.exp_norm.affine())
        return FoldedPowers(self.shape, powers, [(first * scale, bias + first @ offset), *layers[1:]])


def _logarithms(x: torch.Tensor) -> torch.Tensor:
    return x.abs().clamp(min=_SMALLEST).log()
