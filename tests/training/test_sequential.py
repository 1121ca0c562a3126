"""Histories in the stages: which rows stand for their items, what is frozen of them, and what they may not see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.backbones import BACKBONES, EmbeddedHistory
from mwuf_dist.backbones.gru4rec import Gru4Rec
from mwuf_dist.config import Config, build, fitting, merge
from mwuf_dist.data.batches.histories import History
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.checkpoint.save import SavePolicy
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.bounds import SAME_AUC, SAME_TABLES, assert_float32_close
from tests.tiny import TINY
from tests.training import test_ranks, test_resume

KEYS = {"hidden": [8], "history_length": 6, "batch_norm": False, "dropout": 0.2}
NAMES = [name for name, cls in BACKBONES.items() if cls.uses_history and cls.history_scope == "before"]
FEW_STEPS: dict[str, Any] = {
    "pretrain": {"epochs": 1, "batch_size": 1024},
    "meta_train": {"batch_size": 1024},
    "warm_up": {"epochs": 1, "batch_size": 512},
}


def config_of(name: str, **sections: Any) -> Config:
    return build(merge(merge(TINY, FEW_STEPS), {"backbone": {"name": name, "history_length": 6}} | sections))


@pytest.fixture(params=NAMES)
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run whose pretraining is done."""
    config = config_of(request.param)
    with start(config) as runtime:
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        yield job
        job.session.recorder.close()


def weights(job: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """(phi_old with the unknown item's row behind, phi_new)."""
    return tuple(t.shards(t.name)[0].weight for t in (job.model.old_ids, job.model.new_ids))  # type: ignore[return-value]


def a_history(job: Run) -> tuple[torch.Tensor, History]:
    """Users with rows and their histories once everything is finished: old, new and unknown items."""
    histories = job.model.histories(job.prepared, 3)
    assert histories is not None
    users = torch.arange(job.prepared.num_users).repeat_interleave(2)
    history = histories.whole(users)
    old, num = job.model.num_old, job.model.num_items
    assert (history.items < old).any() and (history.items == num).any()
    assert ((history.items >= old) & (history.items < num)).any()
    return users, history


def test_an_old_item_stands_by_its_row_a_new_one_by_its_current_row_a_dropped_one_by_the_unknown_row(job: Run) -> None:
    job.meta_train()
    old, new = weights(job)
    assert len(old) == job.model.num_old + 1
    users, history = a_history(job)
    seen: list[EmbeddedHistory] = []
    encode = job.model.backbone.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.model.backbone, "encode", lambda h, c: (seen.append(h), encode(h, c))[1])
        with torch.no_grad():
            for _ in range(2):
                job.model.encoded_history(history, torch.empty(len(users), 0))
                new.add_(1)
    for moment, embedded in enumerate(seen):
        for item, row in zip(history.items.tolist(), embedded.embeddings, strict=True):
            if item == job.model.num_items:
                expected = old[-1]
            else:
                expected = old[item] if item < job.model.num_old else new[item] - 2 + moment
            assert_float32_close(row, expected, num_terms=4, size=4.0)  # four sums with 1 or 2 in them


def test_the_frozen_path_gives_the_logits_and_gradients_of_the_model_itself(job: Run) -> None:
    loader = Loader(job.prepared, ["pretrain"], 256, 0, job.runtime, histories=job.model.histories(job.prepared, 0))
    batch = next(iter(loader.epoch(0)))
    job.meta_train()
    model, frozen = job.model, job._frozen
    assert frozen is not None
    v = model.old_ids.rows(batch.item).detach().requires_grad_()
    expected: Any = model.logit(batch, lambda _: v)
    expected_gradient = torch.autograd.grad(expected.sin().sum(), v)[0]
    part = frozen.part(batch.user, batch.item, batch.history)
    assert not part.requires_grad
    # Fields, history and hidden layers, 100 terms, for each event of a history of up to ten; there and back again.
    rounding = {"num_terms": 2 * 10 * 100, "size": float(expected.abs().max())}
    found = frozen.logit(v, part)
    assert_float32_close(found, expected, **rounding)
    assert_float32_close(torch.autograd.grad(found.sin().sum(), v)[0], expected_gradient, **rounding)
    with torch.no_grad():  # scores of a batch, which may take another way
        frozen.serve(model.old_ids.rows)
        scores = frozen.served_logit(batch.user, batch.item, batch.history)
    assert_float32_close(scores, expected, **rounding)
    histories = model.histories(job.prepared, 0)
    assert histories is not None
    blind = frozen.part(batch.user, batch.item, histories.of(batch.user, torch.zeros_like(batch.user), True))
    assert (frozen.logit(v, blind) - expected).abs().max() > 1e-3, "histories make no difference"


def test_pretraining_reaches_items_through_histories_and_the_unknown_row_too(tmp_path: Path) -> None:
    for name in NAMES:
        config = config_of(name)
        with start(config) as runtime:
            job = Run(config, tmp_path / name, runtime, run_module._prepare(config, runtime))
            stage = Pretrain(config, job.model, job.method)
            loader = Loader(
                job.prepared, ["pretrain"], 1024, 0, runtime, histories=job.model.histories(job.prepared, 0)
            )
            batch = next(iter(loader.epoch(0)))
            assert batch.history is not None
            before = weights(job)[0].clone()
            stage.step(batch)
            moved = (weights(job)[0] != before).any(dim=1)
            rows = torch.where(batch.history.items == job.model.num_items, job.model.num_old, batch.history.items)
            assert job.model.num_old in rows and moved[-1]
            assert torch.equal(moved.nonzero().squeeze(1), torch.unique(torch.cat([rows, batch.item])))
            job.session.recorder.close()


def test_the_common_initialisation_leaves_the_unknown_row_out(job: Run) -> None:
    old, _ = weights(job)
    expected = old[:-1].double().mean(0)
    assert_float32_close(job.model.mean_old_row(), expected, num_terms=len(old), size=float(old.abs().mean()))
    assert not torch.allclose(old[-1], old[:-1].mean(0), atol=1e-4)


def test_a_phase_sees_the_sets_that_are_finished_when_it_trains_and_when_it_is_scored(
    job: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the set that it trains on or that is scored: the items of new events say which set they are of."""
    calls: list[tuple[str, int]] = []
    histories = job.model.histories
    stage = "score"

    def spied(prepared: Any, num_finished: int) -> Any:
        calls.append((stage, num_finished))
        return histories(prepared, num_finished)

    run_phase, finish_phase = WarmUp.run_phase, WarmUp.finish_phase

    def training(self: WarmUp, *args: Any) -> None:
        nonlocal stage
        stage = "train"
        run_phase(self, *args)

    def finishing(self: WarmUp, *args: Any) -> None:
        nonlocal stage
        stage = "score"
        finish_phase(self, *args)

    job.meta_train()
    monkeypatch.setattr(job.model, "histories", spied)
    monkeypatch.setattr(WarmUp, "run_phase", training)
    monkeypatch.setattr(WarmUp, "finish_phase", finishing)
    job.warm_up_and_evaluate()
    assert calls == [("score", 0), *(call for n in (1, 2, 3) for call in (("train", n - 1), ("score", n)))]


def test_a_stopped_encoder_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    pretrain = {"order": "users", "schedule": "cosine", "item_weight": "equal", "learning_rate_ids": 2e-2, "epochs": 2}
    config = config_of(
        "encoder", method={"name": "map"}, pretrain=pretrain, backbone={"name": "encoder", "dropout": 0.2}
    )
    test_resume.run(config, tmp_path / "whole")
    stops: list[tuple[Any, str, int]] = [(Pretrain, "step", 5), (Pretrain, "step", 15), (WarmUp, "run_phase", 2)]
    for number, (owner, name, call) in enumerate(stops):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
            test_resume.stop_at(patch, owner, name, call)
            with pytest.raises(test_resume.Stop):
                test_resume.run(config, folder)
        test_resume.run(config, folder)
        test_resume.assert_same(test_resume.outcome(folder), test_resume.outcome(tmp_path / "whole"))


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    config = config_of(name, method={"name": "mwuf"}, backbone={"name": name, "dropout": 0.2, "hidden": [8]})
    test_resume.run(config, tmp_path / "whole")
    for number, (owner, call) in enumerate([(Pretrain, 5), (run_module.MetaTrain, 5), (WarmUp, 2)]):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
            test_resume.stop_at(patch, owner, "step", call)
            with pytest.raises(test_resume.Stop):
                test_resume.run(config, folder)
        test_resume.run(config, folder)
        test_resume.assert_same(test_resume.outcome(folder), test_resume.outcome(tmp_path / "whole"))


@pytest.mark.parametrize("name", [*NAMES, "encoder"])
def test_a_table_that_steps_in_its_backward_steps_once_a_batch(name: str, tmp_path: Path) -> None:
    """On rows of events too. A first step of row-wise Adagrad, learning rate * g / sqrt(mean g^2), has one length."""
    embedding = {"optimizer": "rowwise_adagrad", "rowwise_adagrad_lr": 0.01}
    keys = fitting("backbone", KEYS | {"dropout": 0.0}, name)
    config = build(merge(merge(TINY, FEW_STEPS), {"backbone": {"name": name} | keys, "embedding": embedding}))
    with start(config) as runtime:
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        loader = job.model.pretrain_rows(job.prepared, "shuffled", 256, 0)
        tables = [(one, name) for one in job.model.pretrained_tables for name in one.specs]
        before = [one.shards(name)[0].weight.clone() for one, name in tables]
        Pretrain(config, job.model, job.method).step(next(loader.epoch(0)))
        for (one, name), weight in zip(tables, before, strict=True):
            length = (one.shards(name)[0].weight - weight).square().mean(dim=1).sqrt()
            assert length.max() == pytest.approx(0.01, rel=1e-3), name  # a second step would add to it
        job.session.recorder.close()


@pytest.mark.dist
@pytest.mark.parametrize(("name", "method"), [("gru4rec", "mwuf"), ("din", "metaemb"), ("encoder", "map")])
def test_two_ranks_give_the_auc_and_the_tables_of_one_rank(name: str, method: str, tmp_path: Path) -> None:
    values = merge(
        merge(TINY, FEW_STEPS),
        {
            "backbone": {"name": name} | fitting("backbone", KEYS, name),
            "method": {"name": method},
            "pretrain": {"learning_rate": 5e-3, "order": "users" if name == "encoder" else "shuffled"},
        },
    )
    test_resume.run(build(values), tmp_path / "one")
    expected, expected_tensors, _ = test_resume.outcome(tmp_path / "one")
    found, tensors = test_ranks.run(tmp_path / "two", merge(values, {"embedding": {"sharding": "row_wise"}}), 2)
    for phase, metrics in expected["phases"].items():
        assert found["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=SAME_AUC), phase
    for key in expected_tensors:
        if key.split(".")[0] in ("user", "item", "old", "new"):
            assert (tensors[key] - expected_tensors[key]).abs().max() < SAME_TABLES, key


class WithFields(Gru4Rec):
    """Looks at the fields and labels of events too, and keeps what it was given."""

    uses_history_fields = True
    given: list[EmbeddedHistory]

    def encode(self, history: EmbeddedHistory, context: torch.Tensor) -> torch.Tensor:
        """See `Backbone.encode`."""
        self.__dict__.setdefault("given", []).append(history)
        assert history.fields is not None
        return super().encode(history, context) + history.fields.sum() + history.labels.sum()


def test_a_backbone_of_ones_own_gets_fields_and_labels_of_the_events(tmp_path: Path) -> None:
    config = config_of(f"{__name__}:WithFields")
    with start(config) as runtime:
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        model: Any = job.model
        users, history = a_history(job)
        model.encoded_history(history, torch.empty(len(users), 0))
        loader = Loader(job.prepared, ["pretrain"], 64, 0, runtime, histories=model.histories(job.prepared, 0))
        batch = next(iter(loader.epoch(0)))
        assert batch.history is not None
        model.logit(batch).sum().backward()
        for given, expected in zip(model.backbone.given, (history, batch.history), strict=True):
            assert torch.equal(given.labels, expected.labels) and torch.equal(given.items, expected.items)
            known = given.items < model.num_items
            fields = given.fields[given.index]
            assert_float32_close(fields[known], model.item_fields(given.items[known]), num_terms=4)  # tags
            assert not fields[~known].any()
        job.session.recorder.close()


def test_scores_tell_users_with_histories_apart(job: Run) -> None:
    """The scored rows of one user and item would else hide a history that is ignored."""
    job.meta_train()
    assert job._frozen is not None
    stage = WarmUp(job.config, job.model, job._frozen, job.method)
    stage.finish_phase(job.prepared, 3)
    with_history = stage.score(job.prepared, "test")
    stage.histories = job.model.histories(job.prepared, 0)
    earlier = stage.score(job.prepared, "test")
    assert with_history is not None and earlier is not None
    assert np.abs(with_history - earlier).max() > 1e-4
