"""`mwuf synthesize` and `mwuf prepare` behind it, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import Mwuf, write

ROOT = Path(__file__).resolve().parents[2]


def test_help_has_examples_and_every_option(mwuf: Mwuf) -> None:
    done = mwuf("synthesize", "--help")
    assert done.code == 0
    assert "mwuf synthesize taobao-ad --rows 26_500_000" in done.said
    assert all(word in done.said for word in ("--rows", "--output", "--seed", "cikm2019", "synthetic"))


def test_what_is_synthesized_can_be_prepared(mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = mwuf("synthesize", "taobao-ad", "--rows", "20_000", "--output", "data/taobao-ad", "--seed", "3")
    assert done.code == 0
    assert "data/taobao-ad/raw_sample.csv" in done.out
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "data"))
    rule = {"old_above": 60, "warm_rows": 8, "prepared_dir": str(tmp_path / "prepared")}
    done = mwuf("prepare", write(tmp_path / "ads.toml", {"data": {"name": "taobao-ad", **rule}}))
    assert done.code == 0
    assert "old items" in done.out


@pytest.mark.parametrize("name", ["taobao-ad", "cikm2019"])
def test_a_question_of_the_paper_is_compared_on_made_up_files_which_the_report_says(
    name: str, mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mwuf("synthesize", name, "--rows", "20_000", "--output", f"data/{name}").code == 0
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "cache"))
    question = str(ROOT / "configs" / f"{name}-rq4.toml")
    rule = ["--data.old-above", "60", "--data.warm-rows", "8", "--seeds", "1", "--output", "out"]
    done = mwuf("compare", question, *rule)
    assert done.code == 0, done.said
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{name} (synthesized)" in report and "MetaEmb" in report
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["dataset"] == f"{name} (synthesized)" and len(comparison["rows"]) == 5
    assert not any(row["published"] for row in comparison["rows"])
    assert "Leak audit: passed" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["criteo", "--rows", "5000", "--output", "out"], "criteo"),
        (["taobao-ad", "--output", "out"], "--rows"),
        (["taobao-ad", "--rows", "10", "--output", "out"], "mwuf: --rows 10: must be between 1000 and"),
        (["taobao-ad", "--rows", "5000", "--output", "."], "mwuf: .: already holds something; name a new folder"),
    ],
)
def test_a_wrong_call_is_told_and_writes_nothing(arguments: list[str], said: str, mwuf: Mwuf, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = mwuf("synthesize", *arguments)
    assert done.code == 2
    assert said in done.said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
