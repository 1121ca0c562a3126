"""Following a folder makes the state that one job makes of all its files, wherever the process is killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.runtime import start
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.pending import load_state
from mwuf_dist.serving.deltas.reader import read_delta
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import load_run, open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm import follow as follow_module
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.sources import FolderSource
from mwuf_dist.serving.warm.sources import folder as folder_module
from mwuf_dist.serving.writers import writer_of
from tests.bounds import assert_float32_close
from tests.faults.ranks import forked

NAMES = ("items.parquet", "log.parquet", "rows.parquet")
NUM_FILES = 7


@pytest.fixture(scope="module")
def clicks(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files: clicks on the run's items and on others, some late, some in two files."""
    folder = tmp_path_factory.mktemp("follow") / "clicks"
    folder.mkdir()
    with open_run(run_folder) as run:
        users, items = run.user_ids.to_numpy(), np.append(run.item_ids.to_numpy()[-40:], run.item_ids.to_numpy()[:2])
    random, last = np.random.default_rng(5), None
    for number in range(NUM_FILES):
        num = 70
        item = np.where(random.random(num) < 0.6, random.choice(items, num), 10**6 + random.integers(12, size=num))
        time = 10**9 + random.integers(5000, size=num)
        table = pa.table(
            {"user_id": random.choice(users, num), "item_id": item, "label": random.integers(2, size=num)}
            | {"timestamp": time}
        )
        table = table if last is None else pa.concat_tables([table, last.slice(0, 9)])
        pq.write_table(table, folder / f"part-{number}.parquet")
        os.utime(folder / f"part-{number}.parquet", ns=(10**18 + number,) * 2)
        last = table
    (folder / ".part-9.parquet.tmp").write_bytes(b"half")
    return folder


@pytest.fixture(scope="module")
def at_once(run_folder: Path, clicks: Path) -> Path:
    """What one job makes of all files."""
    output = clicks.parent / "at-once"
    whole = clicks.parent / "whole.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path) for path in sorted(clicks.glob("part-*"))]), whole)
    with start(read_run(run_folder)[0]) as runtime:
        warm(run_folder, whole, output, runtime)
    return output


def in_small_batches() -> None:
    """For a process of its own, which knows nothing of fixtures."""
    folder_module._BATCH_BYTES, follow_module._SNAPSHOT_ROWS = 1, 150


def goes_on(arguments: list[str]) -> None:
    in_small_batches()
    cli.main(arguments)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_BATCH_BYTES", 1)
    monkeypatch.setattr(follow_module, "_SNAPSHOT_ROWS", 150)


def command(run: Path, clicks: Path, output: Path) -> list[str]:
    return ["warm", str(run), "--follow", str(clicks), "--output", str(output), "--until-idle"]


def same_state(output: Path, expected: Path) -> None:
    for name in NAMES:
        assert (output / "warm" / name).read_bytes() == (expected / "warm" / name).read_bytes(), name
    heads = [read_delta(path).header for path in deltas.delta_files([output])]
    assert [head["number"] for head in heads] == list(range(1, len(heads) + 1))
    assert heads[-1]["after"] == read_delta(deltas.delta_files([expected])[0]).header["after"]
    names = [name for head in heads for name in head["position"] if "/" not in name]
    assert sorted(names) == [f"part-{number}.parquet" for number in range(NUM_FILES)], "not each file exactly once"


@pytest.mark.usefixtures("one_by_one")
def test_batches_make_the_state_of_one_job_and_deltas_lead_an_export_there(
    run_folder: Path, clicks: Path, at_once: Path, tmp_path: Path
) -> None:
    seen = []
    with start(read_run(run_folder)[0]) as runtime:
        source = FolderSource(clicks)
        last = follow_module.follow(
            run_folder,
            source,
            tmp_path / "live",
            runtime,
            until_idle=True,
            told=lambda batch: seen.append(batch.text()),
        )
        assert last == NUM_FILES == len(seen) and "delta 7: 1 files" in seen[-1]
        same_state(tmp_path / "live", at_once)
        folder = export(load_run(run_folder, runtime), "parquet", tmp_path / "export", context=True)
        apply(folder, [tmp_path / "live"])
        expected = export(load_run(at_once, runtime), "parquet", tmp_path / "expected", context=True)
    (ids, found), (other_ids, other) = (writer_of("parquet").read(path, "item") for path in (folder, expected))
    place = {one: number for number, one in enumerate(ids)}
    order = [place[one] for one in other_ids]
    assert len(ids) == len(other_ids)
    for name in ("phase", "interactions"):
        np.testing.assert_array_equal(found[name][order], other[name])
    for name in ("embedding", "item_context"):  # made in other company, which rounds differently
        assert_float32_close(found[name][order], other[name], num_terms=100)


def dies(where: str, after: int, arguments: list[str]) -> None:
    """The command, whose process ends on the spot before or after its n-th delta has its name, or in a snapshot."""
    in_small_batches()
    write, save, count = deltas.write_delta, follow_module.served_state.save_into, [0]

    def counted(function: Callable[..., object], *given: object) -> object:
        count[0] += 1
        if where == "before" and count[0] == after:
            os._exit(9)
        made = function(*given)
        if where == "after" and count[0] == after:
            os._exit(9)
        if where == "term" and count[0] == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return made

    def snapshot(*given: object) -> None:
        if where == "snapshot":
            os._exit(9)
        save(*given)

    follow_module.deltas.write_delta = lambda *given: counted(write, *given)
    follow_module.served_state.save_into = snapshot
    cli.main(arguments)


@pytest.mark.dist
def test_killed_anywhere_the_same_command_goes_on_and_takes_each_file_once(
    run_folder: Path, clicks: Path, at_once: Path, tmp_path: Path
) -> None:
    arguments = command(run_folder, clicks, tmp_path / "live")
    for where, after in (("before", 1), ("after", 1), ("snapshot", 0), ("before", 2), ("after", 1)):
        with forked(dies, (where, after, arguments), tmp_path / f"log-{where}{after}", 1) as launch:
            assert launch.wait() == [9], launch.said()
    with open_run(tmp_path / "live") as run:  # opens as of its last delta
        assert run.state is not None and run.state.number == len(deltas.delta_files([tmp_path / "live"])) > 2
    with forked(goes_on, (arguments,), tmp_path / "log", 1) as launch:
        assert launch.wait() == [0], launch.said()
    same_state(tmp_path / "live", at_once)


@pytest.mark.dist
def test_sigterm_ends_after_the_batch_and_nothing_is_lost(
    run_folder: Path, clicks: Path, at_once: Path, tmp_path: Path
) -> None:
    arguments = command(run_folder, clicks, tmp_path / "live")
    with forked(dies, ("term", 3, arguments), tmp_path / "log", 1) as launch:
        assert launch.wait() == [0], launch.said()
    assert "the last delta is 3" in launch.said() and len(deltas.delta_files([tmp_path / "live"])) == 3
    with forked(goes_on, (arguments,), tmp_path / "log2", 1) as launch:
        assert launch.wait() == [0], launch.said()
    same_state(tmp_path / "live", at_once)


def test_a_file_that_cannot_be_read_is_refused_by_name_and_the_others_are_taken(
    run_folder: Path, clicks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    (folder / "bad.csv").write_text("user_id,item_id,label,timestamp\n1,2,maybe,1000000000\n")
    good = pq.read_table(clicks / "part-0.parquet")
    pq.write_table(good, folder / "good.parquet")
    seen = []
    with start(read_run(run_folder)[0]) as runtime:
        source, output = FolderSource(folder), tmp_path / "live"
        given = run_folder, source, output, runtime
        assert follow_module.follow(*given, until_idle=True, told=seen.append) == 1
        assert list(seen[0].refused) == ["bad.csv"] and seen[0].num_new > 50 and "REFUSED bad.csv" in seen[0].text()
        assert follow_module.follow(*given, until_idle=True, told=seen.append) == 1  # not again


def test_names_of_files_that_are_gone_are_forgotten_and_one_that_comes_back_changes_nothing(
    run_folder: Path, clicks: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "clicks", tmp_path / "live"
    folder.mkdir()
    named = lambda: {name for name in load_state(output, ids).position if "/" not in name}  # noqa: E731
    with start(read_run(run_folder)[0]) as runtime:
        ids = load_run(run_folder, runtime).item_ids
        given = run_folder, FolderSource(folder), output, runtime

        def comes(number: int) -> None:
            shutil.copy2(clicks / f"part-{number}.parquet", folder)

        for number in range(3):
            comes(number)
            follow_module.follow(*given, until_idle=True)
            assert named() == {f"part-{number}.parquet"}, "no more names than there are files"
            (folder / f"part-{number}.parquet").unlink()
        before = read_delta(deltas.delta_files([output])[-1]).header["after"]
        comes(1)
        seen = []
        assert follow_module.follow(*given, until_idle=True, told=seen.append) == 4
        assert seen[0].num_new == seen[0].num_changed == 0
        assert read_delta(deltas.delta_files([output])[-1]).header["after"] == before
        comes(2)  # a new name beside one that stays
        assert follow_module.follow(*given, until_idle=True) == 5
        assert named() == {"part-1.parquet", "part-2.parquet"}
