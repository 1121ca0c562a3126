"""What a method is, and the method `base`: none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mwuf_dist.config import MethodConfig, UserError


@dataclass(frozen=True)
class Episodes:
    """E old items played as new, each with K support rows and K query rows of its own.

    Attributes:
        item_context: the items' own field embeddings [E, Fi*D], frozen.
        support_loss: from item embeddings [E, D] to the mean L_cold [E] of each item's support rows.
        query_loss: the same for the query rows. Both can be differentiated twice.
    """

    item_context: torch.Tensor
    support_loss: Callable[[torch.Tensor], torch.Tensor]
    query_loss: Callable[[torch.Tensor], torch.Tensor]


class Method(nn.Module):
    """How rows of phi_new start, what becomes of a row before the backbone sees it, and what is learned to that end.

    A method overrides what it needs; nothing here does anything. In the order of a run:

    1. `pretrain_item` changes the item embedding of each row in `pretrain`;
    2. `episode_loss`, for a method that is `episode_trained`, trains its weights on old items played as new;
    3. `initial_rows`, for a method whose `initialisation` is "own", gives phi_new its first rows;
    4. `scale_and_shift`, for a method that is `meta_trained`, is trained by Algorithm 1 of MWUF and applied wherever a
       new item is scored;
    5. `fit`, for a method that `fits_items`, takes the place of the steps of `warm_up`.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side, Fi*D.
    """

    initialisation = "random"  # Of phi_new: "random", "mean", "zero" or "own"; the config may name another.
    episode_trained = False  # Whether `episode_loss` has weights to train.
    fits_items = False  # Whether `fit` takes the place of the steps of `warm_up`.
    meta_trained = False  # Whether `scale_and_shift` has weights to train.
    # The keys of section `method` that decide what `pretrain` computes, where `pretrain_item` does something: runs in
    # which they are equal can share one pretraining.
    pretrain_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: MethodConfig, dim: int, item_context: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        if config.initialisation != "default":
            self.initialisation = config.initialisation

    def pretrain_item(self, item: torch.Tensor) -> torch.Tensor:
        """The item embeddings [b, D] that the backbone sees in `pretrain`, from those of phi_old [b, D].

        Random numbers are a function of the step: the generator has been seeded.
        """
        return item

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """The loss [E] of each of E episodes, with gradients to the method's weights."""
        raise NotImplementedError

    def initial_rows(self, item_context: torch.Tensor) -> torch.Tensor:
        """First rows [n, D] of phi_new for items with field embeddings [n, Fi*D]."""
        raise NotImplementedError

    def scale_and_shift(
        self, item_context: torch.Tensor, user_mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scale [U, D], shift [U, D]) of items with fields [U, Fi*D] and mean users [U, D]; None: left as they are."""
        return None

    def fit(
        self, start: torch.Tensor, item: torch.Tensor, label: torch.Tensor, offset: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """Rows [m, D] of phi_new for m items, from their clicks so far and nothing else.

        Args:
            start: the items' first rows [m, D].
            item: whose click each is, from 0 to m - 1 [n].
            label: [n].
            offset: the logit of click j is offset[j] + slope[j] . v for the item's row v; [n].
            slope: [n, D].
        """
        raise NotImplementedError

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Warm embeddings [U, D] of rows [U, D] of phi_new, for millions of items at once, without gradients."""
        scale_and_shift = self.scale_and_shift(item_context, user_mean)
        if scale_and_shift is None:
            return rows
        return torch.addcmul(scale_and_shift[1], rows, scale_and_shift[0])


class Base(Method):
    """No method: a new item's row starts as a fresh draw and is updated like any other (the paper's baselines)."""


def check_initialisation(method: Method, trains_zero_item: bool) -> None:
    """Refuses first rows that the method cannot make or the backbone cannot train.

    Raises:
        UserError: naming the keys.
    """
    name, initialisation = method.config.name, method.initialisation
    if initialisation == "metaemb":
        raise UserError(
            f"method.initialisation = 'metaemb': method {name!r} has no generator of rows: it goes with mwuf, and "
            "alone it is method.name = 'metaemb'"
        )
    if initialisation == "zero" and not trains_zero_item:
        raise UserError(
            f"method {name!r} starts new items at the zero vector, where this backbone has no gradient, so they would "
            "stay there: choose another backbone, or method.initialisation = 'mean'"
        )
