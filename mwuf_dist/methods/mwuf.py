"""MWUF (Zhu et al., SIGIR 2021): common initialisation, meta scaling network h, meta shifting network g.

v_warm = v * h(X_item) + g(G(U(v)))        (equation 5; h is equation 3, g is equation 4)
"""

from __future__ import annotations

import torch
from mwuf_kernels import Network, bulk_warm, meta_networks
from torch import nn

from mwuf_dist.config import Width, section
from mwuf_dist.methods.interface import Episodes, Method
from mwuf_dist.methods.meta_warm_up import meta_network, weights_of
from mwuf_dist.methods.metaemb import MetaEmb, MetaEmbConfig


@section
class MwufConfig(MetaEmbConfig):
    """Keys of `mwuf`; those of `metaemb` are for `initialisation = "metaemb"`."""

    scaling: bool = True  # Use the meta scaling network h.
    shifting: bool = True  # Use the meta shifting network g.
    hidden: Width = 16  # Width of the hidden layer of h and g.
    residual: bool = True  # scale = 1 + h with h and g starting at zero; false: the paper's scale = h.


class Mwuf(Method):
    """Both meta networks are two-layer perceptrons; either can be switched off.

    `residual` makes the scale 1 + h and starts the last layers of h and g at zero, so that meta training starts from
    the common initialisation itself; without it the scale is h, as in the paper. `initialisation = "metaemb"` puts
    MetaEmb's generator in the place of the common initialisation (research question 4): it is trained first, then
    Algorithm 1 runs on rows that it made.

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
        self.meta_trained = config.scaling or config.shifting
        self.start = MetaEmb(config, dim, item_context) if self.initialisation == "metaemb" else None
        if self.start is not None:
            self.initialisation, self.episode_trained = "own", True

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
        if not self.meta_trained:
            return None
        h, g = _weights(self.scaling), _weights(self.shifting)
        if h is not None and g is not None:
            return meta_networks(item_context, user_mean, h, g, residual=self.config.residual)
        if self.scaling is None:
            scale = torch.ones(len(item_context), self.dim, device=item_context.device, dtype=item_context.dtype)
        else:
            scale = self.scaling(item_context)
            if self.config.residual:
                scale = 1 + scale
        shift = torch.zeros_like(scale) if self.shifting is None else self.shifting(user_mean)
        return scale, shift

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """See `Method.warm_rows`. A network that is switched off is a constant one."""
        if not self.meta_trained:
            return rows
        residual = self.config.residual
        h = _weights(self.scaling) or _constant(item_context, self.dim, 0.0 if residual else 1.0)
        g = _weights(self.shifting) or _constant(user_mean, self.dim, 0.0)
        return bulk_warm(rows, item_context, user_mean, h, g, residual=residual)


def _weights(network: nn.Sequential | None) -> Network | None:
    return None if network is None else weights_of(network)


def _constant(inputs: torch.Tensor, dim: int, value: float) -> Network:
    """A network of one hidden unit that gives `value` whatever the inputs [U, C] are."""
    zeros = inputs.new_zeros
    return zeros(1, inputs.shape[1]), zeros(1), zeros(dim, 1), inputs.new_full((dim,), value)
