"""What happens to a run on Ray when its parts are killed, hang, or are asked to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import build, merge, to_toml
from mwuf_dist.launch import local
from tests.faults.ranks import VALUES, finished
from tests.training.test_resume import assert_same, outcome

pytestmark = [pytest.mark.ray, pytest.mark.dist]

# Long enough for every fault to find the run at work.
LONG = merge(VALUES, {"pretrain": {"epochs": 60, "learning_rate": 1e-3}, "runtime": {"timeout_s": 8}})
STEP = re.compile(r"pretrain-0-(\d+)-(\d+)")


def processes(title: str) -> list[int]:
    """Ids of the processes that Ray calls so, those that have been stopped left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_stopped = (path / "stat").read_text().rpartition(")")[2].split()[0] in "TZ"
            if (path / "cmdline").read_bytes().startswith(title.encode()) and not is_stopped:
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return sorted(found)


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("this has not come to pass")


def checkpoint(folder: Path) -> str:
    pointer = folder / "checkpoints" / "LATEST"
    return pointer.read_text() if pointer.exists() else ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_coordinator_killed_a_rank_killed_and_one_that_hangs_leave_the_run_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    from mwuf_dist.launch import ray as ray_launcher

    folder = tmp_path / "ray"
    faults: list[str] = []

    def next_save() -> None:
        before = checkpoint(folder)
        wait_until(lambda: checkpoint(folder) not in ("", before))

    def do(name: str, title: str, number: signal.Signals) -> None:
        os.kill(wait_until(lambda: processes(title))[-1], number)
        assert STEP.fullmatch(checkpoint(folder)), "in the middle of pretrain"
        faults.append(name)

    def disturb() -> None:
        next_save()
        do("coordinator", "ray::LaneCoordinator", signal.SIGKILL)
        next_save()  # the ranks have found the new one, or there would be none
        do("rank", "ray::_Rank.train", signal.SIGKILL)
        next_save()
        do("hang", "ray::_Rank.train", signal.SIGSTOP)

    ray.shutdown()  # what other tests have started has two CPUs
    ray.init("local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        ray_launcher.train(build(LONG), folder, 2)
        thread.join(5)
    finally:
        ray.shutdown()
    assert faults == ["coordinator", "rank", "hang"]
    said = capfd.readouterr().out
    assert re.search(r"a rank was lost \((rank \d has died|.*rank \d does not answer)", said)
    assert re.search(r"a rank was lost \(rank \d stops, because rank \d does not answer: it has died or hangs\)", said)
    finished(tmp_path / "undisturbed", 2, values=LONG)
    assert_same(outcome(folder), outcome(tmp_path / "undisturbed"))


@pytest.mark.timeout(600)
def test_sigterm_to_the_launcher_makes_the_ranks_save_and_leave_and_says_so(tmp_path: Path) -> None:
    # Nothing is saved by the clock: what is saved is the request's doing.
    values = merge(LONG, {"checkpoint": {"every_s": 0.0}, "pretrain": {"epochs": 400}})
    config, folder, log = tmp_path / "run.toml", tmp_path / "run", tmp_path / "log"
    config.write_text(to_toml(build(values)))
    command = [sys.executable, "-m", "mwuf_dist", "run", str(config), "--output", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("w") as output:
        run = subprocess.Popen(
            [*command, "--launcher", "ray", "--num-workers", "2"], env=environment, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: run.poll() is not None or (folder / "tensorboard").exists())  # made at the first record
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM, log.read_text()
    finally:
        run.kill()
        run.wait()
    assert STEP.fullmatch(checkpoint(folder))
    assert f"mwuf: stopped by SIGTERM; the same command goes on from {checkpoint(folder)}\n" in log.read_text()
    assert "Traceback" not in log.read_text()
    found = local.train(build(values), folder)
    assert found["stages"]["pretrain"]["samples"] == 400 * found["split"]["pretrain"]
