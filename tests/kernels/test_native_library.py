"""The compiled library is code: only one that nobody else can have put there, and that is whole, is loaded."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mwuf_kernels import native

from tests.waiting import LONGEST_S

FOUND = native.compiler()
pytestmark = pytest.mark.skipif(FOUND is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def made() -> Path:
    assert FOUND is not None
    return native._compiled(FOUND)


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(native.subprocess, "run", _compile_by_copy(made))
    path = tmp_path / "cache" / "native" / made.name
    path.parent.mkdir(parents=True)
    shutil.copy(made, path)
    path.chmod(0o755)
    return path


def _compile_by_copy(made: Path):
    real = native.subprocess.run

    def run(command, **options):
        if "-o" not in command:
            return real(command, **options)
        Path(command[-1]).write_bytes(made.read_bytes()[:-32])
        return None

    return run


@pytest.mark.parametrize("damage", ["empty", "cut", "bit"])
def test_a_damaged_library_is_made_again(damage: str, copy: Path) -> None:
    whole = copy.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 1
    copy.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "bit": bytes(spoilt)}[damage])
    assert native._compiled(str(FOUND)) == copy
    assert copy.read_bytes() == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_library_of_another_user_is_never_loaded(copy: Path) -> None:
    planted = b"code of another user"
    copy.write_bytes(planted)
    os.chown(copy, 12345, 12345)
    assert native._compiled(str(FOUND)) == copy, "the folder is ours, so what lies there is replaced"
    assert copy.read_bytes() != planted and copy.stat().st_uid == 0


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_that_others_may_write_is_passed_over(
    mode: int, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(native, "_is_private", lambda group: False)
    copy.parent.chmod(mode)
    assert native._compiled(str(FOUND)).is_relative_to(tmp_path / "home")
    (tmp_path / "home" / ".cache").chmod(mode)
    with pytest.raises(RuntimeError, match="no folder for it is this user's alone"):
        native._compiled(str(FOUND))


def test_of_processes_that_ask_at_once_one_compiles(tmp_path: Path):
    wrapper, log = tmp_path / "counting-c++", tmp_path / "log"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {FOUND} "$@"\n')
    wrapper.chmod(0o755)
    code = "from mwuf_kernels import native; assert native.library() is not None"
    environment = os.environ | {"CXX": str(wrapper), "HOME": str(tmp_path), "MWUF_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("MWUF_NATIVE", None)  # where the suite plays a machine without a compiler
    asking = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(LONGEST_S) for process in asking] == [0, 0, 0]
    assert sum("-shared" in line for line in log.read_text().splitlines()) == 1


def test_a_process_that_stops_while_it_compiles_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "LOCK_S", 0.3)
    monkeypatch.setattr(native, "_folder", lambda: tmp_path)
    monkeypatch.setattr(native, "_compile", lambda found, path: path.write_bytes(b"compiled"))
    compiler = native.compiler()
    assert compiler is not None
    path = tmp_path / f"kernels-{native._name(compiler)}.so"
    with (tmp_path / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert native._compiled(compiler) == path
    assert path.read_bytes() == b"compiled"


def test_a_compiler_that_takes_too_long_is_said_to_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-c++"
    slow.write_text('#!/bin/sh\ncase "$*" in *--version*) echo slow;; *) exec sleep 60;; esac\n')
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.delenv("MWUF_NATIVE", raising=False)
    monkeypatch.setattr(native, "COMPILE_S", 0.2)
    monkeypatch.setattr(native, "_folder", lambda: tmp_path)
    with pytest.warns(UserWarning, match=r"took longer than 0\.2 s .*`mwuf doctor`") as said:
        assert native.library.__wrapped__() is None
    assert len(said) == 1 and "cannot compile" not in str(said[0].message)
