"""`mwuf recommend`: from a config to the config to deploy, and on where the time was up."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwuf_dist.config import build, read_toml, without_studies
from mwuf_dist.files import read_json
from mwuf_dist.studies import recommend
from mwuf_dist.training.stages.pretrain import Pretrain
from tests.cli.command import SHORT, Mwuf, interrupt, write


def test_it_writes_a_config_with_the_gain_its_interval_and_the_cost_and_a_second_call_trains_nothing(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend, "_PLAIN_RATES", (1e-2, 1e-1))
    monkeypatch.setattr(recommend, "_METHOD_RATES", (1e-2,))
    monkeypatch.setattr(recommend, "_MOST_CHECKS", 1)
    config = write(tmp_path / "shop.toml", SHORT)
    arguments = ("recommend", config, "--methods", "semantic_id", "--output", "out")
    short = mwuf(*arguments, "--minutes", "1e-9")
    assert short.code == 1 and "the time was up before" in short.out and not Path("out/recommend.json").exists()
    done = mwuf(*arguments)
    assert done.code == 0 and "recommended: " in done.out
    summary = read_json(Path("out/recommend.json"))
    assert {row["label"] for row in summary["rows"]} == {
        "mwuf, as configured",
        "semantic_id, rate 0.01",
        "base from the mean row, rate 0.01",
        "base from the mean row, rate 0.1",
    }
    assert summary["chosen_by"] == summary["checked_by"] == 1
    for row in summary["rows"]:
        assert row["seconds"] > 0 and 0.4 < row["score"] < 1
        if row["label"] == summary["alternative"]:
            assert row["gain"] is None
        else:
            best = next(other for other in summary["rows"] if other["label"] == summary["alternative"])
            assert row["gain"]["difference"] == pytest.approx(row["score"] - best["score"], abs=1e-6)
            assert row["gain"]["low"] < row["gain"]["difference"] < row["gain"]["high"]
    values = read_toml(Path("out/shop-recommended.toml"))
    deployed = build(without_studies(values))
    label = summary["recommended"]
    assert deployed.method.name in label or "as configured" in label
    assert not deployed.data.old_items_as_new and values["study"]["runs"]
    monkeypatch.setattr(Pretrain, "run", interrupt)
    again = mwuf(*arguments)
    assert again.code == 0 and read_json(Path("out/recommend.json")) == summary


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes 0.0: must be above 0 to 1e+06"),
        (["--methods", "bass"], "method.name = 'bass': unknown; did you mean 'base'"),
        (["--methods", "base"], "name one of those, or none for all"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(
    arguments: list[str], said: str, mwuf: Mwuf, tmp_path: Path
) -> None:
    done = mwuf("recommend", write(tmp_path / "shop.toml", SHORT), *arguments, "--output", "out")
    assert done.code == 2 and said in done.said and not Path("out").exists()


def test_help_says_what_it_does_with_an_example(mwuf: Mwuf) -> None:
    done = mwuf("recommend", "--help")
    assert done.code == 0
    assert "mwuf recommend configs/movielens-1m.toml" in done.said and "--minutes" in done.said
