"""MWUF as one module for a model and a loop of your own."""

from __future__ import annotations

import torch
from mwuf_kernels import Network, bulk_warm, warm_embedding
from torch import nn


class MetaWarmUp(nn.Module):
    """Warm embeddings v * (1 + h(item fields)) + g(mean user) (Zhu et al., SIGIR 2021, equations 3 to 5).

    The last layers of h and g start at zero, so that training begins with v itself. Its own parameters are all that a
    dense optimizer (or data parallelism) sees; where rows come from (a TorchRec lookup, say) is the caller's matter.

    Args:
        dim: width D of an item embedding.
        item_width: width of an item's own field embeddings side by side.
        user_width: width of a user's embedding.
        hidden: width of the hidden layer of both networks.
    """

    def __init__(self, dim: int, item_width: int, user_width: int, hidden: int = 16) -> None:
        super().__init__()
        self.scaling = meta_network(item_width, hidden, dim, starts_at_zero=True)
        self.shifting = meta_network(user_width, hidden, dim, starts_at_zero=True)

    def forward(
        self,
        rows: torch.Tensor,
        item_fields: torch.Tensor,
        user_mean: torch.Tensor,
        inverse: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cold and warm embeddings of a batch: the sum of both losses trains as algorithm 1 of the paper does.

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
        cold, warm = warm_embedding(rows, inverse, 1 + self.scaling(item_fields), self.shifting(user_mean))
        return cold, warm

    @torch.no_grad()
    def embeddings(self, rows: torch.Tensor, item_fields: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Warm embeddings [U, D] to be served, of any number of items at once."""
        return bulk_warm(
            rows, item_fields, user_mean, weights_of(self.scaling), weights_of(self.shifting), residual=True
        )


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


def weights_of(network: nn.Sequential) -> Network:
    """The weights and biases of both layers, as the fused ops take them."""
    first, last = network[0], network[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first.weight, first.bias, last.weight, last.bias
