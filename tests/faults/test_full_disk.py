"""A disk that is full at any write of any command: one line, and what was there before is as it was.

The exit code is 2; that of `compare` and `tune`, where a run of the study has failed, 1.

The disk is a tmpfs of a few MB, with as much room as a case leaves; where none can be mounted, the tests are skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.power_cuts import CONFIG
from mwuf_dist.config import to_toml
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.serving.warm.follow import follow
from mwuf_dist.serving.warm.sources import FolderSource
from tests.faults.ranks import _FORKS, _process
from tests.waiting import LONGEST_S

pytestmark = pytest.mark.dist

_PAGE = 4096
# What nothing should leave: scratch, partial and temporary files and folders, and locks.
_LEFT = re.compile(r"(^|/)\.[^/]*\.(tmp|partial|was|lock)|\.scratch|(^|/)\.lock$")
_DISK_MB = 24
# Words of each command; in the disk's folder `run` is a finished run, `live` one with deltas, and `copy` its like.
COMMANDS: dict[str, list[str]] = {
    "run": ["run", "config.toml", "--output", "new"],
    "prepare": ["prepare", "config.toml", "--data.prepared-dir", "shards", "--data.warm-rows", "7"],
    "compare": ["compare", "study.toml", "--output", "compared", "--parallel", "1"],
    "tune": ["tune", "search.toml", "--output", "tuned", "--parallel", "1"],
    "export": ["export", "run", "--old-items", "--output", "exported"],
    "warm": ["warm", "run", "--interactions", "today.csv", "--output", "tuesday"],
    "catch-up": ["export", "run", "--catch-up", "all", "--output", "exported"],
    "follow": ["warm", "run", "--follow", "clicks", "--until-idle", "--output", "followed"],
    "apply": ["apply", "run", "live/deltas", "--output", "copy"],
    "explain": ["explain", "run", "--item", "ITEM"],
    "init": ["init", "plays.csv", "--output", "logs.toml"],
    "vectors": ["vectors", "items.csv", "--fields", "name", "--size", "2", "--output", "vectors.parquet"],
    "synthesize": ["synthesize", "synthetic", "--rows", "20_000", "--output", "made"],
}
# What these have written stays, and the same command goes on from it.
STUDIES = ("compare", "tune")
GO_ON = ("run", *STUDIES, "follow", "catch-up")  # the last writes a job and then an export of it
# Left free, in fractions of what the command takes: with every run of the tests, and with --slow.
FEW, MANY = (0.0, 0.6), (0.02, 0.1, 0.25, 0.4, 0.8, 0.95)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a disk of its own (tmpfs) cannot be mounted here: it takes root, or a user's name space")
    try:
        _fill(folder)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path) -> None:
    """A finished run, what commands read, and a run with deltas."""
    local.train(CONFIG, disk / "run")
    with open_run(disk / "run") as run:
        item, users = run.new_item_ids[0], run.user_ids.to_pylist()[:6]
    lines = [f"{user},{item},{number % 2},{number}\n" for number, user in enumerate(users)]
    (disk / "today.csv").write_text("".join(["user_id,item_id,label,timestamp\n", *lines]))
    rows = {"user_id": users, "item_id": [item] * 6, "label": [1, 0, 1, 1, 0, 1], "timestamp": list(range(6))}
    (disk / "clicks").mkdir()
    pq.write_table(pa.table(rows), disk / "clicks" / "today.parquet")
    with start(CONFIG) as runtime:
        follow(disk / "run", FolderSource(disk / "clicks"), disk / "live", runtime, until_idle=True)
    (disk / "items.csv").write_text("".join(["item_id,name\n", *(f"{n},a film of part {n}\n" for n in range(20))]))
    plays = (f"{n % 97},{n % (7 + n % 31)},{n % 2},{n}\n" for n in range(3000))
    (disk / "plays.csv").write_text("".join(["user_id,item_id,label,timestamp\n", *plays]))
    (disk / "config.toml").write_text(to_toml(CONFIG))
    plain = to_toml(CONFIG).replace("seed = 0\n", "", 1)
    (disk / "study.toml").write_text(plain + '\n[study]\nseeds = 1\n[[study.runs]]\nmethod.name = "base"\n')
    search = '\n[tune]\nfolds = 1\n[[tune.settings]]\nmethod = {name = "base"}\n'
    (disk / "search.toml").write_text(plain + search)
    COMMANDS["explain"][-1] = str(item)


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.name != "filler"
    }


def _room(disk: Path) -> int:
    about = os.statvfs(disk)
    return about.f_bavail * about.f_frsize


@contextlib.contextmanager
def _left(disk: Path, num_bytes: int) -> Iterator[None]:
    """Leaves so much room on the disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _room(disk) - num_bytes // _PAGE * _PAGE)
    try:
        yield
    finally:
        filler.unlink()


def _main(folder: str, words: list[str]) -> None:
    os.chdir(folder)
    from mwuf_dist.cli import main

    main(words)


def _done(disk: Path, words: list[str], log: Path) -> tuple[int, str]:
    """Does a command in a process of its own: its exit code, and what it said."""
    environment = {"MWUF_CACHE_DIR": os.environ["MWUF_CACHE_DIR"], "OMP_NUM_THREADS": "1", "TMPDIR": str(log.parent)}
    process = _FORKS.Process(target=_process, args=(_main, (str(disk), words), environment, str(log)))
    process.start()
    process.join(LONGEST_S)
    code = process.exitcode
    process.kill()
    return (-1 if code is None else code), log.read_text()


def _tried(command: str, disk: Path, log: Path, fractions: tuple[float, ...]) -> None:
    words, before, room = COMMANDS[command], _tree(disk), _room(disk)
    code, said = _done(disk, words, log)
    assert code == 0, (command, said)
    takes = room - _room(disk)
    _removed(disk, before)
    for fraction in fractions:
        with _left(disk, int(fraction * takes)):
            code, said = _done(disk, words, log)
            found = _tree(disk)
        last = said.strip().splitlines()[-1:] or [""]
        assert "Traceback" not in said, (command, fraction, said)
        if code == 0:  # all but a picture is there
            assert "not drawn" in said, (command, fraction, said)
        elif command in STUDIES and code == 1:
            assert "failed: the same command does what is missing" in last[0], (command, fraction, said)
        else:
            assert code == 2 and last[0].startswith("mwuf: "), (command, fraction, code, said)
        assert "make room" in said or "No space left" in said, (command, fraction, said)
        changed = {path for path, content in before.items() if found.get(path) != content}
        assert not changed, (command, fraction, changed)
        if command not in GO_ON:
            assert not found.keys() - before.keys(), (command, fraction, found.keys() - before.keys())
        code, said = _done(disk, words, log)
        assert code == 0, (command, fraction, said)
        left = [path for path in _tree(disk) if _LEFT.search(path)]
        assert not left, (command, fraction, left)
        _removed(disk, before)


def _removed(disk: Path, before: dict[str, str]) -> None:
    for path in sorted(_tree(disk).keys() - before.keys(), reverse=True):
        (disk / path).rmdir() if (disk / path).is_dir() else (disk / path).unlink()
    assert _tree(disk) == before


@pytest.mark.parametrize("command", ["warm", "export", "apply", "follow", "init"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(command: str, disk: Path, tmp_path: Path) -> None:
    _tried(command, disk, tmp_path / "log", FEW)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_at_any_write_too(command: str, disk: Path, tmp_path: Path) -> None:
    _tried(command, disk, tmp_path / "log", MANY)
