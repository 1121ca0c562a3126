"""A folder has one writer; who comes second is told who it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mwuf_dist import locks
from mwuf_dist.config import UserError
from mwuf_dist.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from mwuf_dist.locks import locked
with locked(Path(sys.argv[1]), "warm"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GRACE_S", 0.2)
    monkeypatch.setattr(locks, "LEASE_S", 1.0)


def _holder(lock: Path, host: str, age_s: float = 0.0) -> None:
    lock.write_text(json.dumps({"command": "run\x1b[2J", "pid": 7, "host": host, "boot": "another", "since": "today"}))
    os.utime(lock, (time.time() - age_s,) * 2)


@pytest.mark.parametrize("is_there", [True, False])
def test_who_holds_a_folder_finds_nothing_of_a_killed_write_beside_it(is_there: bool, tmp_path: Path) -> None:
    for name in (".out.was", ".out.partial", *(("out",) if is_there else ())):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with locked(tmp_path / "out", "apply"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out" if is_there else ".out.was"]


def test_the_second_is_told_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        who = rf"out: is being written by `mwuf warm` \(process {first.pid} on "
        with pytest.raises(UserError, match=who), locked(tmp_path / "out", "run"):
            pass
        first.send_signal(signal.SIGKILL)
    with locked(tmp_path / "out", "run"):
        pass
    assert not [*tmp_path.iterdir()]


def test_one_folder_by_two_names_has_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    told = pytest.raises(UserError, match="is being written")
    with locked(tmp_path / "out", "run"), told, locked(tmp_path / "link", "run"):
        pass


def test_who_may_wait_waits_and_says_for_whom_once(tmp_path: Path) -> None:
    told: list[str] = []
    release = threading.Event()

    def first() -> None:
        with locked(tmp_path / "out", "prepare"):
            held.set()
            release.wait(10)

    held = threading.Event()
    holder = threading.Thread(target=first)
    holder.start()
    held.wait(10)

    def tell(text: str) -> None:
        told.append(text)
        release.set()

    with locked(tmp_path / "out", "prepare", wait=tell):
        holder.join()
    assert len(told) == 1 and "`mwuf prepare`" in told[0]


def test_a_holder_that_is_stopped_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE_S", 0.5)
    told: list[str] = []
    with (tmp_path / ".out.lock").open("w") as lock:
        lock.write('{"command": "prepare", "pid": 7, "host": "here"}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that is stopped: it holds the lock and renews nothing
        with (
            pytest.raises(UserError, match=r"`mwuf prepare` \(process 7 .* gives no sign for 0.5 s: it is stopped or"),
            locked(tmp_path / "out", "prepare", wait=told.append),
        ):
            pass
    assert len(told) == 1


def test_a_lease_of_another_host_counts_as_long_as_it_is_renewed(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    _holder(lock, "elsewhere")
    renewing = threading.Timer(0.3, lambda: os.utime(lock))
    renewing.start()
    with (
        pytest.raises(UserError, match=r"`mwuf run\\x1b\[2J` \(process 7 on elsewhere"),
        locked(tmp_path / "out", "run"),
    ):
        pass
    renewing.join()
    _holder(lock, "elsewhere", age_s=0.7)
    clock = time.monotonic()
    with locked(tmp_path / "out", "run"):
        assert time.monotonic() - clock > 0.1, "it may have been alive"
    assert not lock.exists()


def test_folders_that_only_the_lock_needed_are_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "out", "run"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not [*tmp_path.iterdir()]
