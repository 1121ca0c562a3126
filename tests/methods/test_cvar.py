"""CVAR's loss is its formula, and new items get what its decoder makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config.registry import method_config
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.methods.cvar import Cvar
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.batch_ids import Fetches, FrozenIds
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.episodes import EpisodeTrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.bounds import assert_float32_close
from tests.methods.test_metaemb import CONTEXT, DIM, EPISODES, ITEMS, Rows, normal
from tests.tiny import tiny

LATENT = 3
CONFIG = method_config(
    name="cvar", latent_dim=LATENT, latent_noise=0.4, reconstruction_weight=0.7, divergence_weight=0.3
)
NUM_ROWS = torch.tensor([1.0, 10.0, 100.0]).double()


def cvar() -> tuple[Cvar, torch.Tensor]:
    """(the method over three old items, their rows of phi_old)."""
    torch.manual_seed(2)
    method = Cvar(CONFIG, DIM, CONTEXT).double()
    rows = torch.randn(EPISODES, DIM).double()
    items: Any = SimpleNamespace(old_rows=lambda items: rows[items], num_pretrain_rows=lambda: NUM_ROWS)
    method.attach(items)
    return method, rows


def affine(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def moments(layer: torch.nn.Linear, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of a Gaussian."""
    out = affine(layer, x)
    return out[:LATENT], np.diag(np.exp(out[LATENT:]))


def wasserstein(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> float:
    """The squared 2-Wasserstein distance of two Gaussians, in its general form (Dowson and Landau 1982)."""
    (mean_1, cov_1), (mean_2, cov_2) = one, two
    values, vectors = np.linalg.eigh(cov_1)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_2 @ root)
    return ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2) - 2 * np.sqrt(cross).sum()


def test_loss_is_clicks_plus_reconstruction_plus_distance_between_encoder_and_prior() -> None:
    rows, (method, old) = Rows(), cvar()
    found = method.episode_loss(rows.episodes())
    noise = normal(2 * LATENT).numpy()
    frequency = (np.log([1, 10, 100]) - np.log(10)) / np.log([1, 10, 100]).std()
    for item in range(EPISODES):
        v, x = old[item].numpy(), rows.context[item].numpy()
        q, p = moments(method.encoder, v), moments(method.prior, x)
        latent_q = q[0] + 0.4 * np.sqrt(np.diag(q[1])) * noise[item, :LATENT]
        latent_p = p[0] + 0.4 * np.sqrt(np.diag(p[1])) * noise[item, LATENT:]
        again, warm = (affine(method.decoder, np.append(z, frequency[item])) for z in (latent_q, latent_p))
        made = torch.zeros(EPISODES, DIM).double()
        made[item] = torch.from_numpy(warm)
        clicks = (rows.loss(0, made)[item] + rows.loss(1, made)[item]).item() / 2
        expected = clicks + 0.7 * ((again - v) ** 2).sum() + 0.3 * wasserstein(q, p)
        assert found[item].item() == pytest.approx(expected, abs=1e-9)
    found.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.parameters())


def test_a_new_item_starts_at_the_decoded_mean_of_its_prior_as_an_item_of_typical_frequency() -> None:
    method, old = cvar()
    context = torch.randn(5, CONTEXT).double()
    found = method.initial_rows(torch.arange(5), context).detach().numpy()
    for row, x in zip(found, context.numpy(), strict=True):
        np.testing.assert_allclose(row, affine(method.decoder, np.append(moments(method.prior, x)[0], 0)))
    again = method.regenerated_rows(old, context[:3]).detach().numpy()
    for row, v in zip(again, old.numpy(), strict=True):
        np.testing.assert_allclose(row, affine(method.decoder, np.append(moments(method.encoder, v)[0], 0)))


def test_rows_of_new_items_alone_are_regenerated_after_a_warm_phase(tmp_path: Path) -> None:
    config = tiny(method={"name": "cvar", "regenerate": True}, pretrain={"epochs": 1})
    with start(config) as runtime:
        (tmp_path / "run").mkdir()
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        job.meta_train()
        assert job._frozen is not None
        stage = WarmUp(config, job.model, job._frozen, job.method)
        weight = job.model.new_ids.shards("new")[0].weight
        first = weight.clone()
        found = []
        for regenerates in (False, True):
            with torch.no_grad():
                weight.copy_(first)
            job.method.regenerates = regenerates
            stage.run_phase(job.session, job.prepared, 1)
            found.append(weight.clone())
        trained, regenerated = found
        num_old = job.model.num_old
        assert torch.equal(regenerated[:num_old], first[:num_old])
        context = job.model.item_fields(torch.arange(job.model.num_items))
        expected = job.method.regenerated_rows(trained[num_old:], context[num_old:])
        assert_float32_close(regenerated[num_old:], expected, num_terms=100)  # a row, its fields, the latent variable
        assert (regenerated[num_old:] != trained[num_old:]).any(dim=1).all()
        job.session.recorder.close()


def test_noise_is_that_of_the_global_batch_and_of_its_step() -> None:
    drawn: list[torch.Tensor] = []

    class Recorder(Cvar):
        def episode_loss(self, episodes: Any) -> torch.Tensor:
            drawn.append(episodes.normal(4))
            return drawn[-1].sum(1)

    def draws(rank: int, ranks: int, step: int) -> torch.Tensor:
        runtime = Runtime(rank, ranks, torch.device("cpu"), False)
        frozen: Any = SimpleNamespace(
            runtime=runtime,
            fetches=lambda **_: Fetches(lambda batch: FrozenIds(batch.item, batch.item, (batch.user,)), lambda _: []),
            with_inputs=lambda ids: replace(ids, inputs=(torch.zeros(len(ids.items), CONTEXT), torch.empty(0))),
            part_of=lambda ids: torch.zeros(len(ids.index), 1),
        )
        stage = EpisodeTrain(tiny(), frozen, Recorder(CONFIG, DIM, CONTEXT))
        num = tiny().meta_train.batch_size // ranks  # 16 episodes
        item, ones = torch.zeros(num, dtype=torch.int64), torch.ones(num)
        stage.loss(Batch(item, item, ones, ones, num * ranks, True, 0, step))
        return drawn[-1]

    whole = draws(0, 1, 7)
    assert len(whole) == 16 and len(whole.unique()) == whole.numel()
    assert torch.equal(whole, torch.cat([draws(0, 2, 7), draws(1, 2, 7)]))
    assert not torch.equal(whole, draws(0, 1, 8))


assert len(ITEMS) == len(NUM_ROWS)
