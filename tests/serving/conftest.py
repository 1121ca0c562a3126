"""One finished tiny run for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.finished_run import FinishedRun, load_run, open_run
from mwuf_dist.serving.run_files import read_run
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


@pytest.fixture(scope="module")
def runtime(run_folder: Path) -> Iterator[Runtime]:
    with start(read_run(run_folder)[0]) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def opened(run_folder: Path, runtime: Runtime) -> FinishedRun:
    """The run, in the module's process group."""
    return load_run(run_folder, runtime)
