"""A finished run needs the prepared data that it names, and nothing of the raw logs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.sources.content import content_of
from mwuf_dist.files import read_json, write_json
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import warm
from tests.serving.own_logs import COLORS, a_day, config_for, make_logs, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with log.csv, a run of it, `run`, and its prepared data, `prepared`."""
    folder = tmp_path_factory.mktemp("own")
    write(make_logs(), folder / "log.csv")
    write(a_day(), folder / "day.csv")
    (folder / "items.csv").write_text("item_id,color,price\n950,green,3\n951,mauve,99\n")  # a field is in log.csv alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MWUF_CACHE_DIR", str(folder / "cache"))
        local.train(config_for(folder), folder / "run")
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it on a machine that has nothing else."""
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "empty"))
    shutil.copytree(trained, tmp_path / "w")
    results = read_json(tmp_path / "w" / "run" / "results.json")
    found = tmp_path / "w" / "cache" / "prepared" / results["prepared"]
    write_json(tmp_path / "w" / "run" / "results.json", results | {"prepared_path": str(found)})
    config = tmp_path / "w" / "run" / "config.toml"
    assert str(trained) in config.read_text(), "the run names a log of another folder, which is not there for a copy"
    return tmp_path / "w"


def use(world: Path, out: Path, prepared: Path | None = None) -> dict[str, bytes]:
    """What export, warm and the API give, as bytes; `explain` runs too."""
    with open_run(world / "run", prepared=prepared) as run:
        export(run, "npy", out / "export")
        found = explain(run, 903)
        assert found.interactions == 12
        # What the fields of the item and its neighbours hold, in the words of the log: see own_logs.
        assert "\n  color red, price up to 1\n" in found.text()  # a price of 0, in the lowest of four buckets
        near = found.nearest[0][0]
        assert found.words[near].startswith(f"color {COLORS[near % 4]}, price up to ")
        items = torch.arange(run.num_items)
        scores = run.scores(torch.zeros(run.num_items, dtype=torch.int64), items)
    with start(read_run(world / "run")[0]) as runtime:
        more: dict[str, Any] = {"kind": "npy", "context": True, "prepared": prepared}
        warm(world / "run", world / "day.csv", out / "tue", runtime, items=world / "items.csv", **more)
    made = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.npy"))}
    assert len(made) >= 6
    return made | {"scores": scores.numpy().tobytes()}


@pytest.fixture(scope="module")
def expected(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return use(trained, tmp_path_factory.mktemp("expected"))


def test_a_run_serves_where_its_raw_log_has_never_been(
    world: Path, expected: dict[str, bytes], tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = trained / "log.csv"
    monkeypatch.chdir(tmp_path)
    moved.rename(trained / "elsewhere.csv")
    try:
        assert use(world, tmp_path / "out") == expected
    finally:
        (trained / "elsewhere.csv").rename(moved)


@pytest.mark.parametrize("how", ["touched", "grown", "a file beside it"])
def test_what_happens_to_the_raw_log_changes_nothing(
    how: str, trained: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    log = trained / "log.csv"
    before, times = log.read_bytes(), log.stat()
    if how == "touched":
        os.utime(log, ns=(1, 1))
    elif how == "grown":
        log.write_bytes(before + b"1,100,1700000000,1,red,3\n")
    else:
        (trained / "log2.csv").write_text("user_id,item_id,timestamp,label,color,price\n1,900,1700000000,1,red,3\n")
    try:
        assert use(trained, tmp_path / "out") == expected
    finally:
        log.write_bytes(before)
        os.utime(log, ns=(times.st_atime_ns, times.st_mtime_ns))
        (trained / "log2.csv").unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["the folder", "the folder around it", "the variable", "beside the run"])
def test_moved_prepared_data_are_found_where_they_are_named(
    how: str, world: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = (world / "cache" / "prepared").glob("logs-*")
    new = (world if how == "beside the run" else tmp_path / "moved") / old.name
    new.parent.mkdir(exist_ok=True)
    old.rename(new)
    named = {"the folder": new, "the folder around it": new.parent}.get(how)
    if how == "the variable":
        monkeypatch.setenv("MWUF_PREPARED_DIR", str(new.parent))
    assert use(world, tmp_path / "out", named) == expected


def test_without_prepared_data_and_raw_log_the_error_says_where_it_looked_and_what_to_do(
    world: Path, trained: Path
) -> None:
    shutil.rmtree(world / "cache")
    (trained / "log.csv").rename(trained / "gone.csv")
    try:
        with pytest.raises(UserError, match=r"looked in .*cache/prepared.*there is no .*--prepared or MWUF_PREPARED"):
            open_run(world / "run").__enter__()
    finally:
        (trained / "gone.csv").rename(trained / "log.csv")


def test_prepared_data_that_are_gone_are_made_again_from_the_same_log(
    world: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.rmtree(world / "cache")
    assert use(world, tmp_path / "out") == expected


def test_other_data_than_the_run_was_trained_on_are_refused(world: Path, tmp_path: Path) -> None:
    write(make_logs(seed=5), tmp_path / "log.csv")
    other = prepare(config_for(tmp_path).data)
    with (
        pytest.raises(UserError, match=r"is not what .* was trained on .*checksum"),
        open_run(world / "run", prepared=other.path),
    ):
        pass
    with pytest.raises(UserError, match="no prepared data"), open_run(world / "run", prepared=tmp_path):
        pass


def test_a_run_of_before_that_wrote_no_checksum_opens(
    world: Path, expected: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "run" / "results.json"
    results = json.loads(path.read_text())
    del results["prepared_checksum"], results["prepared_path"]
    results.pop("checksum")  # of the file
    path.write_text(json.dumps(results | {"prepared": "logs-000000000000"}))
    assert use(world, tmp_path / "out") == expected
    assert "logs-000000000000 are gone; those made again" in capsys.readouterr().err


def test_prepared_data_are_told_apart_by_content(tmp_path: Path) -> None:
    """Same name, size and time of change, labels swapped; and the same bytes at other places and times."""
    paths = [tmp_path / one / "log.csv" for one in ("a", "b", "c")]
    table = make_logs()
    swapped = table.set_column(3, "label", [np.array(1) - table["label"].to_numpy()])
    for path, rows, time in zip(paths, (table, swapped, table), (10**18, 10**18, 10**17), strict=True):
        write(rows, path)
        os.utime(path, ns=(time, time))
    assert len({path.stat().st_size for path in paths}) == 1
    a, b, c = (prepare(config_for(path.parent).data) for path in paths)
    assert a.path == c.path != b.path and a.checksum != b.checksum
    positives = [sum(split["positives"] for split in one.manifest["splits"].values()) for one in (a, b)]
    assert sum(positives) == table.num_rows and positives[0] != positives[1]


def test_a_file_changed_within_the_clocks_tick_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    found = set()
    for text in ("aaaa", "bbbb", "cccc"):
        path.write_text(text)
        os.utime(path, ns=(5, 5))
        found.add(content_of([path])[0][2])
    assert len(found) == 3
