"""Content aligned to the ID space through the frozen ranker (IDProxy, Zhang et al. 2026)."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.config import MethodConfig, NonNegative, Width, section
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems


@section
class AlignConfig(MethodConfig):
    """Keys of `align`."""

    align_hidden: Width = 64  # Width of the hidden layer of the map from content to rows.
    align_weight: NonNegative = 0.1  # Weight of the distance to an old item's own row, beside the loss.


class Align(Method):
    """A proxy of the ID embedding made of content (IDProxy, Zhang et al., arXiv 2603.01590).

    A perceptron p(x) = W2 ReLU(W1 x + b1) + b2 of an item's field embeddings x (vectors of an encoder outside among
    them) stands for the ID embedding v of a new item. Over old items it learns to be near their rows of phi_old, which
    is their coarse step, and to serve the frozen ranker, which is their fine one:

        (BCE of support rows + BCE of query rows with p(x)) / 2 + `method.align_weight` |p(x) - v|^2

    Deviations: both steps at once; the coarse one is a distance and not a contrast within a batch, as a batch's items
    are divided among ranks, and as the ranker reads the length of a row too; the encoder (theirs is a multimodal
    language model, of which the fine step reads several layers) stays outside, with one vector per field.
    """

    Config = AlignConfig
    config: AlignConfig
    initialisation = "own"
    episode_trained = True

    def __init__(self, config: AlignConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        hidden = config.align_hidden
        self.proxy = nn.Sequential(nn.Linear(item_context, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        self._items = items

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return self.proxy(item_context)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        proxy = self.proxy(episodes.item_context)
        clicks = 0.5 * (episodes.support_loss(proxy) + episodes.query_loss(proxy))
        away = (proxy - self._items.old_rows(episodes.items)).square().sum(1)
        return clicks + self.config.align_weight * away
