"""All that comes after pretraining, worked out anew in float64 by plain torch, gives the AUCs of a run.

The reference shares the pretrained tables, f_theta and the order of batches with the product, and nothing else: no
frozen parts, no fused op, no optimizer, no U(v). So a method that does nothing, a wrong rate or a swapped phase shows,
which no floor under an AUC would see; each is played below.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from mwuf_dist.config import PHASES, WARM_SETS
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.schema import USER_ID
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from tests.tiny import tiny

CONFIG = tiny(pretrain={"epochs": 2}, meta_train={"epochs": 2})
SCORED = (*WARM_SETS, "test")


@dataclass
class Wrong:
    """One thing that a program may get wrong."""

    networks: bool = True  # what h and g give is used
    after_cold: bool = True  # also after the cold phase
    users_swapped: bool = False  # U(v) made of items
    cold_rate: float = 1.0
    warm_rate: float = 1.0
    warm_up_rate: float = 1.0
    phases: tuple[int, ...] = (0, 1, 2)  # the warm set that each phase learns from
    fresh_optimizer: bool = True


WRONG = {
    "networks do nothing": Wrong(networks=False),
    "networks are used in the cold phase only": Wrong(after_cold=False),
    "users and items swapped in U(v)": Wrong(users_swapped=True),
    "rate of phi_new in meta_train": Wrong(cold_rate=2.0),
    "rate of the networks in meta_train": Wrong(warm_rate=2.0),
    "rate of warm_up": Wrong(warm_up_rate=2.0),
    "phases swapped": Wrong(phases=(1, 0, 2)),
    "moments kept between phases": Wrong(fresh_optimizer=False),
}


class Reference:
    """Algorithm 1 with two losses and two backwards, then the phases."""

    def __init__(self, job: Run) -> None:
        model, self.job, self.num_old = job.model, job, job.model.num_old
        with torch.no_grad():
            self.users = model.user_fields(torch.arange(job.prepared.num_users)).double()
            self.items = model.item_fields(torch.arange(model.num_items)).double()
            self.old = model.old_ids.rows(torch.arange(self.num_old)).double()
        first = model.users.names.index(USER_ID) * model.dim
        self.user_ids = self.users[:, first : first + model.dim]
        self.ranker = copy.deepcopy(model.backbone).double().eval().requires_grad_(False)
        self.first_networks = copy.deepcopy(job.method).double()
        self.networks = self.first_networks

    def loss(self, v: torch.Tensor, user: torch.Tensor, item: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(self.logit(v, user, item), label)

    def logit(self, v: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.ranker(v, torch.cat([self.items[item], self.users[user]], dim=1))

    def mean_users(self, splits: tuple[str, ...], swapped: bool) -> torch.Tensor:
        """G(U(v)) of every item: of the users of positive rows; the mean of all users where there is none."""
        total = torch.zeros(len(self.items), self.user_ids.shape[1], dtype=torch.float64)
        count = torch.zeros(len(self.items), dtype=torch.float64)
        for split in splits:
            rows = self.job.prepared.columns(split, ("user", "item", "label"))
            liked = rows["label"] > 0
            user, item = (torch.from_numpy(rows[name][liked]).long() for name in ("user", "item"))
            if swapped:
                user, item = item % len(self.user_ids), user % len(self.items)
            total.index_add_(0, item, self.user_ids[user])
            count.index_add_(0, item, torch.ones(len(item), dtype=torch.float64))
        return torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], self.mean_user())

    def mean_user(self) -> torch.Tensor:
        return self.user_ids.mean(0)

    def warm(self, v: torch.Tensor, item: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        scaling, shifting = self.networks.scaling, self.networks.shifting
        assert isinstance(scaling, nn.Module) and isinstance(shifting, nn.Module)
        return v * (1 + scaling(self.items[item])) + shifting(means[item])

    def batches(self, splits: list[str], batch_size: int, seed: int, epochs: int) -> Iterator[tuple[torch.Tensor, ...]]:
        loader = Loader(self.job.prepared, splits, batch_size, seed, self.job.runtime)
        for epoch in range(epochs):
            for batch in loader.epoch(epoch):
                used = batch.weight > 0
                yield batch.user[used], batch.item[used], batch.label[used].double()

    def run(self, wrong: Wrong) -> list[dict[str, tuple[float, float]]]:
        """For each phase, AUC and log loss of the sets that are scored in it."""
        config, seed = self.job.config, self.job.config.seed
        self.networks = copy.deepcopy(self.first_networks)
        phi = nn.Parameter(self.old.mean(0).repeat(len(self.items), 1))
        meta, means = config.meta_train, self.mean_users(("pretrain",), wrong.users_swapped)
        assert isinstance(meta.epochs, int)
        cold = torch.optim.Adam([phi], meta.learning_rate_cold * wrong.cold_rate)
        warm = torch.optim.Adam(self.networks.parameters(), meta.learning_rate_warm * wrong.warm_rate)
        for user, item, label in self.batches(["pretrain"], meta.batch_size, seed, meta.epochs):
            v = phi[item]
            v_warm = self.warm(v.detach(), item, means)
            for optimizer, embedding in ((cold, v), (warm, v_warm)):
                optimizer.zero_grad()
                self.loss(embedding, user, item, label).backward()
                optimizer.step()
        found, settings = [], config.warm_up
        optimizer = torch.optim.Adam([phi], settings.learning_rate * wrong.warm_up_rate)
        for phase in range(len(PHASES)):
            if phase:
                if wrong.fresh_optimizer:
                    optimizer = torch.optim.Adam([phi], settings.learning_rate * wrong.warm_up_rate)
                learned = [WARM_SETS[wrong.phases[phase - 1]]]
                order = seed * len(WARM_SETS) + phase
                for user, item, label in self.batches(learned, settings.batch_size, order, settings.epochs):
                    optimizer.zero_grad()
                    self.loss(phi[item], user, item, label).backward()
                    optimizer.step()
            means = self.mean_users(WARM_SETS[:phase], wrong.users_swapped)
            uses_networks = wrong.networks and (wrong.after_cold or phase == 0)
            found.append({name: self.metrics(phi, split, means, uses_networks) for name, split in self.sets(phase)})
        return found

    def sets(self, phase: int) -> list[tuple[str, str]]:
        return [("next", SCORED[phase]), ("test", "test")]

    @torch.no_grad()
    def metrics(self, phi: torch.Tensor, split: str, means: torch.Tensor, uses_networks: bool) -> tuple[float, float]:
        rows = self.job.prepared.columns(split, ("user", "item", "label"))
        user, item = (torch.from_numpy(rows[name].astype(np.int64)) for name in ("user", "item"))
        v = self.warm(phi[item], item, means) if uses_networks else phi[item]
        logit = self.logit(v, user, item).numpy()
        return float(roc_auc_score(rows["label"], logit)), float(log_loss(rows["label"], 1 / (1 + np.exp(-logit))))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reference, list[dict[str, Any]]]]:
    """The reference as it stands before meta_train, and what the run has found."""
    folder: Path = tmp_path_factory.mktemp("protocol") / "run"
    with start(CONFIG) as runtime:
        job = Run(CONFIG, folder, runtime, run_module._prepare(CONFIG, runtime))
        job.pretrain(None)
        reference = Reference(job)
        job.meta_train()
        job.warm_up_and_evaluate()
        job.session.recorder.close()
        yield reference, [job.session.meta.phases[phase] for phase in PHASES]


def differences(found: list[dict[str, Any]], expected: list[dict[str, tuple[float, float]]]) -> list[float]:
    """How far AUCs and log losses are apart."""
    return [
        abs(phase[f"{kind}_{name}"] - value)
        for phase, values in zip(found, expected, strict=True)
        for name, pair in values.items()
        for kind, value in zip(("auc", "logloss"), pair, strict=True)
        if f"{kind}_{name}" in phase
    ]


# Rounding of float32 over some hundred steps of Adam: a pair of rows in another order is 1e-6 of AUC, and a fault is
# a hundred times that.
ROUNDING = 1e-5


def test_a_run_finds_what_the_protocol_in_float64_finds(made: tuple[Reference, list[dict[str, Any]]]) -> None:
    reference, found = made
    apart = differences(found, reference.run(Wrong()))
    assert len(apart) >= 3 * len(PHASES) and max(apart) < ROUNDING, apart


@pytest.mark.parametrize("name", WRONG)
def test_a_program_that_gets_one_thing_wrong_finds_something_else(
    name: str, made: tuple[Reference, list[dict[str, Any]]]
) -> None:
    reference, found = made
    assert max(differences(found, reference.run(WRONG[name]))) > 100 * ROUNDING
