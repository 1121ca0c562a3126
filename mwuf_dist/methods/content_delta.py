"""A content row and a bounded delta (Pembek et al., RecSys 2025): a row may leave what content says, but not go far."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import nn

from mwuf_dist.config import MethodConfig, Positive, section
from mwuf_dist.methods.interface import Episodes, Method


@section
class ContentDeltaConfig(MethodConfig):
    """Keys of `content_delta`."""

    delta_bound: Positive = 1.0  # Largest length of a delta, as a multiple of the content row's.
    delta_learning_rate: Positive = 0.1  # Learning rate of the step to the delta within an episode.
    delta_cold_weight: Annotated[float, Ge(0), Le(1)] = 0.5  # Weight of the loss of the content row alone.


class ContentDelta(Method):
    """Content row plus a bounded delta (Pembek et al., RecSys 2025, arXiv 2507.19473).

    An item's row is v = c + d with c = W x + b the content row of its fields x (vectors too) and |d| <= bound |c|. A
    new item starts at d = 0; `warm_up` moves v, and at the end of each phase what goes beyond the bound is taken back.
    W and b learn from old items played as new: with l_a the loss of a first and l_b of a second minibatch of an item,
    they minimise w l_a(c) + (1 - w) l_b(c + d), d the bounded gradient step -rate dl_a/dc.

    Deviations: in the paper every item of a sequential model has such a row, with the content embedding as it comes (a
    projection by PCA) and one bound on |d| of normalised embeddings; here the model is pretrained with free rows, the
    content row is learned for the frozen model, and the bound is relative to it.
    """

    Config = ContentDeltaConfig
    config: ContentDeltaConfig
    initialisation = "own"
    episode_trained = True
    regenerates = True

    def __init__(self, config: ContentDeltaConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.content = nn.Linear(item_context, dim)

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return self.content(item_context)

    def regenerated_rows(self, rows: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.regenerated_rows`."""
        content = self.content(item_context)
        return content + self.bounded(rows - content, content)

    def bounded(self, delta: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """Returns deltas [n, D] of content rows [n, D], shortened where they are too long."""
        most = self.config.delta_bound * content.norm(dim=1, keepdim=True)
        length = delta.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return delta * (most / length).clamp(max=1.0)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        config = self.config
        content = self.content(episodes.item_context)
        cold = episodes.support_loss(content)
        (slope,) = torch.autograd.grad(cold.sum(), content, create_graph=True)
        warm = episodes.query_loss(content + self.bounded(-config.delta_learning_rate * slope, content))
        return config.delta_cold_weight * cold + (1 - config.delta_cold_weight) * warm
