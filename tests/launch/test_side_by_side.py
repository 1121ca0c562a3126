"""Runs of a study in worker processes: the same results as here, failures told, the rest done."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import RuntimeConfig, UserError
from mwuf_dist.launch import local
from mwuf_dist.runtime.shutdown import StoppedError
from mwuf_dist.studies import compare
from mwuf_dist.studies.schedule import Failure, Here, Task, do_tasks
from tests.cli.command import FEW_STEPS
from tests.tiny import tiny
from tests.waiting import LONGEST_S

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.dist]


@pytest.fixture(scope="module")
def runner(start_ray: Any) -> Iterator[Any]:
    from mwuf_dist.launch.side_by_side import side_by_side

    start_ray()
    with side_by_side(2, RuntimeConfig()) as found:
        yield found


def test_a_study_side_by_side_finds_what_one_process_finds_and_outlives_a_failure(runner: Any, tmp_path: Path) -> None:
    good = [tiny(**FEW_STEPS, method={"name": name}) for name in ("base", "mwuf")]
    bad = tiny(**FEW_STEPS, method={"name": "metaemb", "initialisation": "mean"})
    actions = compare.Actions(local.train, local.pretrain)
    found = compare.compare([*good, bad], tmp_path / "ray", actions, lambda _: nullcontext(runner), lambda _: None)
    here = compare.compare(good, tmp_path / "here", actions, lambda _: nullcontext(Here()), lambda _: None)
    assert found.failures.keys() == {"deepfm-metaemb-seed0"}
    assert "is an initialisation itself" in found.failures["deepfm-metaemb-seed0"].reason
    assert [cell["phases"] for cell in found.records.cells] == [cell["phases"] for cell in here.records.cells]
    assert [cell["scores"] for cell in found.records.cells] == [cell["scores"] for cell in here.records.cells]


def test_workers_stand_in_the_folder_of_the_caller_and_see_no_bug_as_the_end(runner: Any) -> None:
    tasks = [
        Task("folder", os.getcwd),
        Task("bug", functools.partial(int, "x")),
        Task("user", functools.partial(open, "/nowhere/at/all")),
        Task("threads", functools.partial(os.environ.get, "OMP_NUM_THREADS")),
        Task("after", lambda folder: len(folder), ("folder",)),
    ]
    found = do_tasks(tasks, runner, lambda *_: None)
    assert found["folder"] == os.getcwd() and found["after"] == len(os.getcwd())
    assert isinstance(found["bug"], Failure) and found["bug"].reason.startswith("ValueError: ")
    assert isinstance(found["user"], Failure)
    assert found["threads"] == "1"


def test_a_worker_that_dies_again_and_again_is_a_failure(runner: Any) -> None:
    found = do_tasks([Task("dies", functools.partial(os._exit, 1))], runner, lambda *_: None)
    assert found["dies"].reason.startswith("its process was lost")


def test_a_run_that_fits_nowhere_is_refused(runner: Any) -> None:
    from mwuf_dist.launch.side_by_side import side_by_side

    with pytest.raises(UserError, match="not one run fits"), side_by_side(0, RuntimeConfig(threads=999)):
        pass


def test_sigterm_ends_a_study_as_a_request_and_not_with_the_stack_that_ray_prints(runner: Any) -> None:
    from mwuf_dist.launch.side_by_side import side_by_side

    def stopped() -> None:
        with side_by_side(1, RuntimeConfig()) as found:
            found.submit(Task("sleeps", functools.partial(time.sleep, 60)), ())
            os.kill(os.getpid(), signal.SIGTERM)
            found.wait()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError):
        stopped()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_of_this_machine_has_a_token_listens_on_the_loopback_alone_and_is_missed_when_it_stops() -> None:
    """Ray notes the last `ray start` in a file, and by itself would join it instead of making a cluster."""
    # Not pytest's folder: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="mwuf-ray-") as scratch:
        (Path(scratch) / "ray").mkdir()
        (Path(scratch) / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
        environment = {
            key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")
        } | {"RAY_TMPDIR": scratch}
        command = [sys.executable, "-m", "tests.launch.own_cluster"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    found = json.loads(done.stdout.splitlines()[0])
    assert found["token"], done.stderr[-2000:]
    assert {"gcs_server", "raylet"} <= {Path(whose.split(" ")[0]).name for whose in found["listening"].values()}
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:")  # 127.0.0.1, each four bytes the other way round
    assert not {place: whose for place, whose in found["listening"].items() if not place.startswith(loopback)}
    assert done.returncode == 1
    assert "mwuf: Ray is stopped or hangs: its GCS gives no answer for 2 s; the same command goes on" in done.stderr
