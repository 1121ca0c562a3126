"""Ensembles of seeds in a comparison: real runs on a tiny data set, their mean logits scored by scikit-learn."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mwuf_dist.config import PHASES, UserError, config_hash
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.runtime import start
from mwuf_dist.studies import compare
from mwuf_dist.studies.records import read_records, write_records
from mwuf_dist.studies.schedule import Here
from mwuf_dist.training.results import NEXT_SETS
from mwuf_dist.training.run import run
from tests.tiny import TINY, tiny

NUM_SEEDS = 5
MEMBER, ENSEMBLE = "", "mean of 2 seeds"


def study(**keys: Any) -> compare.Study:
    return compare.read_study({"study": {"seeds": NUM_SEEDS, "runs": [{"method": {"name": "base"}}], **keys}}, "file")


def compared(folder: Path, others: Any = ()) -> compare.Outcome:
    def pretrain(config: Any, target: Path) -> Path:
        return target

    def train(config: Any, target: Path, pretrained: Path | None) -> dict[str, Any]:
        with start(config) as runtime:
            return run(config, target, runtime)

    def audit(config: Any, target: Path) -> dict[str, Any]:
        return {"passed": True, "num_scores": 7, "num_labels": 3, "changed": {}, "config_hash": config_hash(config)}

    configs = compare.run_configs(TINY, study(), "file", {})
    actions = compare.Actions(train, pretrain, audit)
    return compare.compare(configs, folder, actions, lambda _: nullcontext(Here()), lambda _: None, others, ensemble=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> compare.Outcome:
    return compared(folder)


def cells(outcome: compare.Outcome, variant: str) -> dict[int, dict[str, Any]]:
    return {cell["seed"]: cell for cell in outcome.records.cells if cell["variant"] == variant}


def test_seeds_make_ensembles_in_their_order_and_what_is_left_over_makes_none(outcome: compare.Outcome) -> None:
    assert [(cell["variant"], cell["seed"]) for cell in outcome.records.cells] == [
        *((MEMBER, seed) for seed in range(NUM_SEEDS)),
        (ENSEMBLE, 0),
        (ENSEMBLE, 2),
    ]


@pytest.mark.parametrize("phase", range(4))
def test_an_ensemble_is_scored_on_the_mean_of_its_members_logits(
    phase: int, outcome: compare.Outcome, folder: Path
) -> None:
    prepared = prepare(tiny().data)
    for scoring, split in (("next", NEXT_SETS[phase]), ("test", "test")):
        logits = [
            np.load(folder / "runs" / f"deepfm-base-seed{seed}" / "scores" / f"{PHASES[phase]}-{split}.npy")
            for seed in (2, 3)
        ]
        mean = (logits[0].astype(np.float64) + logits[1]) / 2
        label = prepared.columns(split, ("label",))["label"]
        found = cells(outcome, ENSEMBLE)[2]["phases"][PHASES[phase]]
        assert found[f"auc_{scoring}"] == pytest.approx(roc_auc_score(label, mean), abs=1e-12)
        assert found[f"logloss_{scoring}"] == pytest.approx(log_loss(label, 1 / (1 + np.exp(-mean))), rel=1e-9)


def test_an_ensemble_has_cost_what_its_members_have(outcome: compare.Outcome) -> None:
    members = cells(outcome, MEMBER)
    found = cells(outcome, ENSEMBLE)[0]["stages"]["pretrain"]
    own = [members[seed]["stages"]["pretrain"] for seed in (0, 1)]
    assert found["samples"] == sum(one["samples"] for one in own)
    assert found["seconds"] == sum(one["seconds"] for one in own)


def test_an_audit_of_the_members_is_one_of_the_ensemble_and_counts_its_scores_once(outcome: compare.Outcome) -> None:
    assert [(one["row"], one["num_scores"]) for one in outcome.records.audits] == [
        ("deepfm / base", 7),
        (f"deepfm / base ({ENSEMBLE})", 0),
    ]


def test_ensembles_of_another_machine_come_with_its_records(outcome: compare.Outcome, tmp_path: Path) -> None:
    write_records(outcome.records, tmp_path / "records.json")
    again = compared(tmp_path / "here", [("there", read_records(tmp_path / "records.json"))])
    for variant in (MEMBER, ENSEMBLE):
        assert {seed: cell["phases"] for seed, cell in cells(again, variant).items()} == {
            seed: cell["phases"] for seed, cell in cells(read_outcome(tmp_path), variant).items()
        }


def read_outcome(folder: Path) -> compare.Outcome:
    return compare.Outcome(read_records(folder / "records.json"), {})


def test_an_ensemble_of_one_seed_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 seeds"):
        study(ensemble=1)


def test_without_the_key_there_are_no_ensembles() -> None:
    assert dataclasses.asdict(study())["ensemble"] == 0
