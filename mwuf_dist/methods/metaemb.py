"""Meta-Embedding (Pan et al., SIGIR 2019): a generator of the first ID embedding from the item's own fields."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import nn

from mwuf_dist.config import MethodConfig, Positive, section
from mwuf_dist.methods.interface import Episodes, Method


@section
class MetaEmbConfig(MethodConfig):
    """Keys of `metaemb`."""

    generator_scale: Positive = 0.2  # gamma: the generator's output lies in (-gamma, gamma).
    # Learning rate of the gradient step from the first to the second half of an episode.
    inner_learning_rate: Positive = 0.1
    cold_weight: Annotated[float, Ge(0), Le(1)] = 0.1  # alpha: weight of the first half's loss.


class MetaEmb(Method):
    """Meta-Embedding (Pan et al., SIGIR 2019).

    The generator is v = gamma tanh(W x), without a bias, over the item's field embeddings x side by side. It learns
    from old items played as new (their algorithm 1): with l_a the loss of a first minibatch of an item and
    v' = v - a dl_a/dv, it minimises alpha l_a(v) + (1 - alpha) l_b(v') with l_b the loss of a second minibatch, so that
    v is good before the first click and good to start from. The gradient goes through the step, second derivatives and
    all; the tables and the backbone are frozen.
    """

    Config = MetaEmbConfig
    config: MetaEmbConfig
    initialisation = "own"
    episode_trained = True

    def __init__(self, config: MetaEmbConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.generator = nn.Linear(item_context, dim, bias=False)

    def generate(self, item_context: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [n, D] from field embeddings [n, Fi*D]."""
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
