"""The command line as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwuf_dist import cli
from tests.cli.command import SHORT, Done, Mwuf, write


@pytest.fixture
def mwuf(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mwuf:
    """Calls a command in an empty folder; arguments are made strings."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        done = Done(int(end.value.code or 0), captured.out, captured.err)
        assert "Traceback" not in done.said and "pydantic.dev" not in done.said
        return done

    return call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "short.toml", SHORT)
