"""Meta-Embedding (Pan et al., SIGIR 2019): a generator of the first ID embedding from the item's own fields."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.config import MethodConfig
from mwuf_dist.methods.base import Episodes, Method, starts_with_own_rows


class MetaEmb(Method):
    """Meta-Embedding (Pan et al., SIGIR 2019).

    The generator is v = gamma tanh(W x), without a bias, over the item's field embeddings x side by side. It learns
    from old items played as new (their algorithm 1): with l_a the loss of a first minibatch of an item and
    v' = v - a dl_a/dv, it minimises alpha l_a(v) + (1 - alpha) l_b(v') with l_b the loss of a second minibatch, so that
    v is good before the first click and good to start from. The gradient goes through the step, second derivatives and
    all; the tables and the backbone are frozen.
    """

    episode_trained = True

    def __init__(self, config: MethodConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.initialisation = starts_with_own_rows(config, "metaemb")
        self.generator = nn.Linear(item_context, dim, bias=False)

    def generate(self, item_context: torch.Tensor) -> torch.Tensor:
        """Embeddings [n, D] from field embeddings [n, Fi*D]."""
        return self.config.generator_scale * torch.tanh(self.generator(item_context))

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return self.generate(item_context)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        config = self.config
        v = self.initial_rows(episodes.items, episodes.item_context)
        cold = episodes.support_loss(v)
        # Item i's loss depends on its own row of v only, so the gradient of the sum holds each item's own.
        (slope,) = torch.autograd.grad(cold.sum(), v, create_graph=True)
        warm = episodes.query_loss(v - config.inner_learning_rate * slope)
        return config.cold_weight * cold + (1 - config.cold_weight) * warm
