"""The leak audit passes on honest runs and fails on every kind of leak that it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config import MethodConfig
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Method
from mwuf_dist.studies.audit import HiddenLabels, audit
from mwuf_dist.training.loop import Session
from mwuf_dist.training.results import NEXT_SETS
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.tiny import tiny

FEW_STEPS: dict[str, Any] = {"pretrain": {"epochs": 1, "batch_size": 1024}, "meta_train": {"batch_size": 1024}}


@pytest.fixture(autouse=True)
def _labels_are_given_back() -> Iterator[None]:
    before = Prepared.read_rows
    yield
    assert Prepared.read_rows is before


@pytest.mark.parametrize("method", ["base", "metaemb", "mwuf"])
def test_an_honest_run_passes_and_every_score_was_compared(method: str, tmp_path: Path) -> None:
    config = tiny(**FEW_STEPS, method={"name": method})
    found = audit(config, tmp_path / "audit")
    prepared = prepare(config.data)
    warm, test = sum(prepared.num_rows(split) for split in NEXT_SETS[:3]), prepared.num_rows("test")
    assert found["passed"] and found["changed"] == {}
    assert found["num_scores"] == warm + 4 * test
    assert found["num_labels"] > 0.3 * (warm + test)
    assert not (tmp_path / "audit").exists()


class Peeks(Method):
    """First rows that know which items will be liked in a set that is scored later."""

    initialisation = "own"
    split = ""

    def __init__(self, config: MethodConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.initialisation = "own"

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        columns = prepare(tiny().data).columns(self.split, ("item", "label"))
        liked = float((columns["label"] * (1 + columns["item"] % 7)).sum()) / len(columns["item"])
        return torch.full((len(item_context), self.dim), liked)


@pytest.mark.parametrize("split", NEXT_SETS)
def test_a_method_that_looks_into_a_set_before_it_is_scored_fails(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peeks, "split", split)
    found = audit(tiny(**FEW_STEPS, method={"name": f"{__name__}:Peeks"}), tmp_path / "audit")
    assert not found["passed"]
    assert {"cold on warm_a", "cold on test"} <= found["changed"].keys()


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_warm_up_that_trains_on_the_set_it_is_scored_on_next_fails_from_that_phase_on(
    phase: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_phase = WarmUp.run_phase

    def one_too_far(self: WarmUp, session: Session, prepared: Prepared, now: int) -> None:
        run_phase(self, session, prepared, now)
        if now == phase < 3:
            run_phase(self, session, prepared, now + 1)
        elif now == phase:
            with monkeypatch.context() as patch:
                patch.setattr("mwuf_dist.training.stages.warm_up.WARM_SETS", ("warm_a", "warm_b", "test"))
                run_phase(self, session, prepared, now)

    monkeypatch.setattr(WarmUp, "run_phase", one_too_far)
    found = audit(tiny(**FEW_STEPS), tmp_path / "audit")
    assert not found["passed"]
    names = ("cold", "warm-a", "warm-b", "warm-c")
    assert f"{names[phase]} on test" in found["changed"]
    assert not any(key.startswith(names[:phase]) for key in found["changed"])


def test_a_pretraining_that_has_seen_the_test_labels_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pretrain.run

    def peeks(self: Pretrain, session: Session, prepared: Prepared, start: Any) -> None:
        run(self, session, prepared, start)
        label = prepared.columns("test", ("label",))["label"]
        with torch.no_grad():
            for parameter in self.model.dense_parameters():
                parameter += 1e-3 * float((label * np.arange(len(label))).mean())

    monkeypatch.setattr(Pretrain, "run", peeks)
    found = audit(tiny(**FEW_STEPS), tmp_path / "audit")
    assert len(found["changed"]) == 7, "all phases and sets"


def test_a_backbone_that_reads_labels_of_events_passes(tmp_path: Path) -> None:
    config = tiny(**FEW_STEPS, backbone={"name": "encoder", "hidden": [8], "heads": 2}, method={"name": "base"})
    assert audit(config, tmp_path / "audit")["passed"]


def test_labels_of_events_are_hidden_too_until_their_set_is_scored() -> None:
    prepared = prepare(tiny().data)

    def of_events() -> np.ndarray:
        return np.array(Histories(prepared, 3, 0, torch.device("cpu")).load("labels"))

    true = of_events()
    phases = np.array(Histories(prepared, 3, 0, torch.device("cpu")).load("phases"))
    labels = HiddenLabels(seed=3)
    with labels.active():
        for revealed in range(3):
            differs = [bool((of_events() != true)[phases == phase].any()) for phase in range(4)]
            assert differs == [phase > revealed for phase in range(4)]
            assert of_events().sum() == true.sum()
            labels.reveal(revealed)
        assert np.array_equal(of_events(), true)


def test_hidden_labels_are_a_permutation_and_the_same_in_every_piece() -> None:
    prepared = prepare(tiny().data)
    true = prepared.columns("warm_b", ("label", "item"))
    labels = HiddenLabels(seed=3)
    with labels.active():
        shuffled = prepared.columns("warm_b", ("label", "item"))
        part = prepare(tiny().data).read_rows("warm_b", 5, 17, ("label",))["label"]
        assert np.array_equal(part, shuffled["label"][5:17])
        assert (shuffled["label"] != true["label"]).any()
        assert shuffled["label"].sum() == true["label"].sum()
        assert np.array_equal(shuffled["item"], true["item"])
        for phase in range(4):
            labels.reveal(phase)
        assert np.array_equal(prepared.columns("warm_b", ("label",))["label"], true["label"])
        test = prepared.columns("test", ("label",))["label"]
    assert (test != prepared.columns("test", ("label",))["label"]).any()
