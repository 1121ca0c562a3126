"""What is frozen stays bit-equal, and the folded head is the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mwuf_kernels import has_library

from mwuf_dist.config import Config
from mwuf_dist.config.registry import method_config
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.checkpoint.save import module_state
from mwuf_dist.training.frozen_model import CompiledFrozen, Frozen
from mwuf_dist.training.implementations import frozen_model, trained_model
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.meta_train import MetaTrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.bounds import SAME_AUC, assert_float32_close
from tests.tiny import tiny

# Numbers that are added on the way to a logit: nine fields of 8, hidden layers of 16 and 8.
NUM_TERMS = 100


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run whose pretraining is done."""
    config: Config = getattr(request, "param", None) or tiny()
    with start(config) as runtime:
        (tmp_path / "run").mkdir()
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        yield job
        job.session.recorder.close()


def frozen_values(job: Run) -> dict[str, torch.Tensor]:
    """Copies of every table and weight that nothing may move after pretraining."""
    tables = job.model.pretrained_tables
    values = {f"{t.name}.{name}": shard.weight.clone() for t in tables for name in t.specs for shard in t.shards(name)}
    if job._frozen is not None:
        (shard,) = job._frozen._parts.shards("parts")
        # Behind them stand the new items' as they are scored, anew in each phase.
        values["parts"] = shard.weight[: job._frozen._num_users + job.model.num_items].clone()
    return values | {key: value.clone() for key, value in module_state("backbone", job.model.backbone).items()}


def new_rows(job: Run) -> torch.Tensor:
    return torch.cat([shard.weight for shard in job.model.new_ids.shards("new")]).clone()


def assert_same_bits(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() <= after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{name} has moved"


@pytest.mark.parametrize("job", [tiny(), tiny(backbone={"precision": "bfloat16"})], indirect=True)
def test_meta_train_and_every_warm_up_phase_leave_all_frozen_tables_and_weights_bit_unchanged(job: Run) -> None:
    before = frozen_values(job)
    first = {name: value.clone() for name, value in job.method.state_dict().items()}
    job.meta_train()
    assert_same_bits(before, frozen_values(job))
    assert any(not torch.equal(value, first[name]) for name, value in job.method.state_dict().items())
    before = frozen_values(job)  # the frozen parts too, from here on
    method = {name: value.clone() for name, value in job.method.state_dict().items()}
    stage = WarmUp(job.config, job.model, job._frozen, job.method)  # type: ignore[arg-type]
    for phase in (1, 2, 3):
        rows = new_rows(job)
        stage.run_phase(job.session, job.prepared, phase)
        moved = (new_rows(job) != rows).any(dim=1)
        assert not moved[: job.model.num_old].any(), "a row of an old item has moved in phi_new"
        assert moved[job.model.num_old :].all(), "a new item was not updated"
        stage.finish_phase(job.prepared, phase)
        assert_same_bits(before, frozen_values(job))
        assert_same_bits(method, job.method.state_dict())


def test_common_initialisation_is_the_mean_of_the_old_rows_and_users_without_rows_get_the_mean_user(job: Run) -> None:
    job.meta_train()
    model = job.model
    run_module.initialise_new_ids(job.config, model, job.method, from_row=model.num_old)
    old = torch.cat([shard.weight for shard in model.old_ids.shards("old")])
    expected = old.double().mean(0).expand(job.prepared.num_new_items, -1)
    assert_float32_close(new_rows(job)[model.num_old :], expected, num_terms=len(old), size=float(old.abs().mean()))
    table = torch.cat([shard.weight for shard in model.user_tables.shards("user_id")])
    seen = np.unique(job.prepared.columns("pretrain", ("user",))["user"]) + 1
    users = table[torch.from_numpy(seen).long()].double()
    assert_float32_close(job.model.mean_user(), users.mean(0), num_terms=len(users), size=float(users.abs().mean()))


@pytest.mark.parametrize(
    "job", [tiny(backbone={"name": name}) for name in ("fm", "wide_deep", "deepfm", "pnn", "afn")], indirect=True
)
def test_folded_head_scores_and_differentiates_like_the_backbone_itself(job: Run) -> None:
    job.meta_train()
    model, frozen = job.model, job._frozen
    assert frozen is not None and frozen._head is not None
    torch.manual_seed(1)
    user = torch.randint(0, job.prepared.num_users, (100,))
    item = torch.randint(0, job.prepared.num_items, (100,))
    v = torch.randn(100, model.dim, requires_grad=True)
    with torch.no_grad():
        context = torch.cat([model.item_fields(item), model.user_fields(user)], dim=1)
    expected = model.backbone(v, context)
    expected_gradient: Any = torch.autograd.grad(expected.sin().sum(), v)
    found = frozen.logit(v, frozen.part(user, item))
    found_gradient: Any = torch.autograd.grad(found.sin().sum(), v)
    rounding = {"num_terms": 2 * NUM_TERMS, "size": float(expected.abs().max())}  # there and back again
    assert_float32_close(found, expected, **rounding)
    assert_float32_close(found_gradient[0], expected_gradient[0], **rounding)


def test_plain_frozen_path_gives_the_same_results_as_the_folded_one(tmp_path: Path, monkeypatch: Any) -> None:
    def results(folder: Path) -> dict[str, Any]:
        with start(tiny()) as runtime:
            return run_module.run(tiny(), folder, runtime)["phases"]

    folded = results(tmp_path / "folded")
    monkeypatch.setattr("mwuf_dist.backbones.linear.LinearFirstLayer.fold", lambda self: None)
    plain = results(tmp_path / "plain")
    for phase, metrics in folded.items():
        for name, value in metrics.items():
            if isinstance(value, float):  # the AUC by clicks is a list, over a few hundred rows each
                assert plain[phase][name] == pytest.approx(value, abs=2 * SAME_AUC), (phase, name)
        assert {"auc_next", "auc_test", "logloss_test"} <= {k for k, v in metrics.items() if isinstance(v, float)}
    assert folded["warm-c"]["auc_test"] > 0.65


@pytest.mark.skipif(not has_library(), reason="no C++ compiler")
@pytest.mark.parametrize("job", [tiny(), *(tiny(backbone={"name": name}) for name in ("pnn", "afn"))], indirect=True)
def test_compiled_losses_gradients_and_served_scores_are_those_of_autograd(job: Run) -> None:
    """On a full batch and on one with padding."""
    job.meta_train()
    model, compiled = job.model, job._frozen
    assert isinstance(compiled, CompiledFrozen)
    by_autograd = Frozen(model, job.config.embedding)
    users = ItemUsers(job.prepared, ["pretrain"])
    for frozen in (compiled, by_autograd):
        frozen.set_users(users, range(model.num_items))
    (flat,) = model.new_ids.flat_parameters()

    def outcome(loss: torch.Tensor) -> list[torch.Tensor]:
        parameters = [flat.weights, *job.method.parameters()]
        found = [loss]
        for parameter in parameters:
            found.append(torch.zeros(()) if parameter.grad is None else parameter.grad.clone())
            parameter.grad = None
        return found

    full = next(iter(Loader(job.prepared, ["pretrain"], 256, 1, job.runtime).epoch(0)))
    weight = torch.arange(256).remainder(3).clamp(max=1).float()
    padded = replace(full, weight=weight, is_full=False, num_rows=int(weight.sum()))
    for batch in (full, padded):
        meta, warm = [], []
        for frozen in (compiled, by_autograd):
            meta.append(outcome(MetaTrain(job.config, model, frozen, job.method).loss_with_gradients(batch)))
            warm.append(outcome(WarmUp(job.config, model, frozen, job.method).loss_with_gradients(batch)))
        for found, expected in (meta, warm):
            assert expected[1].abs().max() > 1e-4
            # Weighted means of 256 rows, each a network there and back; a wrong term is some parts in a hundred.
            assert_float32_close(found, expected, num_terms=256 + 2 * NUM_TERMS)
    columns = job.prepared.columns("test", ("user", "item"))
    user, item = (torch.from_numpy(columns[name]).long() for name in ("user", "item"))
    scores = []
    for frozen in (compiled, by_autograd):
        WarmUp(job.config, model, frozen, job.method).finish_phase(job.prepared, 1)
        scores.append(frozen.served_logit(user, item))
    assert_float32_close(scores[0], scores[1], num_terms=NUM_TERMS)


def test_the_choice_is_made_once_and_named(job: Run) -> None:
    job.meta_train()
    way = "compiled" if has_library() else "autograd"
    lookups = dict.fromkeys(("user", "item", "old", "new"), "compiled" if has_library() else "torchrec")
    assert job.implementation() == {"trained_model": way, "frozen_model": way, "lookups": lookups}
    model, method = job.model, job.method
    model.runtime = replace(job.runtime, is_compiled=False)
    assert trained_model(model, method).implementation == "autograd"
    assert frozen_model(model, job.config.embedding).implementation == "autograd"


def test_what_the_loops_do_not_cover_is_left_to_autograd(job: Run) -> None:
    model = job.model
    model.runtime = replace(job.runtime, is_compiled=True)
    dropping = build_method(method_config(name="dropoutnet"), model.dim, 4, model.backbone)
    assert trained_model(model, dropping).implementation == "autograd"
