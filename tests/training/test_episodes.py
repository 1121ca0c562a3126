"""The part of meta_train that plays old items as new: stopped and run again, on two ranks, until it stops falling."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mwuf_dist.config import Config, build, merge
from mwuf_dist.training.checkpoint.save import SavePolicy
from mwuf_dist.training.stages.episodes import EpisodeTrain
from mwuf_dist.training.stages.meta_train import MetaTrain
from tests.bounds import SAME_AUC, SAME_TABLES
from tests.tiny import TINY, tiny
from tests.training import test_ranks, test_resume

# Both parts of the stage: MetaEmb's generator on episodes, then Algorithm 1.
CONFIG = tiny(
    method={"name": "mwuf", "initialisation": "metaemb"},
    pretrain={"epochs": 1, "batch_size": 1024},
    meta_train={"epochs": 2, "batch_size": 1024},
    warm_up={"batch_size": 512},
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    test_resume.run(CONFIG, folder)
    return test_resume.outcome(folder)


@pytest.mark.parametrize(
    ("owner", "call", "checkpoint"),
    [
        (EpisodeTrain, 0, "meta_train-0-0-00000000"),
        (EpisodeTrain, 17, "meta_train-0-1-00000003"),
        (MetaTrain, 0, "meta_train-0-1-00000009"),  # between the two: the last of the episodes are done again
        (MetaTrain, 17, "meta_train-1-1-00000003"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    owner: Any, call: int, checkpoint: str, uninterrupted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
        test_resume.stop_at(patch, owner, "loss" if owner is EpisodeTrain else "step", call)
        with pytest.raises(test_resume.Stop):
            test_resume.run(CONFIG, tmp_path / "run")
    capsys.readouterr()
    test_resume.run(CONFIG, tmp_path / "run")
    assert f"goes on from {checkpoint}\n" in capsys.readouterr().out
    expected, expected_tensors, expected_metrics = uninterrupted
    found, tensors, metrics = test_resume.outcome(tmp_path / "run")
    assert found == expected and metrics == expected_metrics
    assert tensors.keys() == expected_tensors.keys()
    assert all(torch.equal(tensors[key], value) for key, value in expected_tensors.items())


@pytest.mark.parametrize(
    "method",
    [
        {"name": "cvar", "latent_noise": 1.0},
        {"name": "gme", "graph": "ids"},
        {"name": "melu", "local_steps": 2},
        {"name": "melu", "first_order": True},
        # Few levels: rows of prefixes of one item have gradients near Adam's epsilon, which makes rounding visible.
        {"name": "semantic_id", "code_size": 4, "code_levels": 2},
        {"name": "csdm", "regenerate_by_diffusion": True},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_every_method_that_learns_from_episodes_goes_on_to_the_same_bits(method: Any, tmp_path: Path) -> None:
    sections = {"pretrain": {"epochs": 1, "batch_size": 4096}, "warm_up": {"epochs": 1, "batch_size": 1024}}
    config = tiny(method=method, meta_train={"batch_size": 2048}, **sections)
    test_resume.run(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
        test_resume.stop_at(patch, EpisodeTrain, "loss", 5)
        with pytest.raises(test_resume.Stop):
            test_resume.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "meta_train-0-0-00000003"
    test_resume.run(config, tmp_path / "run")
    test_resume.assert_same(test_resume.outcome(tmp_path / "run"), test_resume.outcome(tmp_path / "whole"))


def test_auto_stops_by_the_loss_of_items_that_it_does_not_train_on(tmp_path: Path) -> None:
    section = {"epochs": "auto", "max_epochs": 6, "batch_size": 512}
    config: Config = tiny(method={"name": "metaemb"}, pretrain={"epochs": 1}, meta_train=section)
    results = test_resume.run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    fell = [later <= earlier * (1 - 1e-4) for earlier, later in itertools.pairwise(losses)]
    assert 2 <= len(losses) <= 6 and all(fell[:-1]), "it went on after the loss had stopped falling"
    assert len(losses) == 6 or not fell[-1], "it stopped while the loss was falling"
    assert results["stages"]["meta_train"]["samples"] < len(losses) * results["split"]["pretrain"]


@pytest.mark.dist
@pytest.mark.parametrize(
    "method",
    [
        {"name": "metaemb"},
        # Deterministic draws, counts and regenerated rows; phi_old and fields of neighbours on other ranks.
        {"name": "cvar", "latent_noise": 1.0},
        {"name": "gme", "graph": "ids"},
        {"name": "align", "align_hidden": 4},  # few hidden units, for the reason in test_ranks.py
        {"name": "content_delta"},
        # Few levels: rows of prefixes of one item have gradients near Adam's epsilon, which makes rounding visible.
        {"name": "semantic_id", "code_size": 4, "code_levels": 2},
        {"name": "csdm", "diffusion_hidden": 4, "regenerate_by_diffusion": True},
    ],
    ids=lambda method: method["name"],
)
def test_two_ranks_learn_what_one_rank_learns(method: dict[str, Any], tmp_path: Path) -> None:
    values = merge(
        TINY,
        {
            "backbone": {"name": "dcn", "hidden": [8]},
            "embedding": {"sharding": "row_wise"},
            "method": method,
            "pretrain": {"epochs": 1, "batch_size": 1024, "learning_rate": 5e-3},
            "warm_up": {"epochs": 1, "batch_size": 512},
        },
    )
    test_resume.run(build(values), tmp_path / "one")
    expected, tensors, _ = test_resume.outcome(tmp_path / "one")
    found, split_tensors = test_ranks.run(tmp_path / "two", values, 2)
    for phase, metrics in expected["phases"].items():
        assert found["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=SAME_AUC), phase
    names = [name for name in tensors if name.startswith(("method.", "new."))]
    assert len(names) >= 2
    for name in names:
        assert (split_tensors[name] - tensors[name]).abs().max() < SAME_TABLES, name
