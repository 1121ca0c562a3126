"""CSDM (Zhu, Wang and Wu, AAAI 2025), corrected: a diffusion between ID embeddings and side information."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import nn

from mwuf_dist.config import MethodConfig, NonNegative, Positive, Width, section
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems


@section
class CsdmConfig(MethodConfig):
    """Keys of `csdm`."""

    diffusion_steps: Annotated[int, Ge(2), Le(1000)] = 50  # Number of steps T of the diffusion.
    diffusion_jumps: Annotated[int, Ge(1), Le(1000)] = 5  # Steps of the reverse process, spread evenly over T.
    diffusion_beta: Annotated[float, Ge(1e-6), Le(0.5)] = 0.02  # Of the last step; the rates grow from a 200th of it.
    diffusion_hidden: Width = 64  # Width of the layers that predict the noise.
    diffusion_weight: NonNegative = 1.0  # rho: weight of the noise's error, beside the loss of the clicks.
    diffusion_noise: Positive = 0.1  # Deviation of the noise, as a multiple of that of the rows.
    regenerate_by_diffusion: bool = False  # Pass rows through the reverse process after each warm phase.


class Csdm(Method):
    """CSDM (Zhu, Wang and Wu, "Addressing Cold-Start Problem in CTR Prediction via Supervised Diffusion Modeling").

    Side information s = W x of an item's field embeddings comes into its row v step by step:

        x_t = sqrt(a_t) v + c_t s + sqrt(1 - a_t) sigma e,    e ~ N(0, 1),  a_t = prod_{r <= t} (1 - b_r),
        c_t = sum_{r <= t} sqrt(a_t b_r / a_r) / C,           C such that c_T = 1

    A network e(x_t, t) tells the noise. From x_T = s the reverse way goes, without noise, over some of the T steps:

        v_t = (x_t - c_t s - sqrt(1 - a_t) sigma e(x_t, t)) / sqrt(a_t)
        x_t' = sqrt(a_t') v_t + c_t' s + sqrt(1 - a_t') sigma e(x_t, t)

    and its end x_0 is the row of a new item. Trained on old items: BCE of the frozen model with x_0, plus rho times the
    mean of (e - e(x_t, t))^2.

    Corrected against the published code:

    * its generator is called without an argument that it asks for, so it cannot run as it stands;
    * its features hold a count of each item's rows over all data, those to be scored too: a leak, which is not here.

    Deviations: the reverse way is the deterministic one that belongs to the forward one (Song et al. 2021), so that
    with the true noise it gives v back exactly; x are the model's own frozen field embeddings; the deviations of rows
    and of noise are told apart (sigma). In the warm phases nothing but the row is trained, as with every method here; a
    row that has been trained may go to x_T and back at the end of a phase: `method.regenerate_by_diffusion`.
    """

    Config = CsdmConfig
    config: CsdmConfig
    initialisation = "own"
    episode_trained = True
    kept: torch.Tensor
    added: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: CsdmConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.regenerates = config.regenerate_by_diffusion
        steps, last = config.diffusion_steps, config.diffusion_beta
        betas = torch.linspace(last / 200, last, steps, dtype=torch.float64)
        kept = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])  # a_0 = 1, ..., a_T
        added = kept.sqrt() * torch.cat([betas.new_zeros(1), torch.cumsum((betas / kept[1:]).sqrt(), 0)])
        self.register_buffer("kept", kept.float())
        self.register_buffer("added", (added / added[-1]).float())
        self.register_buffer("scale", torch.zeros(()))  # sigma; 0: not known yet
        self.side = nn.Linear(item_context, dim)
        hidden = config.diffusion_hidden
        self.noise = nn.Sequential(nn.Linear(2 * dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        self._items = items

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        side = self.side(item_context)
        return self.reverse(side, side)

    def regenerated_rows(self, rows: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.regenerated_rows`."""
        side = self.side(item_context)
        return self.reverse(self.forward_at(rows, side, torch.zeros_like(rows), self.config.diffusion_steps), side)

    def forward_at(
        self, rows: torch.Tensor, side: torch.Tensor, noise: torch.Tensor, step: torch.Tensor | int
    ) -> torch.Tensor:
        """Returns x_t [n, D] of rows [n, D], side information [n, D] and noise [n, D] at steps [n], or one of all."""
        kept, added = self.kept[step], self.added[step]
        if isinstance(step, torch.Tensor):
            kept, added = kept[:, None], added[:, None]
        return kept.sqrt() * rows + added * side + (1 - kept).sqrt() * self.scale * noise

    def reverse(self, end: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """Returns x_0 [n, D] from x_T [n, D] and side information [n, D]."""
        total, jumps = self.config.diffusion_steps, min(self.config.diffusion_jumps, self.config.diffusion_steps)
        steps = [round(total * (jumps - index) / jumps) for index in range(jumps + 1)]
        x = end
        for step, following in itertools.pairwise(steps):
            noise = self.told(x, torch.full((len(x),), step, device=x.device))
            away = (1 - self.kept[step]).sqrt() * self.scale * noise
            rows = (x - self.added[step] * side - away) / self.kept[step].sqrt()
            x = self.forward_at(rows, side, noise, following)
        return x

    def told(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Returns e(x_t, t) [n, D] of x [n, D] at steps [n]."""
        half = torch.arange(self.dim // 2 + 1, device=x.device)
        angle = step[:, None] * torch.exp(-math.log(10_000) * half / (self.dim // 2 + 1))
        time = torch.stack([angle.cos(), angle.sin()], dim=2).flatten(1)[:, : self.dim]
        return self.noise(torch.cat([x, time.to(x.dtype)], dim=1))

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`."""
        old = self._items.old_rows(episodes.items)
        if not self.scale:
            # Of a few rows alike on every rank: their deviation decides how loud noise is.
            some = torch.arange(min(1_000, self._items.num_old), device=old.device)
            self.scale.copy_(self.config.diffusion_noise * self._items.old_rows(some).std())
        side = self.side(episodes.item_context)
        draws = episodes.normal(self.dim + 1)
        noise, uniform = draws[:, 1:], 0.5 * (1 + torch.erf(draws[:, 0] / math.sqrt(2)))
        step = 1 + (uniform * self.config.diffusion_steps).long().clamp(max=self.config.diffusion_steps - 1)
        told = self.told(self.forward_at(old, side, noise, step), step)
        made = self.reverse(side, side)
        clicks = 0.5 * (episodes.support_loss(made) + episodes.query_loss(made))
        return clicks + self.config.diffusion_weight * (told - noise).square().mean(1)
