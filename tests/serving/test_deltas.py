"""Deltas: replayed in order they make what the jobs made, to the bit; in any other way they are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import UserError
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.deltas import reader
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.files import delta_files
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.retire import Retiring
from mwuf_dist.serving.writers import writer_of
from tests.bounds import assert_float32_close

NAMES = ("items.parquet", "log.parquet", "rows.parquet", "retired.parquet")


@pytest.fixture(scope="module")
def runtime(run_folder: Path) -> Iterator[Runtime]:
    with start(read_run(run_folder)[0]) as runtime:
        yield runtime


def clicks(run: FinishedRun, seed: int, born: int, num: int = 120) -> pa.Table:
    """Later clicks of the run's users on its new items, and on items that `born` numbers."""
    random = np.random.default_rng(seed)
    known = np.array(run.new_item_ids)
    items = np.where(random.random(num) < 0.7, random.choice(known, num), 10**6 * born + random.integers(9, size=num))
    columns = {"user_id": random.choice(run.user_ids.to_numpy(), num), "item_id": items}
    return pa.table(columns | {"label": random.integers(2, size=num), "timestamp": 10**9 * born + np.arange(num)})


@pytest.fixture(scope="module")
def chain(run_folder: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run and three days after it; on the second, two new items of the run and two others are retired."""
    folder = tmp_path_factory.mktemp("chain")
    run = load_run(run_folder, runtime)
    days = [run_folder]
    gone = [run.new_item_ids[4], run.new_item_ids[9], 10**6 + 1, 2 * 10**6 + 1]
    pq.write_table(pa.table({"item_id": gone}), folder / "gone.parquet")
    for day in (1, 2, 3):
        pq.write_table(clicks(run, day, day), folder / f"{day}.parquet")
        retiring = Retiring(folder / "gone.parquet") if day == 2 else Retiring()
        warm(days[-1], folder / f"{day}.parquet", folder / f"day{day}", runtime, retiring=retiring)
        days.append(folder / f"day{day}")
    return days


def of_days(chain: list[Path]) -> list[Path]:
    return delta_files(chain[1:])


def by_id(folder: Path, kind: str) -> dict[Any, dict[str, Any]]:
    ids, columns = writer_of(kind).read(folder, "item")
    assert len(set(ids)) == len(ids)
    return {one: {name: values[place] for name, values in columns.items()} for place, one in enumerate(ids)}


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
def test_an_export_with_the_deltas_put_in_is_the_export_of_the_last_day(
    kind: Any, chain: list[Path], runtime: Runtime, tmp_path: Path
) -> None:
    first, last = load_run(chain[0], runtime), load_run(chain[-1], runtime)
    folder = export(first, kind, tmp_path / "export", old_items=True, context=True)
    users = {path.name: path.read_bytes() for path in folder.iterdir() if "user" in path.name}
    report = apply(folder, chain[1:])
    expected = by_id(export(last, kind, tmp_path / "last", old_items=True, context=True), kind)
    found = by_id(folder, kind)
    assert report.num_items == len(found) and report.num_retired == 4 and (report.first, report.last) == (1, 3)
    assert set(found) == set(expected) and 10**6 + 1 not in found and first.new_item_ids[4] not in found
    for one, columns in expected.items():
        for name in ("phase", "interactions", "item_context"):
            np.testing.assert_array_equal(found[one][name], columns[name])
        # Made in other company: a product of other sizes rounds differently.
        assert_float32_close(found[one]["embedding"], columns["embedding"], num_terms=100)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if "user" in path.name} == users
    about = [json.loads((path / "export.json").read_text()) for path in (folder, tmp_path / "last")]
    assert about[0]["state"] == about[1]["state"] and about[0]["num_items"] == about[1]["num_items"]


def test_a_copy_of_the_run_with_the_deltas_put_in_has_the_files_of_the_last_day(
    chain: list[Path], tmp_path: Path
) -> None:
    apply(chain[0], of_days(chain), tmp_path / "copy")
    apply(chain[1], of_days(chain)[1:], tmp_path / "late")
    for folder in (tmp_path / "copy", tmp_path / "late"):
        for name in NAMES:
            assert (folder / "warm" / name).read_bytes() == (chain[-1] / "warm" / name).read_bytes(), name
    with pytest.raises(UserError, match="name another folder with --output"):
        apply(chain[0], of_days(chain))


def test_the_hash_of_a_state_does_not_depend_on_the_jobs_that_led_to_it(
    chain: list[Path], run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    day = chain[1].parent
    both = pa.concat_tables([pq.read_table(day / "1.parquet"), pq.read_table(day / "3.parquet")])
    pq.write_table(both, tmp_path / "both.parquet")
    warm(run_folder, tmp_path / "both.parquet", tmp_path / "both", runtime)
    warm(run_folder, day / "3.parquet", tmp_path / "three", runtime)
    warm(tmp_path / "three", day / "1.parquet", tmp_path / "one", runtime)
    heads = [reader.read_delta(delta_files([tmp_path / name])[0]).header for name in ("both", "three", "one")]
    assert heads[0]["after"] == heads[2]["after"] != heads[1]["after"] == heads[2]["before"]
    assert heads[0]["before"] == "0" * 32 and [one["number"] for one in heads] == [1, 1, 2]


def refusals(chain: list[Path], other: Path) -> list[tuple[list[Path], str]]:
    one, two, three = of_days(chain)
    return [
        ([two], "1 is missing"),
        ([one, three], "2 is missing"),
        ([one, one], "comes twice or out of order"),
        ([one, two, two, three], "comes twice or out of order"),
        ([two, one, three], "1 is missing"),
        ([one, other], "the chain has forked"),
        ([one, one.parent / "none.delta"], "cannot be read"),
    ]


def test_a_gap_a_repeat_another_order_and_a_fork_are_refused_and_leave_all_as_it_was(
    chain: list[Path], run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    folder = export(load_run(chain[0], runtime), "parquet", tmp_path / "export")
    before = (folder / "items.parquet").read_bytes()
    day = chain[1].parent
    warm(chain[0], day / "3.parquet", tmp_path / "three", runtime)
    warm(tmp_path / "three", day / "1.parquet", tmp_path / "fork", runtime)
    for paths, message in refusals(chain, *delta_files([tmp_path / "fork"])):
        for target, output in ((folder, None), (chain[0], tmp_path / "out")):
            with pytest.raises(UserError, match=message):
                apply(target, paths, output)
    assert (folder / "items.parquet").read_bytes() == before and not (tmp_path / "out").exists()
    about = json.loads((folder / "export.json").read_text())
    about.pop("checksum")
    (folder / "export.json").write_text(json.dumps(about | {"state": about["state"] | {"chain": "another"}}))
    with pytest.raises(UserError, match="belongs to another chain"):
        apply(folder, of_days(chain))


def test_damage_anywhere_in_a_delta_is_found(chain: list[Path], tmp_path: Path) -> None:
    content = of_days(chain)[0].read_bytes()
    random = np.random.default_rng(0)
    for place in [*range(16), *random.integers(len(content), size=200).tolist(), len(content) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1 << random.integers(8)
        (tmp_path / "changed.delta").write_bytes(changed)
        with pytest.raises(reader.DeltaError, match="damaged|no delta"):
            reader.read_delta(tmp_path / "changed.delta")
    for length in (0, 5, 12, len(content) // 2, len(content) - 1):
        (tmp_path / "changed.delta").write_bytes(content[:length])
        with pytest.raises(reader.DeltaError, match="damaged|no delta"):
            reader.read_delta(tmp_path / "changed.delta")


def test_an_export_of_before_there_were_deltas_asks_to_be_made_again(
    chain: list[Path], runtime: Runtime, tmp_path: Path
) -> None:
    folder = export(load_run(chain[0], runtime), "parquet", tmp_path / "export")
    about = json.loads((folder / "export.json").read_text())
    del about["state"], about["checksum"]
    (folder / "export.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="does not say which state it was made from: export the run again"):
        apply(folder, of_days(chain))


# A server: NumPy, Arrow and the copied reader.
SERVER = """
import sys
from reader import DeltaError, ItemTable, read_delta
table = ItemTable.of_export(sys.argv[1])
for path in sys.argv[2:]:
    table.apply(read_delta(path))
    try:
        table.apply(read_delta(path))
        raise SystemExit("a repeat was taken")
    except DeltaError:
        pass
ids, columns = table.items()
number, found, rows = table.rows([ids[0], 10**6 + 1, ids[-1]])
assert number == len(sys.argv) - 2 and found.tolist() == [True, False, True]
assert (rows["embedding"][1] == 0).all() and (rows["embedding"][2] == columns["embedding"][-1]).all()
print(len(ids), float(abs(columns["embedding"]).sum()))
assert not {"mwuf_dist", "torch", "mwuf_kernels"} & set(sys.modules)
"""


def test_the_reader_works_copied_into_a_process_without_this_package(
    chain: list[Path], runtime: Runtime, tmp_path: Path
) -> None:
    folder = export(load_run(chain[0], runtime), "parquet", tmp_path / "export", old_items=True, context=True)
    server = tmp_path / "server"
    server.mkdir()
    shutil.copy(reader.__file__, server / "reader.py")
    (server / "main.py").write_text(SERVER)
    command = [sys.executable, "main.py", str(folder), *map(str, of_days(chain))]
    done = subprocess.run(command, cwd=server, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    apply(folder, of_days(chain))
    items = by_id(folder, "parquet")
    num, total = done.stdout.split()
    assert int(num) == len(items)
    assert float(total) == pytest.approx(sum(float(abs(one["embedding"]).sum()) for one in items.values()), rel=1e-5)


def test_every_delta_may_be_read_while_rows_are_asked_for() -> None:
    """One thread asks for two rows that every delta sets to its own number; they never differ."""
    import threading

    ids = list(range(50))
    columns = {"embedding": np.zeros((50, 4), np.float32)}
    table, ended, wrong = reader.ItemTable(ids, columns, "c", 0, "s0"), threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            number, _, rows = table.rows([3, 40])
            if not (rows["embedding"] == number).all():
                wrong.append((number, rows))

    thread = threading.Thread(target=ask)
    thread.start()
    for number in range(1, 400):
        values = reader_vectors(np.full((50, 4), number, np.float32))
        header = {"chain": "c", "number": number, "before": f"s{number - 1}", "after": f"s{number}"}
        parts = {"changed": pa.table({"item_id": ids, "embedding": values}), "retired": pa.table({"item_id": []})}
        table.apply(reader.Delta("d", header, parts))
    ended.set()
    thread.join()
    assert not wrong


def test_moved_old_items_do_not_enter_an_export_without_old_items() -> None:
    columns = {"phase": np.array(["warm-a"]), "embedding": np.zeros((1, 4), np.float32)}
    changed = {"item_id": [1, 2], "phase": ["old", "warm-b"], "embedding": reader_vectors(np.ones((2, 4), np.float32))}
    parts = {"changed": pa.table(changed), "retired": pa.table({"item_id": []})}
    delta = reader.Delta("d", {"chain": "c", "number": 1, "before": "a", "after": "b"}, parts)
    for old_items, expected in ((False, [7, 2]), (True, [7, 1, 2])):
        table = reader.ItemTable([7], dict(columns), "c", 0, "a", old_items)
        table.apply(delta)
        assert table.items()[0] == expected


def reader_vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def test_commands_write_and_apply_deltas(chain: list[Path], runtime: Runtime, tmp_path: Path, capsys: Any) -> None:
    folder = export(load_run(chain[0], runtime), "parquet", tmp_path / "export")
    for arguments, code, text in (
        ([str(folder), *(str(day) for day in chain[1:])], 0, "deltas 1 to 3"),
        ([str(folder), str(chain[1])], 2, "comes twice or out of order"),
        ([str(folder)], 2, "name the deltas behind the folder"),
        ([str(tmp_path), str(chain[1])], 2, "neither an export"),
        ([], 2, "mwuf apply FOLDER DELTAS"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["apply", *arguments])
        printed = capsys.readouterr()
        assert end.value.code == code and text in printed.out + printed.err, printed
    with pytest.raises(SystemExit) as end:
        cli.main(["warm", str(chain[0]), "--output", str(tmp_path / "out")])
    assert end.value.code == 2 and "--interactions FILE" in capsys.readouterr().err
