"""MWUF's networks and losses, for the method `mwuf` and, as `MetaWarmUp`, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mwuf_kernels import Network, bulk_warm, meta_networks, warm_embedding
from torch import nn


class MetaNetworks:
    """Makes a scale h(item fields) and a shift g(mean user), and warm embeddings v * scale + shift (equations 3 to 5).

    A part of a module, which sets what stands here. A network that is None is a constant one: of 1, or of 0 for g.
    """

    dim: int
    scaling: nn.Sequential | None
    shifting: nn.Sequential | None
    residual: bool  # scale = 1 + h

    def scale_and_shift(
        self, item_context: torch.Tensor, user_mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Makes (scale [U, D], shift [U, D]) of items with fields [U, Fi*D] and mean users [U, D]."""
        return meta_networks(item_context, user_mean, *self._networks(item_context, user_mean), residual=self.residual)

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Makes warm embeddings [U, D] of rows [U, D], for millions of items at once."""
        networks = self._networks(item_context, user_mean)
        return bulk_warm(rows, item_context, user_mean, *networks, residual=self.residual)

    def _networks(self, item_context: torch.Tensor, user_mean: torch.Tensor) -> tuple[Network, Network]:
        one = 0.0 if self.residual else 1.0
        h = _constant(item_context, self.dim, one) if self.scaling is None else _weights_of(self.scaling)
        g = _constant(user_mean, self.dim, 0.0) if self.shifting is None else _weights_of(self.shifting)
        return h, g


class MetaWarmUp(MetaNetworks, nn.Module):
    """MWUF as one module for a model and a loop of your own (Zhu et al., SIGIR 2021, equations 3 to 5).

    Warm embeddings are v * (1 + h(item fields)) + g(mean user). The last layers of h and g start at zero, so that
    training begins with v itself. Its own parameters are all that a dense optimizer (or data parallelism) sees; where
    rows come from (a TorchRec lookup, say) is the caller's matter.

    Args:
        dim: width D of an item embedding.
        item_width: width of an item's own field embeddings side by side.
        user_width: width of a user's embedding.
        hidden: width of the hidden layer of both networks.
    """

    scaling: nn.Sequential
    shifting: nn.Sequential
    residual = True

    def __init__(self, dim: int, item_width: int, user_width: int, hidden: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.scaling = meta_network(item_width, hidden, dim, starts_at_zero=True)
        self.shifting = meta_network(user_width, hidden, dim, starts_at_zero=True)

    def forward(
        self,
        rows: torch.Tensor,
        item_fields: torch.Tensor,
        user_mean: torch.Tensor,
        inverse: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes cold and warm embeddings of a batch: the sum of both losses trains as algorithm 1 of the paper does.

        The gradient of what is made of the first reaches `rows`, that of the second h and g only.

        Args:
            rows: of the new-ID table, of the distinct items [U, D].
            item_fields: of these items [U, item_width].
            user_mean: mean embedding of the users of each [U, user_width].
            inverse: the item of each row of the batch [B], in 0 to U - 1; None: one row per item, in order.

        Returns:
            Two tensors [B, D].
        """
        if inverse is None:
            inverse = torch.arange(len(rows), device=rows.device)
        scale_and_shift = self.scale_and_shift(item_fields, user_mean)
        assert scale_and_shift is not None
        return warm_embedding(rows, inverse, *scale_and_shift)

    @torch.no_grad()
    def embeddings(self, rows: torch.Tensor, item_fields: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Makes warm embeddings [U, D] to be served, of any number of items at once."""
        return self.warm_rows(rows, item_fields, user_mean)


def algorithm_1_losses(
    pair: tuple[torch.Tensor, torch.Tensor], loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Computes (L_cold, L_warm) [2] of cold and warm embeddings, both [B, D], by `warm_embedding`.

    The warm ones are made of v.detach(), so one backward of the sum makes both updates of Algorithm 1: L_cold has a
    gradient in the rows of phi_new, L_warm in the networks alone.
    """
    return torch.stack([loss_of(embeddings) for embeddings in pair])


def meta_network(width: int, hidden: int, dim: int, starts_at_zero: bool) -> nn.Sequential:
    """Makes a scaling or shifting network: a perceptron of two layers from `width` inputs to `dim` outputs.

    Args:
        width: number of inputs.
        hidden: width of its hidden layer.
        dim: number of outputs.
        starts_at_zero: its last layer gives zeros until it has learned something.
    """
    network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))
    if starts_at_zero:
        last = network[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return network


def _weights_of(network: nn.Sequential) -> Network:
    """Returns the weights and biases of both layers, as the fused ops take them."""
    first, last = network[0], network[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first.weight, first.bias, last.weight, last.bias


def _constant(inputs: torch.Tensor, dim: int, value: float) -> Network:
    """Returns a network of one hidden unit that gives `value` whatever the inputs [U, C] are."""
    zeros = inputs.new_zeros
    return zeros(1, inputs.shape[1]), zeros(1), zeros(dim, 1), inputs.new_full((dim,), value)
