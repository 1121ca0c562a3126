"""Vector fields: a learned linear map makes an embedding of what an encoder outside has said of an item."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mwuf_dist.config import Config
from mwuf_dist.runtime import generator_seed


class VectorFields(nn.Module):
    """Maps each vector field x to the embedding x W of any other field's width, so that every backbone can read it.

    The weights stand whole on every rank and are trained as the backbone's are. An item without a vector has zeros
    (the old items' mean, standardised), and so an embedding of zeros.

    Args:
        vectors: field -> [E, size].
        dim: width D.
        config: for the seed, and how large an embedding is at first.
    """

    def __init__(self, vectors: Mapping[str, torch.Tensor], dim: int, config: Config) -> None:
        super().__init__()
        self.maps = nn.ParameterList()
        generator = torch.Generator().manual_seed(generator_seed(config.seed, 7))
        for matrix in vectors.values():
            # Of numbers with mean square 1, an embedding starts like a draw of a table.
            std = config.embedding.init_std / matrix.shape[1] ** 0.5
            self.maps.append(nn.Parameter(torch.randn(matrix.shape[1], dim, generator=generator) * std))

    def forward(self, fields: torch.Tensor, vectors: Mapping[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        """Returns field embeddings [n, Fi*D] of items [n]: those of the tables, then one per vector field."""
        if not vectors:
            return fields
        maps = zip(vectors.values(), self.maps, strict=True)
        return torch.cat([fields, *(matrix.index_select(0, items) @ weight for matrix, weight in maps)], dim=1)
