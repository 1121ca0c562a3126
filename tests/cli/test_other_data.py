"""Files that change between two starts of one command: what was trained on the old ones takes none of the new."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwuf_dist.config import to_dict, to_toml
from mwuf_dist.training.stages.meta_train import MetaTrain
from tests.cli.command import Mwuf, write
from tests.cli.test_cli import interrupt
from tests.serving.own_logs import config_for, make_logs
from tests.serving.own_logs import write as write_log


def test_neither_a_run_nor_a_comparison_goes_on_with_other_data_than_it_was_begun_with(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(make_logs(), tmp_path / "log.csv")
    values = to_dict(config_for(tmp_path))
    Path("one.toml").write_text(to_toml(config_for(tmp_path)))
    study = {"seeds": 1, "runs": [{"method": {"name": "base"}}, {"method": {"name": "mwuf"}}]}
    write(tmp_path / "study.toml", values | {"study": study})
    # Nothing but a pretraining is finished where this is stopped.
    write(tmp_path / "tune.toml", values | {"tune": {"folds": 1, "settings": [{"warm_up": {"epochs": 2}}]}})
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrain, "step", interrupt)
        assert mwuf("run", "one.toml", "--output", "run").code == 130
        assert mwuf("compare", "study.toml", "--output", "out").code == 130
        assert mwuf("tune", "tune.toml", "--output", "tuned").code == 130
    before = log.read_text()
    assert before[-2].isdigit()  # a price: the split stays as it is, and how many of its rows are positive
    log.write_text(before[:-2] + str(9 - int(before[-2])) + "\n")
    commands = (("run", "one.toml", "run"), ("compare", "study.toml", "out"), ("tune", "tune.toml", "tuned"))
    for command, config, folder in commands:
        done = mwuf(command, config, "--output", folder)
        assert done.code == 2 and "trained on other data: the files, or how they are read, have changed" in done.err
    log.write_text(before)  # as it was: both go on
    assert mwuf("run", "one.toml", "--output", "run").code == 0
    assert "run: finished already, nothing is trained" in mwuf("run", "one.toml", "--output", "run").out
    assert mwuf("compare", "study.toml", "--output", "out").code == 0
    assert mwuf("tune", "tune.toml", "--output", "tuned").code == 0
