"""MWUF (Zhu et al., SIGIR 2021): common initialisation, meta scaling network h, meta shifting network g.

v_warm = v * h(X_item) + g(G(U(v)))        (equation 5; h is equation 3, g is equation 4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from mwuf_dist.config import MethodConfig, Width, section
from mwuf_dist.methods.align import Align, AlignConfig
from mwuf_dist.methods.content_delta import ContentDelta, ContentDeltaConfig
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems
from mwuf_dist.methods.meta_warm_up import MetaNetworks, meta_network
from mwuf_dist.methods.metaemb import MetaEmb, MetaEmbConfig
from mwuf_dist.methods.semantic_id import SemanticId, SemanticIdConfig

_FIRST_ROWS: Mapping[str, type[Method]] = {
    "align": Align,
    "content_delta": ContentDelta,
    "metaemb": MetaEmb,
    "semantic_id": SemanticId,
}


@section
class MwufConfig(AlignConfig, ContentDeltaConfig, MetaEmbConfig, SemanticIdConfig):
    """Keys of `mwuf`; those of another method are for `initialisation` = the name of it."""

    scaling: bool = True  # Use the meta scaling network h.
    shifting: bool = True  # Use the meta shifting network g.
    hidden: Width = 16  # Width of the hidden layer of h and g.
    residual: bool = True  # scale = 1 + h with h and g starting at zero; false: the paper's scale = h.


class Mwuf(MetaNetworks, Method):
    """Scales and shifts by two meta networks, two-layer perceptrons; either can be switched off.

    `residual` makes the scale 1 + h and starts the last layers of h and g at zero, so that meta training starts from
    the common initialisation itself; without it the scale is h, as in the paper. `initialisation = "metaemb"` puts
    MetaEmb's generator instead of the common initialisation (research question 4), "align", "content_delta" and
    "semantic_id" the first rows of these methods: they are trained first, then Algorithm 1 runs on rows that they
    made. Of `content_delta` there is no bound then: the scale moves a row anyway.

    Deviation: U(v) holds the users of positive rows (`data.events`) with repeats, in meta training the user of the row
    itself too; `meta_train.order` is shuffled by default, where Algorithm 1 goes by time, and `meta_train.epochs` is 1,
    where it says "while not converge" (`epochs = "auto"`); a new item stands in histories as v, not as v_warm.
    """

    Config = MwufConfig
    config: MwufConfig
    initialisation = "mean"

    def __init__(self, config: MwufConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.scaling = meta_network(item_context, config.hidden, dim, config.residual) if config.scaling else None
        self.shifting = meta_network(dim, config.hidden, dim, config.residual) if config.shifting else None
        self.residual = config.residual
        self.meta_trained = config.scaling or config.shifting
        self.start: Method | None = None
        if self.initialisation in _FIRST_ROWS:
            made_by = _FIRST_ROWS[self.initialisation]
            self.start = made_by(_keys_of(made_by, self.initialisation, config), dim, item_context)
            self.initialisation, self.episode_trained = "own", True

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        if self.start is not None:
            self.start.attach(items)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        assert self.start is not None
        return self.start.episode_loss(episodes)

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        assert self.start is not None
        return self.start.initial_rows(items, item_context)

    def scale_and_shift(
        self, item_context: torch.Tensor, user_mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `Method.scale_and_shift`."""
        return super().scale_and_shift(item_context, user_mean) if self.meta_trained else None

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """See `Method.warm_rows`."""
        return super().warm_rows(rows, item_context, user_mean) if self.meta_trained else rows


def _keys_of(method: type[Method], name: str, config: MwufConfig) -> MethodConfig:
    """Returns the part of the config that is of a method of this name."""
    own = {field.name for field in dataclasses.fields(method.Config)} - {"name", "variant", "initialisation"}
    return method.Config(name=name, **{key: getattr(config, key) for key in own})
