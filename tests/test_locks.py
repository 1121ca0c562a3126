"""A folder has one writer; who comes second is told who it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mwuf_dist import locks
from mwuf_dist.config import UserError
from mwuf_dist.locks import locked
from tests.waiting import LONGEST_S

HOLD = """
import sys, time
from pathlib import Path
from mwuf_dist.locks import locked
with locked(Path(sys.argv[1]), "warm"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GRACE_S", 0.2)


def _holder(lock: Path, host: str) -> None:
    lock.write_text(json.dumps({"command": "run\x1b[2J", "pid": 7, "host": host, "boot": "another", "since": "today"}))


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
            release.wait(LONGEST_S)

    held = threading.Event()
    holder = threading.Thread(target=first)
    holder.start()
    assert held.wait(LONGEST_S)

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


@pytest.mark.parametrize("is_renewed", [True, False])
def test_a_lease_of_another_host_counts_as_long_as_it_is_renewed(
    is_renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, looks = tmp_path / ".out.lock", []

    def now_ns(_folder: Path) -> int:
        """Of the file system's clock, at each look eight seconds later; the other host renews before the third."""
        looks.append(int((8 * len(looks) + 1) * 1e9))
        if is_renewed and len(looks) == 3:
            os.utime(lock, ns=(looks[-1],) * 2)
        return looks[-1]

    monkeypatch.setattr(locks, "_now_ns", now_ns)
    _holder(lock, "elsewhere")
    os.utime(lock, ns=(1, 1))
    if is_renewed:
        told = pytest.raises(UserError, match=r"`mwuf run\\x1b\[2J` \(process 7 on elsewhere")
        with told, locked(tmp_path / "out", "run"):
            pass
    else:
        with locked(tmp_path / "out", "run"):
            assert looks[-2] < locks.LEASE_S * 1e9 < looks[-1], "it may have been alive"
        assert not lock.exists()


def test_folders_that_only_the_lock_needed_are_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "out", "run"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not [*tmp_path.iterdir()]
