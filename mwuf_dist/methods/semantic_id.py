"""Semantic IDs: codes of content, whose prefixes have rows that items of the same prefix share (Zheng et al. 2025)."""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import nn

from mwuf_dist.config import MethodConfig, NonNegative, UserError, section
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems

# Of more old items this many, evenly over the index, make the codes.
_MOST_ITEMS = 50_000
# Items whose contents are compared with all centroids at once.
_CHUNK_ITEMS = 1 << 14
_MOST_PREFIXES = 1 << 20  # Rows of the longest prefixes' table.
# Of k-means, from each of so many draws: from one, even clusters far apart are sometimes missed.
_NUM_STEPS, _NUM_DRAWS = 25, 4


@section
class SemanticIdConfig(MethodConfig):
    """Keys of `semantic_id`."""

    code_levels: Annotated[int, Ge(1), Le(8)] = 3  # Codes of an item.
    code_size: Annotated[int, Ge(2), Le(4096)] = 16  # Values of each code.
    # A prefix with so many old items starts half-way between its shorter prefix's row and what these items say.
    code_shrinkage: NonNegative = 1.0


class SemanticId(Method):
    """Rows of code prefixes (Zheng et al., arXiv 2504.02137, RecSys 2025).

    Residual k-means of the old items' field embeddings x (vectors too; each number standardised) gives an item L codes
    of K values: the nearest centroid, then that of what is left, and so on. The row of an item is the sum over its
    prefixes, their prefix-ngram:

        v = m + E_1[c_1] + E_2[c_1, c_2] + ... + E_L[c_1, ..., c_L]

    with m the mean row of phi_old. E_l starts, level by level, with what the rows of phi_old of the n old items of a
    prefix have left on average, times n / (n + `method.code_shrinkage`). A prefix that no old item has stays at zero:
    the row falls back to the shorter ones. Then m and the E_l learn from the clicks of old items played as new, all
    else frozen.

    Deviations: k-means in place of an RQ-VAE (they find the two alike); a table per length of prefix in place of one
    with hashed prefixes; codes for new items only, old ones keep rows of their own, where the paper trains the ranker
    on codes from the start.
    """

    Config = SemanticIdConfig
    config: SemanticIdConfig
    initialisation = "own"
    episode_trained = True
    centroids: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    has_codes: torch.Tensor

    def __init__(self, config: SemanticIdConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        levels, size = config.code_levels, config.code_size
        if size**levels > _MOST_PREFIXES:
            raise UserError(
                f"method.code_size = {size} and method.code_levels = {levels}: {size**levels} prefixes, each with a "
                f"row; choose smaller ones, with at most {_MOST_PREFIXES}"
            )
        self.register_buffer("centroids", torch.zeros(levels, size, item_context, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(item_context, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(item_context, dtype=torch.float64))
        self.register_buffer("has_codes", torch.zeros(()))
        self.common = nn.Parameter(torch.zeros(dim))
        self.prefixes = nn.ParameterList([torch.zeros(size ** (level + 1), dim) for level in range(levels)])

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        self._items = items

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        prefixes = self.prefixes_of(item_context).unbind(1)
        rows = [table[prefix] for table, prefix in zip(self.prefixes, prefixes, strict=True)]
        return self.common + torch.stack(rows).sum(0)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        if not self.has_codes:
            self.make_codes(self._items)
        rows = self.initial_rows(episodes.items, episodes.item_context)
        return 0.5 * (episodes.support_loss(rows) + episodes.query_loss(rows))

    def prefixes_of(self, item_context: torch.Tensor) -> torch.Tensor:
        """Gives prefixes of each length [n, L], int64, of items with fields [n, Fi*D].

        The codes as digits of one number.
        """
        return torch.cat([self._prefixes(part) for part in item_context.detach().split(_CHUNK_ITEMS)])

    def _prefixes(self, item_context: torch.Tensor) -> torch.Tensor:
        left = (item_context.double() - self.mean) / self.deviation
        prefix, found = torch.zeros(len(left), dtype=torch.int64, device=left.device), []
        for centroids in self.centroids:
            # By differences and not by a product, whose bits would depend on the other items of the call.
            code = torch.cdist(left, centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
            left = left - centroids[code]
            prefix = prefix * self.config.code_size + code
            found.append(prefix)
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def make_codes(self, known: PretrainedItems) -> None:
        """Makes the codes of the old items' fields, and the first rows of prefixes of their rows. A collective."""
        chosen = torch.arange(0, known.num_old, -(-known.num_old // _MOST_ITEMS), device=self.mean.device)
        context, rows = (
            torch.cat([look_up(part) for part in chosen.split(_CHUNK_ITEMS)]).double()
            for look_up in (known.context, known.old_rows)
        )
        mean, deviation = context.mean(0), context.std(0, correction=0)
        # A constant column says nothing, and its deviation is rounding.
        deviation = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)
        # By one rank, so that all have the same bits.
        found = known.runtime.broadcast(_residual_k_means(((context - mean) / deviation).cpu().numpy(), self.config))
        self.centroids.copy_(torch.from_numpy(found))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.has_codes.fill_(1)
        self.common.copy_(rows.mean(0))
        left, prefixes = rows - rows.mean(0), self.prefixes_of(context)
        for level, table in enumerate(self.prefixes):
            prefix = prefixes[:, level]
            num = torch.bincount(prefix, minlength=len(table))[:, None]
            total = torch.zeros(table.shape, dtype=left.dtype, device=left.device).index_add_(0, prefix, left)
            first = total / (num + self.config.code_shrinkage).clamp(min=1e-12)
            table.copy_(first)
            left = left - first[prefix]


def _residual_k_means(values: np.ndarray, config: SemanticIdConfig) -> np.ndarray:
    """Gives centroids of each level [L, K, C] of values [n, C].

    One that is left without a value lies where none is near.
    """
    from scipy.cluster.vq import kmeans2, vq  # which takes a while to import

    out = np.full((config.code_levels, config.code_size, values.shape[1]), 1e6)
    left = values
    for level in range(config.code_levels):
        num = min(config.code_size, len(np.unique(left, axis=0)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            random = np.random.default_rng(level)
            tried = [kmeans2(left, num, iter=_NUM_STEPS, minit="++", rng=random)[0] for _ in range(_NUM_DRAWS)]
        centroids = min(tried, key=lambda one: float((vq(left, one)[1] ** 2).sum()))
        code, _ = vq(left, centroids)
        used = np.unique(code)
        out[level, used] = centroids[used]
        left = left - centroids[code]
    return out
