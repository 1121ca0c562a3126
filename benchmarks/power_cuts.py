"""What a disk may hold after a power cut: the order of writes of a command, recorded and cut off at every place.

    python -m benchmarks.power_cuts

As ALICE and CrashMonkey do, at the calls of the system: what was never synced may be there or not. Of each moment three
kinds of state are made: all that was written (what a killed process leaves); every name that was given, with what was
synced of each file, nothing as a rule; and only names whose folder was synced, with what was synced of their files.
From each state the same command is called again, and has to end with the same result.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import Figure, Record, Row, command_line
from mwuf_dist import files
from mwuf_dist.cli import main as mwuf
from mwuf_dist.config import UserError, build, to_dict, to_toml
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.follow import follow
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.sources import FolderSource
from mwuf_dist.studies.records import read_records

CONFIG = build(
    {
        "data": {
            "name": "synthetic",
            "old_above": 60,
            "warm_rows": 8,
            "synthetic": {"num_rows": 20_000, "num_users": 300, "num_items": 300, "label_noise": 0.0},
        },
        "backbone": {"name": "deepfm", "hidden": [8], "batch_norm": True},
        "embedding": {"dim": 8, "init_std": 0.1},
        "pretrain": {"epochs": 1, "batch_size": 4096, "learning_rate": 1e-2},
        "meta_train": {"batch_size": 4096, "learning_rate_cold": 1e-2, "learning_rate_warm": 1e-2},
        "warm_up": {"batch_size": 4096, "learning_rate": 1e-2},
        "runtime": {"progress": "off"},
    }
)

Tree = dict[str, bytes | None]  # path -> content; None: a folder
_CALLS = ("fsync", "replace", "rename", "unlink", "link", "mkdir", "rmdir")


@dataclass
class Recording:
    """States of a folder, each once, in the order in which they came about."""

    folder: Path
    states: list[tuple[str, Tree]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _content: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    _synced: dict[int, bytes] = field(default_factory=dict)  # inode -> content
    # inode of a folder -> what it lists: inodes, and whether they are folders
    _listed: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listed[self.folder.stat().st_ino] = self._entries(self.folder)
        for path, inode, content in self._now():
            if content is None:
                self._listed[inode] = self._entries(path)
            else:
                self._synced[inode] = content

    def synced(self, descriptor: int) -> None:
        """A file or folder was synced."""
        about = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.folder):
            return
        if path.is_dir():
            self._listed[about.st_ino] = self._entries(path)
        else:
            self._synced[about.st_ino] = path.read_bytes()

    def moment(self, name: str) -> None:
        """Keeps the states in which the power may be cut now."""
        now = self._now()
        written = {self._name(path): content for path, _, content in now}
        named = {self._name(path): self._synced.get(inode, b"") if content is not None else None
                 for path, inode, content in now}  # fmt: skip
        durable: Tree = {}
        folders = [("", os.stat(self.folder).st_ino)]
        while folders:
            prefix, inode = folders.pop()
            for entry, (child, is_folder) in self._listed.get(inode, {}).items():
                durable[prefix + entry] = None if is_folder else self._synced.get(child, b"")
                if is_folder:
                    folders.append((f"{prefix}{entry}/", child))
        for kind, state in (("written", written), ("named", named), ("durable", durable)):
            digest = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
            if digest not in self._known:
                self._known.add(digest)
                self.states.append((f"{len(self.states)}: {kind} at {name}", state))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _entries(self, folder: Path) -> dict[str, tuple[int, bool]]:
        return {path.name: (path.lstat().st_ino, path.is_dir()) for path in folder.iterdir()}

    def _now(self) -> list[tuple[Path, int, bytes | None]]:
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                if path.is_dir():
                    found.append((path, about.st_ino, None))
                    continue
                key = about.st_ino, about.st_mtime_ns, about.st_size
                if key not in self._content:
                    self._content[key] = path.read_bytes()
                found.append((path, about.st_ino, self._content[key]))
        return found


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[Recording]:
    """Records what happens in a folder."""
    recording = Recording(folder.resolve())
    busy = False

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:
                return function(*args, **kwargs)
            busy = True
            try:
                recording.moment(f"{name} {args[0] if not isinstance(args[0], int) else ''}")
                result = function(*args, **kwargs)
                if name == "fsync":
                    recording.synced(args[0])
                recording.moment(f"after {name}")
                return result
            finally:
                busy = False

        return call

    real = {name: getattr(os, name) for name in _CALLS}
    try:
        for name, function in real.items():
            setattr(os, name, watched(name, function))
        yield recording
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def restore(state: Tree, folder: Path) -> None:
    """Makes a folder hold a state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sorted(state.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


def _run(base: Path) -> Any:
    results = local.train(CONFIG, base / "run")
    assert files.read_json(base / "run" / "results.json") == json.loads(json.dumps(results))
    lines, num_damaged = files.whole_lines(base / "run" / "metrics.jsonl")
    assert not num_damaged
    return results["phases"], lines, {name: one["samples"] for name, one in results["stages"].items()}


def _export(base: Path) -> Any:
    with open_run(base / "run") as run:
        folder = export(run, "npy", base / "export")
    _nothing_left(base)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


def _warm(base: Path) -> Any:
    with start(read_run(base / "run")[0]) as runtime:
        report = warm(base / "run", base.parent / "today" / "0.parquet", base / "tuesday", runtime)
    _nothing_left(base)
    return report.digest, _rows(base / "tuesday")


def _follow(base: Path) -> Any:
    with start(read_run(base / "run")[0]) as runtime:
        last = follow(base / "run", FolderSource(base.parent / "today"), base / "live", runtime, until_idle=True)
    _nothing_left(base)
    return last, _deltas(base / "live" / "deltas")


def _apply(base: Path) -> Any:
    """To a copy of the run, and to an export in its place; what is refused because it is done already is then whole."""
    for target, copy, done in (("run", base / "copy", "exists"), ("served", None, "is in already")):
        try:
            apply(base / target, [base / "followed" / "deltas"], copy)
        except UserError as error:
            if done not in str(error):
                raise
    _nothing_left(base)
    return _content(base / "served"), _rows(base / "copy")


def _compare(base: Path) -> Any:
    config = base.parent / "compare.toml"
    study = '\n[study]\nseeds = 1\n[[study.runs]]\nmethod.name = "base"\n[[study.runs]]\nmethod.name = "mwuf"\n'
    config.write_text(to_toml(CONFIG).replace("seed = 0\n", "", 1) + study)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = _exit_code(["compare", str(config), "--output", str(base / "compare"), "--parallel", "1"])
    assert code == 0, said.getvalue()[-500:]
    records = read_records(base / "compare" / "records.json")
    assert files.read_json(base / "compare" / "comparison.json")["rows"]
    return [(cell["method"], cell["phases"]) for cell in records.cells], records.audits


def _exit_code(words: list[str]) -> Any:
    try:
        mwuf(words)
    except SystemExit as end:
        return end.code


def _nothing_left(base: Path) -> None:
    assert not [path for path in base.iterdir() if path.name.startswith(".")]


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def _deltas(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _rows(job: Path) -> Any:
    return pq.read_table(job / "warm" / "rows.parquet")


# From what each begins: nothing, or a finished run with what came of it.
COMMANDS: dict[str, Callable[[Path], Any]] = {
    "run": _run, "export": _export, "warm": _warm, "follow": _follow, "apply": _apply, "compare": _compare,
}  # fmt: skip
FROM_NOTHING = ("run", "compare")
# Of the states of each, so many are tried (all, where there are fewer), evenly over the command.
NUM_STATES = {"run": 150, "export": 60, "warm": 60, "follow": 120, "apply": 80, "compare": 180}


def begin(base: Path) -> None:
    """Makes a finished run, an export, what the daily job made of two files of interactions, and beside it these."""
    local.train(CONFIG, base / "run")
    with open_run(base / "run") as run:
        items, users = run.new_item_ids[:2], run.user_ids.to_pylist()[:6]
        export(run, "npy", base / "served", old_items=True)
    today = base.parent / "today"
    today.mkdir()
    for number, item in enumerate(items):
        rows = {"user_id": users, "item_id": [item] * 6, "label": [1, 0, 1, 1, 0, 1], "timestamp": list(range(6))}
        pq.write_table(pa.table(rows), today / f"{number}.parquet")
    with start(CONFIG) as runtime:
        follow(base / "run", FolderSource(today), base / "followed", runtime, until_idle=True)


def record_states(command: str, begun: Path, base: Path) -> tuple[list[tuple[str, Tree]], Any]:
    """The states of a command in `base`/disk, and its result."""
    disk = base / "disk"
    if command in FROM_NOTHING:
        disk.mkdir()
    else:
        shutil.copytree(begun, disk)
        shutil.copytree(begun.parent / "today", base / "today")
    with recorded(disk) as recording:
        expected = COMMANDS[command](disk)
    return recording.states, expected


def tried(command: str, state: Tree, expected: Any, base: Path) -> str:
    """What is wrong with a command from a state on; empty: nothing."""
    restore(state, base / "disk")
    try:
        found = COMMANDS[command](base / "disk")
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"
    return "" if found == expected else "another result"


def _evenly(states: list[Any], num: int) -> list[Any]:
    return [states[number * len(states) // num] for number in range(num)] if len(states) > num else states


def _of_command(command: str, begun: Path, base: Path, kept: Path) -> Row:
    base.mkdir()
    states, expected = record_states(command, begun, base)
    chosen = _evenly(states, NUM_STATES[command])
    done = (
        {one["state"]: one["wrong"] for one in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    )
    for name, state in chosen:
        key = f"{command} {name.partition(' /')[0]} {len(states)}"
        if key not in done:
            done[key] = tried(command, state, expected, base)
            with kept.open("a") as file:
                file.write(json.dumps({"state": key, "wrong": done[key]}) + "\n")
    ours = {key: wrong for key, wrong in done.items() if key.startswith(f"{command} ") and wrong}
    print(f"{command}: {len(chosen)} of {len(states)} states, {len(ours)} wrong {ours}", flush=True)
    more = {"states": len(states), "tried": len(chosen), "wrong": ours}
    return Row(command, "states wrong", False, Figure.of("ours", [float(len(ours))]), config={}, more=more)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS))
    parser.add_argument("--output", type=Path, default=Path("runs/power-cuts.json"))
    options = parser.parse_args()
    kept = options.output.with_suffix(".part.jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="mwuf-power-"))
    try:
        begin(scratch / "begun")
        rows = [_of_command(command, scratch / "begun", scratch / command, kept) for command in options.commands]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    command = command_line("power_cuts", sys.argv[1:])
    Record("States after a power cut", command, to_dict(CONFIG), rows, threads=1).write(options.output)
    print(f"{sum(row.more['tried'] for row in rows)} states")
    sys.exit(1 if any(row.more["wrong"] for row in rows) else 0)


if __name__ == "__main__":
    main()
