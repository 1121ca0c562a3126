"""CVAR (Zhao et al., SIGIR 2022): a conditional variational autoencoder of ID embeddings, given the item's fields."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from mwuf_dist.config import MethodConfig, NonNegative, Width, section
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems


@section
class CvarConfig(MethodConfig):
    """Keys of `cvar`."""

    latent_dim: Width = 16  # Width of the latent variable.
    latent_noise: NonNegative = 1e-4  # Factor of the noise of the latent variable in training.
    reconstruction_weight: NonNegative = 1.0  # Weight of the reconstruction error of old items' ID embeddings.
    divergence_weight: NonNegative = 0.2  # Weight of the distance between encoder and prior.
    regenerate: bool = False  # Pass new items' rows through the autoencoder after each warm phase.


class Cvar(Method):
    """CVAR (Zhao et al., SIGIR 2022).

    With v the ID embedding of an old item, x its field embeddings and f its frequency:

    * encoder q(z | v) = N(m_q(v), s_q(v)^2), prior p(z | x) = N(m_p(x), s_p(x)^2), diagonal; decoder d(z, f);
    * a warm embedding d(z_p, f) with z_p drawn from the prior, a reconstruction d(z_q, f) with z_q from the encoder;
    * loss = BCE of the frozen model with the warm embedding
      + `method.reconstruction_weight` * |d(z_q, f) - v|^2
      + `method.divergence_weight` * W2(q, p), the squared 2-Wasserstein distance |m_q - m_p|^2 + |s_q - s_p|^2.

    This is the loss of the authors' published code. As there, encoders, prior and decoder are affine, the deviations of
    the noise in z are multiplied by `method.latent_noise` (1 would be the textbook's autoencoder), and the weights of
    the terms are 1, 1 and 1e-4; its divergence is a sum over a batch of 2,048 rows and the other terms are means, hence
    the default .2 here. Trained on old items in episodes, with everything pretrained frozen.

    What is adapted, and why:

    * x are the model's own frozen field embeddings; the code trains new tables for them.
    * A new item gets d of the mean of z, not of a draw, so that its embedding is no matter of luck.
    * The code's frequency counts all rows of an item, for new items those to be scored too: a leak. Here f is the
      standardised logarithm of an old item's number of pretrain rows. A new item gets f = 0, an old item of typical
      frequency: a decoder that never saw a rare item is not asked what a rare item's embedding is, but what this one's
      would be if it were well known.
    * After each warm phase the code trains all of CVAR on the phase's rows and then overwrites the new items' rows with
      the decoder's. Training anything but these rows is more than any other method may do here. What is left of it is
      `method.regenerate`: they are overwritten by the frozen d(m_q(row), 0), what the row has learned as one of the
      embeddings that well-known items have. It is off by default, because on old items played as new the autoencoder
      lost more of what a row had learned than it repaired.

    Works on every backbone.
    """

    Config = CvarConfig
    config: CvarConfig
    initialisation = "own"
    episode_trained = True

    def __init__(self, config: CvarConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.regenerates = config.regenerate
        latent = config.latent_dim
        self.encoder = nn.Linear(dim, 2 * latent)  # mean | log of the variance
        self.prior = nn.Linear(item_context, 2 * latent)
        self.decoder = nn.Linear(latent + 1, dim)

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        self._items = items

    @cached_property
    def _frequency(self) -> torch.Tensor:
        """F of each old item [num_old]."""
        logs = self._items.num_pretrain_rows().log()
        return (logs - logs.mean()) / logs.std(correction=0).clamp(min=1e-6)

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return self._decode_as_well_known(_moments(self.prior(item_context))[0])

    def regenerated_rows(self, rows: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.regenerated_rows`."""
        return self._decode_as_well_known(_moments(self.encoder(rows))[0])

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        config = self.config
        v = self._items.old_rows(episodes.items)
        frequency = self._frequency[episodes.items]
        mean_q, deviation_q = _moments(self.encoder(v))
        mean_p, deviation_p = _moments(self.prior(episodes.item_context))
        noise_q, noise_p = episodes.normal(2 * config.latent_dim).chunk(2, dim=1)
        warm = self._decode(mean_p + config.latent_noise * deviation_p * noise_p, frequency)
        clicks = 0.5 * (episodes.support_loss(warm) + episodes.query_loss(warm))
        again = self._decode(mean_q + config.latent_noise * deviation_q * noise_q, frequency)
        reconstruction = (again - v).square().sum(1)
        divergence = (mean_q - mean_p).square().sum(1) + (deviation_q - deviation_p).square().sum(1)
        return clicks + config.reconstruction_weight * reconstruction + config.divergence_weight * divergence

    def _decode(self, latent: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.cat([latent, frequency[:, None]], dim=1))

    def _decode_as_well_known(self, latent: torch.Tensor) -> torch.Tensor:
        return self._decode(latent, latent.new_zeros(len(latent)))


def _moments(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (mean [n, L], standard deviation [n, L]) of what an encoder gives out [n, 2L]."""
    mean, log_variance = out.chunk(2, dim=1)
    return mean, (0.5 * log_variance).exp()
