"""A comparison does what is missing and nothing else: shared pretrainings, finished cells, records, failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import Config, UserError, config_hash, merge, to_dict, to_toml
from mwuf_dist.studies import compare
from mwuf_dist.studies.records import Records, read_records, write_records
from mwuf_dist.studies.schedule import Here
from tests.evaluation.results import make_result
from tests.studies.test_schedule import Slots
from tests.tiny import TINY, tiny

RUNS = ({"method": {"name": "base"}}, {"method": {"name": "mwuf"}}, {"method": {"name": "dropoutnet"}})


class Work:
    """Stands in for training: writes what a run leaves, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.pretrained: list[str] = []
        self.trained: list[str] = []
        self.audited: list[str] = []
        self.fails_on: Callable[[Config], bool] = lambda config: False
        self.leaks = False

    @property
    def actions(self) -> compare.Actions:
        return compare.Actions(self.train, self.pretrain, self.audit)

    def pretrain(self, config: Config, folder: Path) -> Path:
        self.pretrained.append(config_hash(config))
        return folder / "checkpoint"

    def train(self, config: Config, folder: Path, pretrained: Path | None) -> dict[str, Any]:
        assert pretrained is not None and pretrained.parent.name == config_hash(compare.pretraining_of(config))
        if self.fails_on(config):
            raise UserError("the loss is nan")
        self.trained.append(folder.name)
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(to_toml(config))
        result = make_result(config.backbone.name, config.method.name, config.seed, [0.6] * 4, config=to_dict(config))
        (folder / "results.json").write_text(json.dumps(result))
        return result

    def audit(self, config: Config, folder: Path) -> dict[str, Any]:
        self.audited.append(compare.cell_name(config))
        found = {"passed": not self.leaks, "num_scores": 1, "num_labels": 1, "changed": {}}
        return found | {"config_hash": config_hash(config)}


def configs(seeds: int = 2, first_seed: int = 0, **overridden: Any) -> list[Config]:
    study = compare.Study(seeds, RUNS)
    return compare.run_configs(merge(TINY, overridden), study, "study.toml", {}, first_seed)


def do(work: Work, wanted: list[Config], folder: Path, others: Any = (), runner: Any = None) -> compare.Outcome:
    return compare.compare(
        wanted, folder, work.actions, lambda _: nullcontext(runner or Here()), lambda _: None, others
    )


def names(outcome: compare.Outcome) -> list[tuple[str, int]]:
    return [(cell["method"], cell["seed"]) for cell in outcome.records.cells]


@pytest.mark.parametrize("num_slots", [1, 3])
def test_each_pretraining_and_each_cell_is_done_once_and_one_cell_of_each_row_is_audited(
    num_slots: int, tmp_path: Path
) -> None:
    work = Work()
    outcome = do(work, configs(), tmp_path, runner=Slots(num_slots))
    assert len(work.pretrained) == len(set(work.pretrained)) == 4, "base and mwuf share one, per seed"
    assert len(work.trained) == len(set(work.trained)) == 6
    assert sorted(work.audited) == ["deepfm-base-seed0", "deepfm-dropoutnet-seed0", "deepfm-mwuf-seed0"]
    methods = [run["method"]["name"] for run in RUNS]
    assert names(outcome) == [(method, seed) for method in methods for seed in range(2)]
    assert not outcome.failures


def test_nothing_is_done_again_and_more_seeds_only_do_the_new_ones(tmp_path: Path) -> None:
    do(Work(), configs(), tmp_path)
    again = Work()
    assert len(do(again, configs(), tmp_path).records.audits) == 3
    assert again.pretrained == again.trained == again.audited == []
    more = Work()
    outcome = do(more, configs(seeds=3), tmp_path)
    assert sorted(more.trained) == ["deepfm-base-seed2", "deepfm-dropoutnet-seed2", "deepfm-mwuf-seed2"]
    assert len(more.pretrained) == 2 and more.audited == []
    assert len(outcome.records.cells) == 9


def test_a_cell_that_was_lost_is_the_only_one_that_is_done_again(tmp_path: Path) -> None:
    do(Work(), configs(), tmp_path)
    shutil.rmtree(tmp_path / "runs" / "deepfm-mwuf-seed1")
    again = Work()
    do(again, configs(), tmp_path)
    assert again.trained == ["deepfm-mwuf-seed1"]


def test_another_config_in_the_folder_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    do(Work(), configs(), tmp_path)
    work = Work()
    with pytest.raises(UserError, match=r"holds another run, which differs in warm_up.epochs: 2 -> 7"):
        do(work, configs(seeds=3, warm_up={"epochs": 7}), tmp_path)
    assert work.pretrained == work.trained == []


def test_a_failed_cell_is_told_and_the_others_go_on_and_the_next_call_does_it(tmp_path: Path) -> None:
    work = Work()
    work.fails_on = lambda config: config.method.name == "mwuf" and config.seed == 0
    outcome = do(work, configs(), tmp_path)
    assert outcome.failures["deepfm-mwuf-seed0"].reason == "the loss is nan"
    assert outcome.failures.keys() == {"deepfm-mwuf-seed0", "leak audit of deepfm-mwuf-seed0"}
    assert len(outcome.records.cells) == 5
    again = Work()
    assert not do(again, configs(), tmp_path).failures
    assert again.trained == again.audited == ["deepfm-mwuf-seed0"]


def test_a_bug_leaves_its_trace_in_the_folder_until_it_is_gone(tmp_path: Path) -> None:
    work = Work()
    work.fails_on = lambda config: 1 // config.seed < 0  # a division by zero in seed 0
    outcome = do(work, configs(), tmp_path)
    trace = (tmp_path / "failures" / "deepfm-base-seed0.txt").read_text()
    assert "ZeroDivisionError" in outcome.failures["deepfm-base-seed0"].reason and "Traceback" in trace
    do(Work(), configs(), tmp_path)
    assert not (tmp_path / "failures").exists()


@pytest.mark.parametrize("form", ["folder", "file"])
def test_records_of_another_machine_count_as_done_and_grow_the_table(form: str, tmp_path: Path) -> None:
    there = do(Work(), configs(seeds=2, first_seed=2), tmp_path / "there")
    write_records(there.records, tmp_path / "there.json")
    others = [("there", read_records(tmp_path / ("there" if form == "folder" else "there.json")))]
    work = Work()
    outcome = do(work, configs(seeds=3), tmp_path / "here", others)
    assert {name[-5:] for name in work.trained} == {"seed0", "seed1"}, "seed 2 was done there, 3 is more than asked for"
    assert work.audited == [], "every row was audited there"
    assert sorted(names(outcome)) == sorted((run["method"]["name"], seed) for run in RUNS for seed in range(4))


def test_records_with_another_config_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    there = do(Work(), configs(seeds=1, first_seed=5, warm_up={"epochs": 7}), tmp_path / "there").records
    work = Work()
    with pytest.raises(UserError, match=r"deepfm / base, seed 0 and 5.*warm_up.epochs: 2 -> 7"):
        do(work, configs(), tmp_path / "here", [("there", there)])
    assert work.pretrained == work.trained == []


def test_one_file_of_records_serves_studies_of_other_rows(tmp_path: Path) -> None:
    there = do(Work(), configs(seeds=1, first_seed=1), tmp_path / "there").records
    config = tiny(backbone={"name": "fm"}, method={"name": "base"})
    stranger = make_result("fm", "base", 0, [0.6] * 4, config=to_dict(config))
    strange_audit = {"row": "fm / base", "seed": 0, "passed": True}
    both = Records([stranger, *there.cells], [strange_audit, *there.audits])
    outcome = do(Work(), configs(seeds=1), tmp_path / "here", [("there", both)])
    assert sorted(names(outcome)) == sorted((run["method"]["name"], seed) for run in RUNS for seed in range(2))
    assert strange_audit not in outcome.records.audits and len(outcome.records.audits) == len(RUNS)


def test_an_audit_of_an_earlier_config_counts_for_nothing(tmp_path: Path) -> None:
    work = Work()
    do(work, configs(seeds=1), tmp_path)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "pretrained", ignore_errors=True)
    again = Work()
    outcome = do(again, configs(seeds=1, warm_up={"epochs": 7}), tmp_path)
    assert len(again.audited) == len(outcome.records.audits) == 3
