"""Graph Meta Embedding (Ouyang et al., SIGIR 2021): MetaEmb's generator and attention to old items that look alike."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.config import Count, section
from mwuf_dist.methods.interface import PretrainedItems
from mwuf_dist.methods.metaemb import MetaEmb, MetaEmbConfig

# Of the LeakyReLU, as in the authors' published code (the default of its library).
_SLOPE = 0.2


@section
class GmeConfig(MetaEmbConfig):
    """Keys of `gme`."""

    neighbours: Count = 10  # Old items that an item attends to.
    # Attend to the neighbours' ID embeddings (GME-P), generated ones (GME-G), or field embeddings (GME-A).
    graph: Literal["ids", "generated", "attributes"] = "attributes"


class Gme(MetaEmb):
    """Graph Meta Embedding (Ouyang et al., SIGIR 2021), in its three forms, as in the authors' published code.

    The graph: an item's neighbours are the `method.neighbours` old items that share most values with it, over all of
    its fields (`embeddings.neighbours`); an old item played as new is no neighbour of itself. Over the item's own h_0
    and its neighbours' h_1, ..., h_k goes graph attention with one weight matrix W and one vector a:

        c_j = softmax_j LeakyReLU(a . [W h_0, W h_j]),    u = ELU(sum_j c_j W h_j),    j = 0, ..., k

    With MetaEmb's generator g(x) = gamma tanh(W_g x) of field embeddings x, `method.graph` says what h is:

    * `ids` (GME-P): h_0 = g(x), h_j the pretrained ID embedding of neighbour j; the item's embedding is u;
    * `generated` (GME-G): h_j = g(x_j) for neighbours too; the item's embedding is u;
    * `attributes` (GME-A): h_j = x_j for neighbours too; the item's embedding is g(u).

    Trained like MetaEmb, through one gradient step. Where an item has fewer neighbours, the missing ones get no weight
    (the code pads with zero vectors and gives them some). Works on every backbone that MetaEmb works on.
    """

    Config = GmeConfig
    config: GmeConfig

    def __init__(self, config: GmeConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        width = item_context if config.graph == "attributes" else dim
        self.transform = nn.Linear(width, width, bias=False)  # W
        self.attention = nn.Linear(2 * width, 1, bias=False)  # a
        for layer in (self.transform, self.attention):
            nn.init.xavier_uniform_(layer.weight)

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        self._items = items

    @cached_property
    def _neighbours(self) -> torch.Tensor:
        """Neighbours of every item [I, k], int64, -1 where there are no more."""
        # Late, because it imports TorchRec, and who only trains without a graph need not wait for it.
        from mwuf_dist.methods.neighbours import neighbours

        found = neighbours(self._items.features, self._items.num_old, self.config.neighbours)
        return torch.from_numpy(found).to(self._items.runtime.device)

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        graph = self.config.graph
        neighbours = self._neighbours[items].long()
        # Old item 0 stands in for a missing neighbour: it gets no weight.
        distinct, inverse = self._items.runtime.distinct(neighbours.clamp(min=0).flatten())
        own = item_context if graph == "attributes" else self.generate(item_context)
        if graph == "ids":
            others = self._items.old_rows(distinct)
        else:
            others = self._items.context(distinct)
            if graph == "generated":
                others = self.generate(others)
        others = others[inverse].view(*neighbours.shape, -1)
        attended = self.attend(own, others, neighbours >= 0)
        return self.generate(attended) if graph == "attributes" else attended

    def attend(self, own: torch.Tensor, others: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Makes u [n, C] of items' own h_0 [n, C] and their neighbours' h_j [n, k, C], those `present` [n, k]."""
        hidden = self.transform(torch.cat([own[:, None], others], dim=1))  # [n, 1 + k, C]
        pairs = torch.cat([hidden[:, :1].expand_as(hidden), hidden], dim=2)
        score = F.leaky_relu(self.attention(pairs).squeeze(2), _SLOPE)
        missing = F.pad(~present, (1, 0))  # an item is always there for itself
        weight = score.masked_fill(missing, -torch.inf).softmax(dim=1)
        return F.elu((weight[:, :, None] * hidden).sum(1))
