"""What every test relies on: one thread, a cache of its own, the same draws, skips that say why and are counted."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

# Before anything imports torch or Ray. Two OpenMP teams on two cores make single steps 20 to 200 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hypothesis
import pytest

from tests.s3_server import s3, s3_server  # noqa: F401

# How long an example takes says nothing on a machine that others use too. The examples of a test are always the same:
# whether a change passes is no matter of luck. `make test PYTEST_ARGS=--hypothesis-profile=others` tries others.
_UNTIMED: Any = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("others", **_UNTIMED)
hypothesis.settings.register_profile("same", derandomize=True, **_UNTIMED)
hypothesis.settings.load_profile("same")

_NUM_GPU = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Prepared data go to a temporary folder, which the workers of one `pytest -n` share.

    The compiled library, whose file is named after all that it is made of, is the user's: compiling it takes 20 s.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    users = Path(os.environ.get("MWUF_CACHE_DIR") or "~/.cache/mwuf-dist").expanduser() / "native"
    users.mkdir(parents=True, exist_ok=True)
    (base / "mwuf-cache").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another worker's
        (base / "mwuf-cache" / "native").symlink_to(users.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MWUF_CACHE_DIR", str(base / "mwuf-cache"))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _draw_the_same()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _draw_the_same()


def _draw_the_same() -> None:
    """What a test and its fixtures draw without a seed of their own is the same in every run, alone and with others."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def movielens_dir() -> Path:
    """The folder that holds `ml-1m/` with the raw files of MovieLens-1M."""
    named = os.environ.get("MWUF_DATA_DIR")
    if not named:
        pytest.skip("MWUF_DATA_DIR is not set: it names the folder that holds ml-1m/ (MovieLens-1M)")
    folder = Path(named).expanduser().resolve()
    if not (folder / "ml-1m" / "ratings.dat").is_file():
        pytest.skip("MWUF_DATA_DIR has no ml-1m/ratings.dat (MovieLens-1M)")
    return folder


# A worker takes the next file when it has done its own, so the long ones go first: with Ray, with ranks, these.
LONG = ("kernels/test_interpreter", "test_quality", "test_house", "serving/test_export", "benchmarks/test_small")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would sort files by their number of tests


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _has_gpu():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_NUM_GPU] = len(left_out)
    ranks = {item.path for item in items if item.get_closest_marker("dist")}

    def order(item: pytest.Item) -> int:
        if item.get_closest_marker("ray"):
            return 0
        return 1 if item.path in ranks else 2 if _group(item) in LONG else 3

    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with `make test PYTEST_ARGS=--slow`"))
        if config.pluginmanager.hasplugin("xdist"):
            # One worker runs all of Ray, so that two clusters never share the cores, and each file, so that what its
            # tests share (prepared data, trained runs) is made once (`--dist loadgroup`).
            item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else _group(item)))
    items.sort(key=order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fails where pytest-xdist has not seen the groups, as with pytest 9.2: each worker would make all fixtures."""
    if hasattr(session.config, "workerinput") and session.config.getoption("loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "the tests are not in groups"


def _group(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of `pytest -n` ends: all have left out the same tests."""
    node.config.stash[_NUM_GPU] = getattr(node, "workeroutput", {}).get("num_gpu", 0)  # none of one that crashed


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Prints the skips after everything else; outermost, so that pytest's own last line stands above."""
    num_gpu = session.config.stash.get(_NUM_GPU, 0)
    if hasattr(session.config, "workerinput"):  # a worker of `pytest -n`: the main process has its reports
        session.config.workeroutput["num_gpu"] = num_gpu  # type: ignore[attr-defined]
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    num_gpu = session.config.stash.get(_NUM_GPU, 0)
    if num_gpu:
        reporter.write_line(f"Left out: {num_gpu} tests that need a CUDA device (torch sees none)")
    reasons = Counter(_reason(report) for report in reporter.stats.get("skipped", []))
    reporter.write_line(f"Skipped tests: {reasons.total()}")
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        reporter.write_line(f"  {count:4d}  {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # A skip's longrepr is (path, line, "Skipped: reason"), for a test and for a module alike.
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
