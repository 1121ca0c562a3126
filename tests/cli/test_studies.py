"""`mwuf compare` and `mwuf tune`: mistakes are found before anything is trained, what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.training.stages.meta_train import MetaTrain
from tests.cli.command import SHORT, Mwuf, interrupt, results, write

STUDY: dict[str, Any] = {"seeds": 1, "runs": [{"method": {"name": "base"}}, {"method": {"name": "mwuf"}}]}


@pytest.mark.parametrize(
    ("study", "arguments", "said"),
    [
        (None, [], "no section [study]"),
        ({"seeds": 2}, [], "[study] has no [[study.runs]]"),
        (STUDY | {"seeds": 0}, [], "`study.seeds` = 0: Input should be greater than or equal to 1"),
        (STUDY | {"sedes": 2}, [], "`study.sedes` = 2: Unexpected keyword argument"),
        (STUDY, ["--seeds", "-1"], "--seeds -1: must be 0 to 10000"),
        (STUDY, ["--seed", "1"], "give `study.seeds` or --seeds N, not `seed`"),
        ({"runs": [{"method": {"nam": "base"}}]}, [], "run 1 of [study]: unknown key `method.nam`"),
        ({"runs": [{}, {"warm_up": {"epochs": 3}}]}, [], "runs 1 and 2 of [study] are both called deepfm-mwuf-seed0"),
        (STUDY | {"runs": [{}, {"method": {"name": "mwufs"}}]}, [], "method.name = 'mwufs': unknown"),
        (STUDY | {"runs": [{}, {"backbone": {"name": "fmm"}}]}, [], "backbone.name = 'fmm': unknown"),
        (STUDY, ["--data.synthetic.num-items", "10"], "no item is new"),
    ],
)
def test_a_wrong_comparison_is_refused_before_anything_is_trained(
    study: dict[str, Any] | None, arguments: list[str], said: str, mwuf: Mwuf, tmp_path: Path
) -> None:
    config = write(tmp_path / "study.toml", SHORT if study is None else SHORT | {"study": study})
    done = mwuf("compare", config, *arguments, "--output", "out")
    assert done.code == 2
    assert done.err.startswith("mwuf: ") and said in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        (None, "no [[tune.settings]] to try"),
        (3, "`tune` = 3: Input should be"),
        ({"folds": 0, "settings": [{}]}, "`tune.folds` = 0: Input should be greater than or equal to 1"),
        ({"setings": [{}]}, "`tune.setings`"),
        ({"settings": [{"pretrain": {"epocs": 1}}]}, "setting 1 of [tune]: unknown key `pretrain.epocs`"),
        ({"settings": [{"method": {"name": "mwufs"}}]}, "method.name = 'mwufs': unknown"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_is_trained(tune: Any, said: str, mwuf: Mwuf, tmp_path: Path) -> None:
    config = write(tmp_path / "tune.toml", SHORT if tune is None else SHORT | {"tune": tune})
    done = mwuf("tune", config, "--output", "out")
    assert done.code == 2
    assert done.err.startswith("mwuf: ") and said in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parallel", "-1"], "--parallel -1: must be 0 to 100000"),
        (["--first-seed", "-1"], "--first-seed -1: must be 0 to 2^62"),
        (["--records", "nowhere"], "nowhere: no records there"),
    ],
)
def test_wrong_options_of_a_comparison_are_refused(arguments: list[str], said: str, mwuf: Mwuf, tmp_path: Path) -> None:
    done = mwuf("compare", write(tmp_path / "study.toml", SHORT | {"study": STUDY}), *arguments, "--output", "out")
    assert done.code == 2 and said in done.said
    assert not Path("out").exists()


def test_several_runs_at_once_are_refused_within_a_launcher(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    config = write(tmp_path / "study.toml", SHORT | {"study": STUDY})
    done = mwuf("compare", config, "--parallel", "2", "--output", "out")
    assert done.code == 2 and "this is one of 2 ranks" in done.said


def test_a_failed_cell_or_a_leak_is_exit_code_1_and_stands_in_the_report(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [{"method": {"name": "base"}}, {"method": {"name": "metaemb", "initialisation": "mean"}}]
    config = write(tmp_path / "study.toml", SHORT | {"study": {"runs": runs}})
    monkeypatch.setattr("mwuf_dist.studies.audit._compare", lambda *_: (3, {"cold on test": 1}))
    done = mwuf("compare", config, "--output", "out")
    assert done.code == 1
    assert "FAILED deepfm-metaemb-seed0: method.initialisation = 'mean'" in done.said
    assert "Leak audit: FAILED" in done.said and "1 scores of cold on test" in done.said
    comparison = json.loads(Path("out", "comparison.json").read_text())
    assert [row["method"] for row in comparison["rows"]] == ["base"]
    assert comparison["failures"].keys() == {"deepfm-metaemb-seed0", "leak audit of deepfm-metaemb-seed0"}


def test_a_comparison_goes_on_and_more_seeds_only_do_the_new_ones(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "study.toml", SHORT | {"study": STUDY})
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrain, "step", interrupt)
        assert mwuf("compare", config, "--output", "out").code == 130
    done_before = results("out/runs/deepfm-base-seed0")
    assert mwuf("compare", config, "--output", "out").code == 0
    assert results("out/runs/deepfm-base-seed0") == done_before
    # To the last digit of its seconds, because it was trained once.
    assert results("out/runs/deepfm-mwuf-seed0")["stages"]["pretrain"] == done_before["stages"]["pretrain"]
    assert mwuf("compare", config, "--output", "out", "--seeds", "2").code == 0
    comparison = json.loads(Path("out", "comparison.json").read_text())
    assert comparison["audit"]["passed"] and comparison["audit"]["missing"] == []
    assert [row["method"] for row in comparison["rows"]] == ["base", "mwuf"]
    assert {path.name for path in Path("out", "runs").iterdir()} == {
        f"deepfm-{method}-seed{seed}" for method in ("base", "mwuf") for seed in (0, 1)
    }
    assert results("out/runs/deepfm-base-seed0") == done_before
    # A view of an item comes into the report of what is done already.
    assert "no such item" in mwuf("compare", config, "--output", "out", "--seeds", "2", "--explain", "nobody").said
    with open_run("out/runs/deepfm-mwuf-seed0") as run:
        item = run.new_item_ids[0]
    assert mwuf("compare", config, "--output", "out", "--seeds", "2", "--explain", item).code == 0
    page = Path("out", "report.html").read_text()
    for row in ("base", "mwuf"):
        assert (
            f"item {item} warming up: deepfm / {row}" in page and Path("out", f"item-deepfm-{row}-seed0.png").exists()
        )
    assert page.count("Nearest old items at the end of each phase") == 2 and f"--explain {item}" in page
    # Another machine takes the next seed, and its records join in.
    assert mwuf("compare", config, "--output", "there", "--seeds", "1", "--first-seed", "2").code == 0
    joined = mwuf("compare", config, "--output", "out", "--seeds", "3", "--records", "there/records.json")
    assert joined.code == 0
    assert json.loads(Path("out", "comparison.json").read_text())["seeds"] == [0, 1, 2]
    assert not Path("out", "runs", "deepfm-mwuf-seed2").exists()


def test_a_search_writes_a_config_that_compare_takes(mwuf: Mwuf, tmp_path: Path) -> None:
    tune = {"folds": 1, "runs": [run | {"settings": [{"warm_up": {"learning_rate": 0.1}}]} for run in STUDY["runs"]]}
    config = write(tmp_path / "tune.toml", SHORT | {"tune": tune})
    done = mwuf("tune", config, "--output", "out")
    assert done.code == 0 and "deepfm / mwuf" in done.said
    summary = json.loads(Path("out", "tune.json").read_text())
    assert [row["run"] for row in summary["rows"]] == ["deepfm / base"] * 2 + ["deepfm / mwuf"] * 2
    assert mwuf("compare", "out/tune-chosen.toml", "--output", "chosen").code == 0
    comparison = json.loads(Path("chosen", "comparison.json").read_text())
    assert "2 settings for each run" in comparison["about"]["note"]
    assert [row["method"] for row in comparison["rows"]] == ["base", "mwuf"]
