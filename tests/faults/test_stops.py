"""A run that is asked to stop, loses a rank, finds the disk full or has a slow rank: what it says, what is left."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mwuf_dist.config import CheckpointConfig, merge, to_toml
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.checkpoint import save
from mwuf_dist.training.checkpoint.save import SavePolicy
from tests.faults.paced import begun, paced, process_of
from tests.faults.ranks import (
    HANGS,
    META_TRAIN_STEP,
    PRETRAIN_STEP,
    SAVE,
    VALUES,
    WARM_UP_STEP,
    WRITE_SPLIT,
    Fault,
    ends,
    finished,
    launched,
)
from tests.tiny import tiny
from tests.training.test_resume import Outcome, assert_same, outcome
from tests.waiting import LONGEST_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
STOPPED = 128 + signal.SIGTERM
KILLED = -signal.SIGKILL
# Saves at the ends of stages only: a save in the middle of one is a request's doing.
AT_ENDS = merge(VALUES, {"checkpoint": {"every_s": 0}})
IMPATIENT = merge(VALUES, {"runtime": {"timeout_s": 3}})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    found = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        finished(folder, ranks, values=AT_ENDS)
        found[ranks] = outcome(folder)
    return found


def latest(folder: Path) -> str:
    return (folder / "checkpoints" / "LATEST").read_text()


def test_sigterm_saves_leaves_with_143_and_the_same_command_goes_on_to_the_same_bits(
    undisturbed: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # In a step; in a save (1 is that of the end of pretrain); where no state is saved; where nothing is held back.
    for place, left in (
        (Fault(PRETRAIN_STEP, 6, what="terminate"), "pretrain-0-0-00000007"),
        (Fault(SAVE, 0, what="terminate"), "meta_train-0-0-00000000"),
        (Fault(META_TRAIN_STEP, 2, what="terminate"), "meta_train-1-0-00000003"),
        (Fault(WARM_UP_STEP, 2, what="terminate"), "warm_up-1-0-00000000"),
    ):
        with launched(folder, 1, [place], values=AT_ENDS) as launch:
            assert launch.wait() == [STOPPED], launch.said()
            assert f"mwuf: stopped by SIGTERM; the same command goes on from {left}\n" in launch.said()
        assert latest(folder) == left
    finished(folder, values=AT_ENDS)
    assert_same(outcome(folder), undisturbed[1])


@pytest.mark.dist
def test_sigterm_to_one_of_two_ranks_stops_both_at_the_same_step(undisturbed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(folder, 2, [Fault(PRETRAIN_STEP, 6, rank=1, what="terminate")], values=AT_ENDS) as launch:
        assert launch.wait() == [STOPPED, STOPPED], launch.said()
        for rank in range(2):
            assert f"goes on from {latest(folder)}\n" in launch.said(rank)
    assert latest(folder).startswith("pretrain-0-0-") and latest(folder) >= "pretrain-0-0-00000007"
    finished(folder, 2, values=AT_ENDS)
    assert_same(outcome(folder), undisturbed[2])


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def test_sigterm_in_prepare_leaves_at_once_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    place = Fault(WRITE_SPLIT, 2, what="terminate")
    assert ends(tmp_path / "run", 1, [place], cache=tmp_path / "cache") == [STOPPED]
    assert [path for path in (tmp_path / "cache" / "prepared").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_a_run_that_hangs(second: signal.Signals, tmp_path: Path) -> None:
    with launched(tmp_path / "run", 1, [Fault(PRETRAIN_STEP, 3, what="hang")]) as launch:
        (process,) = launch.processes
        wait_until(lambda: HANGS in launch.said(), launch.said)
        assert catches(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGTERM)
        # Two that come before the first is handled are one.
        wait_until(lambda: not process.is_alive() or not catches(process.pid, signal.SIGTERM), launch.said)
        assert process.is_alive(), "the first waits for the end of the step"
        os.kill(process.pid, second)
        assert launch.wait() == [-second]


@pytest.mark.dist
def test_a_rank_that_hangs_is_noticed_in_time_and_named(tmp_path: Path) -> None:
    with launched(tmp_path / "run", 2, [Fault(PRETRAIN_STEP, 3, rank=1, what="stop")], values=IMPATIENT) as launch:
        zero, one = launch.processes
        zero.join(LONGEST_S)
        assert zero.exitcode == 1 and one.is_alive(), launch.said()
        assert "rank 0 stops, because rank 1 does not answer: it has died or hangs; the same" in launch.said(0)


@pytest.mark.dist
def test_a_rank_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    with launched(tmp_path / "run", 2, [Fault(PRETRAIN_STEP, 3, rank=0, what="fail")]) as launch:
        assert launch.wait() == [1, 1]
        reason = "rank 1 stops, because rank 0 has ended: ValueError: the moon is in the wrong house; the same command"
        assert reason in launch.said(1)


@pytest.mark.dist
def test_a_prepare_longer_than_the_timeout_is_waited_for_but_not_a_dead_rank(tmp_path: Path) -> None:
    wait = Fault(WRITE_SPLIT, 0, rank=0, what="wait")  # 4 s, of 3
    end = Fault(PRETRAIN_STEP)  # both have come so far
    assert ends(tmp_path / "long", 2, [wait, end], values=IMPATIENT, cache=tmp_path / "cache") == [KILLED, KILLED]
    stop = Fault(WRITE_SPLIT, 1, rank=0, what="stop")
    with launched(tmp_path / "dead", 2, [stop], values=IMPATIENT, cache=tmp_path / "dead-cache") as launch:
        launch.processes[1].join(LONGEST_S)
        assert launch.processes[1].exitcode == 1
        assert "rank 0 has given no sign for 3 s" in launch.said(1)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(ranks: int, undisturbed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched(folder, ranks, [Fault(SAVE, 1, rank=ranks - 1, what="fill the disk")], AT_ENDS) as launch:
        assert launch.wait() == [2] * ranks, launch.said()
        assert "the checkpoint cannot be written (" in launch.said() and "): make room, then the same" in launch.said()
        assert "File too large" in launch.said() or "the disk is full" in launch.said()
        assert f"goes on from {latest(folder)}, which is whole" in launch.said()
        assert "Traceback" not in launch.said()
    assert f"goes on from {latest(folder)}\n" in finished(folder, ranks, values=AT_ENDS)
    assert_same(outcome(folder), undisturbed[ranks])


@pytest.mark.dist
def test_a_slow_rank_changes_nothing(undisturbed: Any, tmp_path: Path) -> None:
    slow = [Fault(PRETRAIN_STEP, 3, rank=1, what="wait"), Fault(META_TRAIN_STEP, 3, rank=0, what="wait")]
    finished(tmp_path / "run", 2, faults=slow, values=AT_ENDS)
    assert_same(outcome(tmp_path / "run"), undisturbed[2])


def test_a_clock_on_the_wall_that_jumps_neither_hastens_nor_stops_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    jumps = itertools.cycle([1e9, 0.0, -1e9])
    # Its own clock alone: what other threads of this process ask theirs must not make this one go on.
    walls = dict.fromkeys(("time", "perf_counter"), lambda: next(jumps))
    monkeypatch.setattr(save, "time", SimpleNamespace(monotonic=lambda: next(seconds), **walls))
    policy = SavePolicy(CheckpointConfig(every_s=10), Runtime(0, 1, torch.device("cpu"), False))
    due = []
    for step in range(1, 101):
        if policy.due(step):
            due.append(step)
            policy.saved()
    assert 5 <= len(due) <= 10
    assert max(b - a for a, b in itertools.pairwise(due)) == min(b - a for a, b in itertools.pairwise(due))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("ranks_of", ["rank", "launcher"])
def test_torchrun_passes_sigterm_on_and_the_run_goes_on(ranks_of: str, undisturbed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = tmp_path / "run.toml"
    go_on = tmp_path / "go-on"
    # Steps enough, should one of them take a second, for the longest wait for the signal.
    values = merge(merge(AT_ENDS, {"pretrain": {"epochs": 20}}), paced(go_on))
    config.write_text(to_toml(tiny(**values)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "mwuf_dist", "run", str(config), "--output", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        wait_until(lambda: run.poll() is not None or begun(go_on).exists())
        target = run.pid
        if ranks_of == "rank":
            target = int(process_of(go_on, "0").read_text())
        os.kill(target, signal.SIGTERM)
        said, _ = run.communicate(timeout=LONGEST_S)
    go_on.touch()
    assert run.returncode != 0 and "stopped by SIGTERM; the same command goes on from pretrain-0-" in said, said
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert again.returncode == 0 and f"goes on from {said.split('goes on from ')[1].split()[0]}" in again.stdout
    assert json.loads((folder / "results.json").read_text())["stages"]["pretrain"]["samples"] > 0
