"""What happens to a run on Ray when its parts are killed, hang, or are asked to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.processes import descendants, title_of
from mwuf_dist.config import build, merge, to_toml
from mwuf_dist.launch import local
from tests.faults.paced import begun, paced, process_of
from tests.faults.ranks import VALUES, finished
from tests.training.test_resume import assert_same, outcome
from tests.waiting import LONGEST_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.dist]

# Pretraining has a thousand steps, and is slow until every fault has found it at work: a second a step.
LONG = merge(VALUES, {"pretrain": {"epochs": 60, "learning_rate": 1e-3}, "runtime": {"timeout_s": 8}})
STEP = re.compile(r"pretrain-0-(\d+)-(\d+)")


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

    folder, go_on = tmp_path / "ray", tmp_path / "go-on"
    values = merge(LONG, paced(go_on))
    faults: list[str] = []

    def next_save() -> None:
        before = checkpoint(folder)
        wait_until(lambda: checkpoint(folder) not in ("", before))

    def coordinator() -> list[int]:
        """Of our cluster: this host may have others."""
        return [one for one in descendants({os.getpid()}) if title_of(one).startswith("ray::LaneCoordinator")]

    def rank_1() -> int:  # rank 0 has the store in which the ranks meet: its end is told otherwise
        return int(process_of(go_on, "1").read_text())

    def do(name: str, process: int, number: signal.Signals) -> None:
        os.kill(process, number)
        assert STEP.fullmatch(checkpoint(folder)), "in the middle of pretrain"
        faults.append(name)

    def disturb() -> None:
        try:
            next_save()
            do("coordinator", wait_until(coordinator)[0], signal.SIGKILL)
            next_save()  # the ranks have found the new one, or there would be none
            do("rank", rank_1(), signal.SIGKILL)
            next_save()
            do("hang", rank_1(), signal.SIGSTOP)
        finally:
            go_on.touch()

    ray.shutdown()  # what other tests have started has two CPUs
    ray.init("local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        ray_launcher.train(build(values), folder, 2)
        thread.join()
    finally:
        ray.shutdown()
    assert faults == ["coordinator", "rank", "hang"]
    said = capfd.readouterr().out
    assert re.search(r"a rank was lost \((rank \d has died|.*rank \d does not answer)", said)
    assert re.search(r"a rank was lost \(rank \d stops, because rank \d does not answer: it has died or hangs\)", said)
    finished(tmp_path / "undisturbed", 2, values=values)
    assert_same(outcome(folder), outcome(tmp_path / "undisturbed"))


@pytest.mark.timeout(600)
def test_sigterm_to_the_launcher_makes_the_ranks_save_and_leave_and_says_so(tmp_path: Path) -> None:
    # Nothing is saved by the clock: what is saved is the request's doing.
    go_on = tmp_path / "go-on"
    values = merge(merge(LONG, {"checkpoint": {"every_s": 0.0}}), paced(go_on))
    config, folder, log = tmp_path / "run.toml", tmp_path / "run", tmp_path / "log"
    config.write_text(to_toml(build(values)))
    command = [sys.executable, "-m", "mwuf_dist", "run", str(config), "--output", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("w") as output:
        run = subprocess.Popen(
            [*command, "--launcher", "ray", "--num-workers", "2"], env=environment, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: run.poll() is not None or begun(go_on).exists(), log.read_text)
        run.send_signal(signal.SIGTERM)
        assert run.wait(LONGEST_S) == 128 + signal.SIGTERM, log.read_text()
    finally:
        run.kill()
        run.wait()
    assert STEP.fullmatch(checkpoint(folder))
    assert f"mwuf: stopped by SIGTERM; the same command goes on from {checkpoint(folder)}\n" in log.read_text()
    assert "Traceback" not in log.read_text()
    go_on.touch()
    found = local.train(build(values), folder)
    assert found["stages"]["pretrain"]["samples"] == 60 * found["split"]["pretrain"]
