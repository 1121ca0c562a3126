"""One finished tiny run for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mwuf_dist.launch import local
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from tests.tiny import tiny


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "run"
    local.train(tiny(), folder)
    return folder


@pytest.fixture
def run(run_folder: Path) -> Iterator[FinishedRun]:
    with open_run(run_folder) as run:
        yield run
