"""A power cut at any write of run, export and warm: the same command ends with the same result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import files
from mwuf_dist.cli import main
from mwuf_dist.config import build, merge, to_toml
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.studies.records import read_records
from tests.faults.power_cuts import recorded, restore
from tests.tiny import TINY

CONFIG = build(
    merge(
        TINY,
        {
            "backbone": {"hidden": [8]},
            "pretrain": {"epochs": 1, "batch_size": 4096},
            "meta_train": {"batch_size": 4096},
            "warm_up": {"batch_size": 4096, "epochs": 1},
        },
    )
)
# Of each command's states, so many are tried every day; with --slow all of them, or the part that is named: "1/4" is
# every fourth from the second on.
SAMPLE = 2
PART = os.environ.get("MWUF_POWER_CUTS", "0/1")


def _run(base: Path) -> Any:
    results = local.train(CONFIG, base / "run")
    assert files.read_json(base / "run" / "results.json") == json.loads(json.dumps(results))
    lines, num_damaged = files.whole_lines(base / "run" / "metrics.jsonl")
    assert not num_damaged
    return results["phases"], lines, {name: one["samples"] for name, one in results["stages"].items()}


def _export(base: Path) -> Any:
    with open_run(base / "run") as run:
        folder = export(run, "npy", base / "export")
    assert not [path for path in base.iterdir() if path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


def _warm(base: Path) -> Any:
    with start(read_run(base / "run")[0]) as runtime:
        report = warm(base / "run", base / "today.parquet", base / "tuesday", runtime)
    assert not [path for path in base.iterdir() if path.name.startswith(".")]
    rows = pq.read_table(base / "tuesday" / "warm" / "rows.parquet")
    return report.digest, rows


def _compare(base: Path) -> Any:
    config = base.parent / "compare.toml"
    study = '\n[study]\nseeds = 1\n[[study.runs]]\nmethod.name = "base"\n[[study.runs]]\nmethod.name = "mwuf"\n'
    config.write_text(to_toml(CONFIG).replace("seed = 0\n", "", 1) + study)
    with pytest.raises(SystemExit) as end:
        main(["compare", str(config), "--output", str(base / "compare"), "--parallel", "1"])
    assert end.value.code == 0
    records = read_records(base / "compare" / "records.json")
    assert files.read_json(base / "compare" / "comparison.json")["rows"]
    return [(cell["method"], cell["phases"]) for cell in records.cells], records.audits


COMMANDS: dict[str, Callable[[Path], Any]] = {"run": _run, "export": _export, "warm": _warm}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and interactions for the daily job."""
    base = tmp_path_factory.mktemp("begun")
    local.train(CONFIG, base / "run")
    with open_run(base / "run") as run:
        item, users = run.new_item_ids[0], run.user_ids.to_pylist()[:6]
    rows = {"user_id": users, "item_id": [item] * 6, "label": [1, 0, 1, 1, 0, 1], "timestamp": list(range(6))}
    pq.write_table(pa.table(rows), base / "today.parquet")
    return base


def _tried(command: str, begun: Path, base: Path, which: Callable[[int], slice]) -> Iterator[str]:
    """What is wrong with the states, of those that are tried."""
    if command in ("export", "warm"):
        shutil.copytree(begun, base / "disk")
    else:
        (base / "disk").mkdir()
    with recorded(base / "disk") as recording:
        expected = COMMANDS[command](base / "disk")
    states = recording.states[which(len(recording.states))]
    print(f"{command}: {len(states)} of {len(recording.states)} states")
    for name, state in states:
        print(name, flush=True)
        restore(state, base / "disk")
        try:
            found = COMMANDS[command](base / "disk")
        except Exception as error:
            yield f"{command}, {name}: {type(error).__name__}: {error}"
            continue
        if found != expected:
            yield f"{command}, {name}: another result"


@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_power_cut_the_same_command_ends_with_the_same_result(
    command: str, begun: Path, tmp_path: Path
) -> None:
    wrong = list(_tried(command, begun, tmp_path, lambda num: slice(0, None, max(1, num // SAMPLE))))
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", [*COMMANDS, "compare"])
def test_after_a_power_cut_at_every_write_too(
    command: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "compare", _compare)
    first, _, step = PART.partition("/")
    wrong = []
    for one in _tried(command, begun, tmp_path, lambda _: slice(int(first), None, int(step))):
        print("WRONG", one, flush=True)
        wrong.append(one)
    assert not wrong, "\n".join(wrong)


def test_a_file_that_is_not_synced_before_it_is_renamed_is_seen(tmp_path: Path) -> None:
    with recorded(tmp_path) as recording:
        (tmp_path / "beside").write_text("all of it")
        (tmp_path / "beside").rename(tmp_path / "file")
    assert {"file": b""} in [state for _, state in recording.states]
    with recorded(tmp_path) as recording:
        files.write_atomically(tmp_path / "file", "new")
    found = {state.get("file") for _, state in recording.states}
    assert found == {b"all of it", b"new"}
