"""The stages keep what the config promises, and nothing that is scored leaks into its own scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config import PHASES, WARM_SETS, Config, UserError
from mwuf_dist.data.shards import Prepared
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.meta_train import MetaTrain, held_out_items
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.tiny import tiny

NEXT_SETS = (*WARM_SETS, "test")
FEW_STEPS: dict[str, Any] = {"pretrain": {"epochs": 1, "batch_size": 1024}, "meta_train": {"batch_size": 1024}}


@contextmanager
def made(config: Config, folder: Path) -> Iterator[Run]:
    """A run that has prepared its data."""
    with start(config) as runtime:
        job = Run(config, folder, runtime, run_module._prepare(config, runtime))
        yield job
        job.session.recorder.close()


def run(config: Config, folder: Path) -> dict[str, Any]:
    with start(config) as runtime:
        return run_module.run(config, folder, runtime)


def metrics_of(folder: Path, key: str) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records if key in record]


def new_rows(job: Run) -> torch.Tensor:
    return torch.cat([shard.weight for shard in job.model.new_ids.shards("new")])


# meta_train


def auto(**others: Any) -> Config:
    return tiny(pretrain=FEW_STEPS["pretrain"], meta_train={"epochs": "auto", "batch_size": 1024} | others)


def test_auto_stops_by_itself_where_the_held_out_loss_stops_falling(tmp_path: Path) -> None:
    # A rate at which the networks have learned what there is after a few of the epochs.
    results = run(auto(max_epochs=40, learning_rate_warm=0.05), tmp_path)
    losses = metrics_of(tmp_path, "held_out_loss")
    assert 2 <= len(losses) < 40
    assert results["stages"]["meta_train"]["samples"] == len(losses) * results["split"]["pretrain"]
    assert all(after < before for before, after in pairwise(losses[:-1]))
    assert losses[-1] > losses[-2] * (1 - 1e-4)


def test_auto_stops_at_max_epochs(tmp_path: Path) -> None:
    run(auto(max_epochs=2, learning_rate_warm=1e-4), tmp_path)
    assert len(metrics_of(tmp_path, "held_out_loss")) == 2


def flip_of(items: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda label, item: np.where(items[item], 1 - label, label)


def test_held_out_items_are_used_to_stop_only(tmp_path: Path) -> None:
    """A tenth of the old items: their rows of phi_new stay, and their labels change the stopping loss alone."""
    config = auto(max_epochs=1)
    outcome = []
    for flipped in (False, True):
        with pytest.MonkeyPatch.context() as patch, made(config, tmp_path / str(flipped)) as job:
            job.pretrain(None)
            held_out = held_out_items(config.seed, job.model.num_old)
            assert held_out.sum() == job.model.num_old // 10
            if flipped:
                patch_labels(patch, "pretrain", flip_of(held_out.numpy()))
            job.meta_train()
            rows, first = new_rows(job)[: job.model.num_old].clone(), job.model.old_ids.mean_row("old")
            assert torch.equal(rows[held_out], first.expand(int(held_out.sum()), -1))
            assert (rows[~held_out] != first).any(dim=1).all()
            outcome.append((rows, job.method.state_dict()))
    (rows, networks), (other_rows, other_networks) = outcome
    assert torch.equal(rows, other_rows)
    assert all(torch.equal(value, other_networks[name]) for name, value in networks.items())
    assert metrics_of(tmp_path / "False", "held_out_loss") != metrics_of(tmp_path / "True", "held_out_loss")


def test_users_per_item_changes_what_the_shifting_network_is_trained_on(tmp_path: Path) -> None:
    networks = []
    for users in (0, 3):
        config = tiny(pretrain=FEW_STEPS["pretrain"], meta_train={"users_per_item": users})
        with made(config, tmp_path / str(users)) as job:
            job.pretrain(None)
            job.meta_train()
            networks.append({name: value.clone() for name, value in job.method.state_dict().items()})
    assert not torch.equal(networks[0]["shifting.0.weight"], networks[1]["shifting.0.weight"])


def test_order_time_trains_in_time_order_and_differs_from_shuffled(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"pretrain": [], "meta_train": []}
    config = tiny(pretrain=FEW_STEPS["pretrain"] | {"order": "time"}, meta_train={"order": "time"})
    with pytest.MonkeyPatch.context() as patch, made(config, tmp_path) as job:
        for stage, owner in (("pretrain", run_module.Pretrain), ("meta_train", MetaTrain)):
            step = owner.step

            def spied(self: Any, batch: Any, *following: Any, step: Any = step, stage: str = stage) -> torch.Tensor:
                seen[stage] += batch.user[batch.weight > 0].tolist()
                return step(self, batch, *following)

            patch.setattr(owner, "step", spied)
        job.pretrain(None)
        job.meta_train()
        stored = job.prepared.columns("pretrain", ("user", "time"))
    assert (np.diff(stored["time"]) >= 0).all()
    assert seen["pretrain"] == seen["meta_train"] == stored["user"].tolist()


def test_a_batch_size_that_the_ranks_cannot_share_is_an_error_before_anything_is_done() -> None:
    stages = ("pretrain", "meta_train", "warm_up")
    two_ranks = Runtime(0, 2, torch.device("cpu"), False)
    run_module._check_batch_sizes(tiny(warm_up={"batch_size": 5}), stages, two_ranks)  # uneven shares are padded
    with pytest.raises(UserError, match=r"warm_up.batch_size = 1: .* leaves some of the 2 ranks"):
        run_module._check_batch_sizes(tiny(warm_up={"batch_size": 1}), stages, two_ranks)


# optimizers


def test_the_first_step_of_pretrain_moves_every_group_by_its_own_learning_rate(tmp_path: Path) -> None:
    """Adam's first step is rate * g / (|g| + 1e-8), so the largest step is the rate where some gradient is 1e-5."""
    config = tiny(pretrain={"learning_rate": 3e-3, "learning_rate_ids": 7e-3})
    with made(config, tmp_path) as job:
        model, stage = job.model, run_module.Pretrain(config, job.model, job.method)
        weights = {
            tables.name: tables.shards(name)[0].weight for tables in model.pretrained_tables for name in tables.specs
        }
        weights |= dict(model.backbone.named_parameters())
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        stage.step(next(iter(model.pretrain_rows(job.prepared, "shuffled", 256, 0).epoch(0))))
        for name, weight in weights.items():
            rate = 7e-3 if name == "old" else 3e-3
            assert (weight - before[name]).abs().max().item() == pytest.approx(rate, rel=2e-3), name


def test_fused_rowwise_adagrad_trains(tmp_path: Path) -> None:
    config = tiny(embedding={"optimizer": "rowwise_adagrad", "rowwise_adagrad_lr": 0.1})
    with made(config, tmp_path) as job:
        for tables in (*job.model.pretrained_tables, job.model.new_ids):
            assert set(tables.kernels.values()) == {"rowwise_adagrad"}
            assert not tables.flat_parameters()
        job.pretrain(None)
        job.meta_train()
        job.warm_up_and_evaluate()
        phases = job.session.meta.phases
    assert all(phases[phase]["auc_test"] > 0.63 for phase in PHASES)
    assert phases["warm-c"]["auc_test"] > phases["cold"]["auc_test"] + 0.02


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_every_warm_up_phase_starts_with_a_fresh_optimizer(optimizer: str, tmp_path: Path) -> None:
    config = tiny(**FEW_STEPS, embedding={"optimizer": optimizer})
    with made(config, tmp_path) as job:
        job.pretrain(None)
        job.meta_train()
        assert job._frozen is not None
        stage = WarmUp(config, job.model, job._frozen, job.method)
        first = new_rows(job).clone()
        trained = []
        for _ in range(2):
            with torch.no_grad():
                job.model.new_ids.shards("new")[0].weight.copy_(first)
            stage.run_phase(job.session, job.prepared, 1)
            trained.append(new_rows(job).clone())
    assert torch.equal(*trained)
    assert not torch.equal(trained[0], first)


@pytest.mark.parametrize("stage", ["pretrain", "meta_train", "warm_up"])
def test_a_loss_that_is_not_a_number_is_an_error_that_names_stage_and_step(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = {"pretrain": run_module.Pretrain, "meta_train": MetaTrain, "warm_up": WarmUp}[stage]
    monkeypatch.setattr(owner, "step", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(UserError, match=rf"{stage}.*: the loss is nan at step \d+: lower the stage's learning rate"):
        run(tiny(**FEW_STEPS), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


# leaks


def patch_labels(patch: pytest.MonkeyPatch, split: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Replaces the labels of a split everywhere: `change` gets labels and items, in stored order."""
    columns = Prepared.columns

    def changed(self: Prepared, name: str, names: Any) -> dict[str, np.ndarray]:
        found = columns(self, name, names)
        if name != split or "label" not in found:
            return found
        item = columns(self, name, ("item",))["item"]
        return found | {"label": change(found["label"].copy(), item).astype(found["label"].dtype)}

    patch.setattr(Prepared, "columns", changed)


def all_scores(config: Config, folder: Path, patch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """For each phase, the scores of the sets that are scored in it."""
    found: list[dict[str, np.ndarray]] = []
    score, finish_phase = WarmUp.score, WarmUp.finish_phase

    def new_phase(self: WarmUp, prepared: Prepared, phase: int) -> None:
        found.append({})
        finish_phase(self, prepared, phase)

    def spied(self: WarmUp, prepared: Prepared, split: str) -> np.ndarray | None:
        scores = score(self, prepared, split)
        assert scores is not None
        found[-1][split] = scores
        return scores

    patch.setattr(WarmUp, "finish_phase", new_phase)
    patch.setattr(WarmUp, "score", spied)
    run(config, folder)
    return found


@pytest.fixture(scope="module")
def honest_scores(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    with pytest.MonkeyPatch.context() as patch:
        return all_scores(tiny(**FEW_STEPS), tmp_path_factory.mktemp("honest") / "run", patch)


@pytest.mark.parametrize("split", NEXT_SETS)
def test_labels_of_a_set_change_no_score_of_a_phase_that_is_scored_on_it(
    split: str, honest_scores: list[dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels shuffled before anything else. A warm set tells from the phase after its own scoring on, `test` never."""
    patch_labels(monkeypatch, split, lambda label, item: np.random.default_rng(0).permutation(label))
    scores = all_scores(tiny(**FEW_STEPS), tmp_path / "run", monkeypatch)
    last_blind = NEXT_SETS.index(split)
    for phase, (found, expected) in enumerate(zip(scores, honest_scores, strict=True)):
        assert found.keys() == expected.keys() == {NEXT_SETS[phase], "test"}
        for name, values in expected.items():
            same = np.array_equal(found[name], values)
            assert same == (phase <= last_blind), (PHASES[phase], name)


def test_scores_tell_labels_apart(honest_scores: list[dict[str, np.ndarray]]) -> None:
    """The audit above would pass on constant scores."""
    config = tiny(**FEW_STEPS)
    with start(config) as runtime:
        prepared = run_module._prepare(config, runtime)
    labels = prepared.columns("test", ("label",))["label"]
    assert auc(honest_scores[-1]["test"], labels) > 0.6
