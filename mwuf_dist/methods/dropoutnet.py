"""DropoutNet (Volkovs, Yu and Poutanen, NIPS 2017): a model that has learned to do without the item ID embedding."""

from __future__ import annotations

from typing import ClassVar

import torch

from mwuf_dist.config import MethodConfig, Share, section
from mwuf_dist.methods.interface import Method
from mwuf_dist.runtime.draws import row_uniform


@section
class DropoutNetConfig(MethodConfig):
    """Keys of `dropoutnet`."""

    item_dropout: Share = 0.5  # Fraction of the rows of pretrain whose item ID embedding is dropped.


class DropoutNet(Method):
    """DropoutNet (Volkovs, Yu and Poutanen, NIPS 2017), for items.

    In `pretrain` a row's item ID embedding is replaced by zeros with probability `method.item_dropout` (item dropout of
    their section 4.1), so that the model learns to score from content alone. A new item starts where it has none: at
    zero. Nothing is dropped anywhere else, and kept embeddings are not scaled up: it is an input that is missing, not a
    hidden unit that is averaged over.

    Deviation: it learns from the labels, end to end; the paper's model is fitted to the scores of a pretrained latent
    model, which there is none of here.
    """

    Config = DropoutNetConfig
    config: DropoutNetConfig
    initialisation = "zero"
    pretrain_keys: ClassVar[tuple[str, ...] | None] = ("name", "item_dropout")

    def __init__(self, config: DropoutNetConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.share = config.item_dropout

    def pretrain_item(self, item: torch.Tensor) -> torch.Tensor:
        """See `Method.pretrain_item`."""
        kept = row_uniform(len(item), 1, item.device) >= self.share
        return item * kept
