"""A set with one class from the config to the export: said before training, and finished with an AUC that is none."""

from __future__ import annotations

import json
from pathlib import Path

from mwuf_dist.config import to_toml
from tests.cli.command import Mwuf
from tests.data.test_both_classes import logs_without_a_click_in_warm_b
from tests.serving.own_logs import config_for, write


def test_a_run_with_a_set_of_one_class_says_so_finishes_and_is_exported(mwuf: Mwuf, tmp_path: Path) -> None:
    write(logs_without_a_click_in_warm_b(), tmp_path / "log.csv")
    Path("one.toml").write_text(to_toml(config_for(tmp_path)))
    done = mwuf("run", "one.toml", "--output", "run")
    assert done.code == 0 and "warm_b has no positive among 120 rows" in done.said
    assert done.said.index("With data.warm_rows = 3") < done.said.index("cold AUC next set")  # before training
    assert "warm-a AUC next set – fixed test 0." in done.said
    found = json.loads(Path("run/results.json").read_text(), parse_constant=lambda name: name)
    assert found["phases"]["warm-a"]["auc_next"] is None and found["phases"]["warm-a"]["calibration_next"] is None
    assert 0 < found["phases"]["cold"]["auc_next"] < 1 and found["phases"]["warm-a"]["logloss_next"] > 0
    for line in Path("run/metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line
    assert mwuf("run", "one.toml", "--output", "run").code == 0  # it is finished
    assert mwuf("export", "run", "--output", "ex").code == 0
    assert mwuf("explain", "run", "--item", "900").code == 0


def test_a_comparison_with_a_set_of_one_class_is_written(mwuf: Mwuf, tmp_path: Path) -> None:
    write(logs_without_a_click_in_warm_b(), tmp_path / "log.csv")
    runs = '\n[[study.runs]]\nmethod = { name = "mwuf" }\n[[study.runs]]\nmethod = { name = "base" }\n'
    Path("one.toml").write_text(to_toml(config_for(tmp_path)) + runs)
    done = mwuf("compare", "one.toml", "--seeds", 1, "--output", "out")
    assert done.code == 0 and "warm_b has no positive" in done.said
    comparison = json.loads(Path("out/comparison.json").read_text(), parse_constant=lambda name: name)
    for row in comparison["rows"]:
        assert row["phases"]["warm-a"]["auc_next"]["mean"] is None and row["phases"]["cold"]["auc_next"]["mean"]
    assert mwuf("compare", "one.toml", "--seeds", 1, "--output", "out").code == 0  # from its records
