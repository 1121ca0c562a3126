"""Defines what a method is: where it may act in a run, and what it must say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from mwuf_dist.backbones import Backbone
from mwuf_dist.config import MethodConfig, UserError
from mwuf_dist.methods.lines import Lines
from mwuf_dist.runtime import Runtime

if TYPE_CHECKING:
    from mwuf_dist.embeddings.features import FeatureStore


@dataclass(frozen=True)
class PretrainedItems:
    """The item side as `pretrain` has left it, frozen. Every function is a collective, without gradients.

    Attributes:
        num_old: number of old items; they come first in the item index.
        runtime: ranks and device.
        features: values of the fields of all items, whole on every rank.
        old_rows: rows of phi_old [n, D] of old items [n], equally many on each rank.
        context: field embeddings [n, Fi*D] of items [n], old or new, equally many on each rank.
        mean_old_row: the mean row of phi_old [D], of all old items (the common initialisation).
        num_pretrain_rows: number of rows in `pretrain` of each old item [num_old], float32.
    """

    num_old: int
    runtime: Runtime
    features: FeatureStore
    old_rows: Callable[[torch.Tensor], torch.Tensor]
    context: Callable[[torch.Tensor], torch.Tensor]
    mean_old_row: Callable[[], torch.Tensor]
    num_pretrain_rows: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Episodes:
    """E old items played as new, each with K support rows and K query rows of its own.

    Attributes:
        items: index of each item [E].
        item_context: the items' own field embeddings [E, Fi*D], frozen.
        support_loss: from item embeddings [E, D] to the mean L_cold [E] of each item's support rows.
        query_loss: the same for the query rows. Both can be differentiated twice.
        normal: [E, n] draws from N(0, 1) for a number n; each a function of the step and the episode's position in the
            global batch alone, so that neither ranks nor a restart change them.
    """

    items: torch.Tensor
    item_context: torch.Tensor
    support_loss: Callable[[torch.Tensor], torch.Tensor]
    query_loss: Callable[[torch.Tensor], torch.Tensor]
    normal: Callable[[int], torch.Tensor]


class Method(nn.Module):
    """How rows of phi_new start, what becomes of a row before the backbone sees it, and what is learned to that end.

    A method overrides what it needs; nothing here does anything. In the order of a run:

    1. `pretrain_item` changes the item embedding of each row in `pretrain`;
    2. `attach` shows it the pretrained items;
    3. `fit_prior`, for a method that `fits_prior`, looks at the clicks of old items as lines in their rows;
       `episode_loss`, for a method that is `episode_trained`, trains its weights on old items played as new;
    4. `initial_rows`, for a method whose `initialisation` is "own", gives phi_new its first rows;
    5. `scale_and_shift`, for a method that is `meta_trained`, is trained by Algorithm 1 of MWUF and applied wherever a
       new item is scored;
    6. `fit`, for a method that `fits_items`, replaces the steps of `warm_up`;
    7. `regenerated_rows`, for a method that `regenerates`, has the last word on the rows that a warm phase has trained.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side, Fi*D.
    """

    initialisation = "random"  # Of phi_new: "random", "mean", "zero" or "own"; the config may name another.
    episode_trained = False  # Whether `episode_loss` has weights to train.
    fits_prior = False  # Whether `fit_prior` is called.
    prior_rows = 60  # Clicks of an old item that `fit_prior` sees, at most.
    fits_items = False  # Whether `fit` replaces the steps of `warm_up`.
    has_posterior = False  # Whether `covariance` says how sure a fitted row is.
    meta_trained = False  # Whether `scale_and_shift` has weights to train.
    regenerates = False  # Whether `regenerated_rows` changes anything.
    Config: ClassVar[type[MethodConfig]] = MethodConfig  # Section `method` of a config that names this class.
    # The keys of section `method` that decide what `pretrain` computes: runs in which they are equal can share one
    # pretraining. None: every key of a class that has a `pretrain_item` of its own, none of another.
    pretrain_keys: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, config: MethodConfig, dim: int, item_context: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.initialisation = self.default_initialisation(config)
        if config.initialisation in ("default", config.name):
            return
        if self.initialisation == "own":
            raise UserError(
                f"method.initialisation = {config.initialisation!r}: method {config.name!r} is an initialisation "
                "itself: leave the key out, or take method.name = 'base'"
            )
        self.initialisation = config.initialisation

    @classmethod
    def default_initialisation(cls, config: MethodConfig) -> str:
        """Tells what "default" is for a method with this config; one with "own" rows takes no other."""
        return cls.initialisation

    def pretrain_item(self, item: torch.Tensor) -> torch.Tensor:
        """Returns the item embeddings [b, D] that the backbone sees in `pretrain`, from those of phi_old [b, D].

        A method that leaves it alone has a faster `pretrain`. Random numbers of `runtime.draws` are a function of step
        and position in the global batch. torch's generator has been seeded too, by step and rank: with it, another
        number of ranks is another run.
        """
        return item

    def attach(self, items: PretrainedItems) -> None:
        """Prepares, once, before all below, in each process that opens the run; a checkpoint is loaded after it."""

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """Returns the loss [E] of each of E episodes, with gradients to the method's weights."""
        raise NotImplementedError

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """Gives first rows [n, D] of phi_new for items [n] with field embeddings [n, Fi*D].

        Equally many on each rank.
        """
        raise NotImplementedError

    def regenerated_rows(self, rows: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """Makes new rows of the rows [n, D] of phi_new at the end of a warm phase, given fields [n, Fi*D]."""
        return rows

    def fit_prior(self, item_context: torch.Tensor, lines: Lines, label: torch.Tensor) -> None:
        """Learns, from clicks of m old items, what rows of items are like; the same on every rank.

        Args:
            item_context: field embeddings of the items [m, Fi*D].
            lines: their clicks.
            label: of these [n].
        """
        raise NotImplementedError

    def scale_and_shift(
        self, item_context: torch.Tensor, user_mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Gives (scale [U, D], shift [U, D]) of items with fields [U, Fi*D] and mean users [U, D].

        None: left as they are.
        """
        return None

    def fit(self, start: torch.Tensor, lines: Lines, label: torch.Tensor) -> torch.Tensor:
        """Returns rows [m, D] of phi_new for m items, from their clicks so far and nothing else.

        Args:
            start: the items' first rows [m, D].
            lines: their clicks.
            label: of these [n].
        """
        raise NotImplementedError

    def covariance(self, rows: torch.Tensor, lines: Lines) -> torch.Tensor:
        """Returns the posterior's covariance of fitted rows, float64 [m, D, D], for a method that `has_posterior`.

        Args:
            rows: of `fit` [m, D].
            lines: the clicks that they were fitted to.
        """
        raise NotImplementedError

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Gives warm embeddings [U, D] of rows [U, D] of phi_new, for millions of items at once, without gradients."""
        scale_and_shift = self.scale_and_shift(item_context, user_mean)
        if scale_and_shift is None:
            return rows
        return torch.addcmul(scale_and_shift[1], rows, scale_and_shift[0])


def check_initialisation(method: Method) -> None:
    """Refuses first rows that the method cannot make.

    Raises:
        UserError: naming the keys.
    """
    first_rows = method.initialisation
    if first_rows not in ("mean", "own", "random", "zero"):
        raise UserError(
            f"method.initialisation = {first_rows!r}: method {method.config.name!r} has no generator of rows: it goes "
            f"with mwuf, and alone it is method.name = {first_rows!r}"
        )


def check_backbone(method: Method, backbone: Backbone) -> None:
    """Refuses a backbone that lacks what the method needs.

    Raises:
        UserError: naming the keys.
    """
    name = method.config.name
    if method.initialisation == "zero" and not backbone.trains_zero_item:
        raise UserError(
            f"method {name!r} starts new items at the zero vector, where this backbone has no gradient, so they would "
            "stay there: choose another backbone, or method.initialisation = 'mean'"
        )
    if method.fits_items and not backbone.linear_in_item:
        raise UserError(
            f"method {name!r} fits rows to a logit that is linear in the item embedding: it goes with "
            "backbone.name = 'encoder' or 'fm'"
        )
