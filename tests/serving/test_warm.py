"""The daily job: a function of the run and of what has come since; nothing moves but rows of new items."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mwuf_dist import cli
from mwuf_dist.config import PHASES, UserError
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.warm import job as warm_module
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.training.item_rule.rule import frozen_double
from tests.bounds import assert_float32_close, near
from tests.faults.ranks import forked
from tests.serving.test_export import ROUNDING, served_scores

NAMES = ("items.parquet", "log.parquet", "rows.parquet")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def logs(opened: FinishedRun) -> pa.Table:
    """Rows of the run's test set, and rows of items and users that it has never seen."""
    test = opened.prepared.columns("test", ("user", "item", "label", "time"))
    random = np.random.default_rng(0)
    users = opened.prepared.entity("user").raw_ids
    ids = opened.item_ids.to_numpy()
    kept = random.permutation(len(test["user"]))[:600]
    num, seen = 200, len(kept) + 50
    columns = {
        "user_id": np.concatenate([users[test["user"][kept]], users[random.integers(len(users), size=num)]]),
        "item_id": np.concatenate([ids[test["item"][kept]], 10**6 + random.integers(9, size=num)]),
        "label": np.concatenate([test["label"][kept], random.integers(2, size=num)]),
        "timestamp": np.concatenate([test["time"][kept], test["time"].max() - random.permutation(num)]),
    }
    columns["timestamp"][len(kept) : len(kept) + 2] = test["time"].max() + 5  # a tie
    columns["item_id"][len(kept) : len(kept) + 2] = 10**6
    columns["user_id"][seen : seen + 40] = 10**7 + random.integers(5, size=40)
    return pa.table(columns)


def job(folder: Path, table: pa.Table, output: Path, runtime: Runtime, **options: Any) -> Any:
    path = output.with_name(f"{output.name}-{next(_numbers)}.parquet")
    pq.write_table(table, path)
    return warm(folder, path, output, runtime, **options)


def state_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "warm" / name).read_bytes() for name in NAMES}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def warmed(run_folder: Path, logs: pa.Table, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("warm") / "run2"
    job(run_folder, logs, output, runtime)
    return output


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), num_days=st.integers(1, 4), overlap=st.booleans())
def test_the_state_does_not_depend_on_how_rows_were_cut_into_files_nor_on_their_order(
    seed: int, num_days: int, overlap: bool, run_folder: Path, logs: pa.Table, warmed: Path, runtime: Runtime,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    random, folder = np.random.default_rng(seed), run_folder
    scratch = tmp_path_factory.mktemp("cuts")
    day = random.integers(num_days, size=logs.num_rows)
    for number in range(num_days):
        rows = random.permutation(np.flatnonzero(day == number))
        if overlap:
            rows = np.concatenate([rows, random.integers(logs.num_rows, size=30)])
        job(folder, logs.take(pa.array(rows)), scratch / f"day-{number}", runtime)
        folder = scratch / f"day-{number}"
    assert state_of(folder) == state_of(warmed)


def test_rows_are_those_of_torchs_adam_on_the_items_own_rows(
    warmed: Path, logs: pa.Table, opened: FinishedRun, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    assert run.state is not None and len(run.state.ids) == 9
    backbone = frozen_double(opened.model.backbone)
    users = {raw: index for index, raw in enumerate(opened.prepared.entity("user").raw_ids.tolist())}
    settings, config = run.config.warm_up, run.config
    table = logs.to_pydict()
    rows = sorted(
        (time, user, item, label)
        for time, user, item, label in zip(
            table["timestamp"], table["user_id"], table["item_id"], table["label"], strict=True
        )
    )
    common = opened.model.old_ids.mean_row("old")
    item_zero = torch.cat(
        [t.weight[0] for n in opened.model.item_tables.specs for t in opened.model.item_tables.shards(n)]
    )
    user_zero = torch.cat(
        [t.weight[0] for n in opened.model.user_tables.specs for t in opened.model.user_tables.shards(n)]
    )
    checked = 0
    for item in range(10**6, 10**6 + 9):
        own = [row for row in rows if row[2] == item]
        if len({time for time, *_ in own}) != len(own) or len(own) > 3 * config.data.warm_rows:
            continue  # ties are broken by a hash of the user; later blocks have larger minibatches
        v = common
        for begin in range(0, len(own), config.data.warm_rows):
            block = own[begin : begin + config.data.warm_rows]
            parameter = torch.nn.Parameter(v.double())
            adam = torch.optim.Adam([parameter], lr=settings.learning_rate)
            for _ in range(settings.epochs):
                for _, user, _, label in block:
                    side = user_zero
                    if user in users:
                        side = opened.model.user_fields(torch.tensor([users[user]]))[0].detach()
                    context = torch.cat([item_zero, side]).double()[None]
                    logit = backbone(parameter[None], context)
                    adam.zero_grad()
                    torch.nn.functional.binary_cross_entropy_with_logits(
                        logit, torch.tensor([float(label)]).double()
                    ).backward()
                    adam.step()
            v = parameter.detach().float()
        found = run.model.new_ids.rows(torch.tensor([run.index_of(item)]))[0]
        assert_float32_close(
            found, v, num_terms=8, size=max(1.0, float(v.abs().max()))
        )  # float64 but for where blocks end
        checked += 1
    assert checked >= 1
    num = len([row for row in rows if row[2] == 10**6])
    assert run.phase_codes(torch.tensor([run.index_of(10**6)]))[0] == min(num // config.data.warm_rows, 3)


def test_nothing_but_touched_new_items_has_changed(
    warmed: Path, logs: pa.Table, opened: FinishedRun, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    touched = {opened.index_of(item) for item in set(logs["item_id"].to_pylist()) if item < 10**6}
    same = torch.tensor([index for index in range(opened.num_items) if index not in touched])
    assert torch.equal(run.embeddings(same), opened.embeddings(same)) and len(touched) > 50
    for theirs, ours in zip(opened.model.pretrained_tables, run.model.pretrained_tables, strict=True):
        for name in theirs.specs:
            assert torch.equal(theirs.shards(name)[0].weight, ours.shards(name)[0].weight)
    # U(v) has the new users too, and unseen ones as the mean user.
    index = run.index_of(10**6)
    own = [row for row in logs.to_pylist() if row["item_id"] == 10**6]
    assert run.num_interactions[index] == len({tuple(row.values()) for row in own})
    export = pq.read_table(warmed / "export" / "items.parquet")
    assert export["item_id"].to_pylist() == [run.item_ids[i].as_py() for i in [*sorted(touched), *range(292, 301)]]
    everything = torch.tensor([*sorted(touched), *range(292, 301)])
    np.testing.assert_array_equal(
        np.array(export["embedding"].to_pylist(), np.float32), run.embeddings(everything).numpy()
    )


def test_a_server_that_takes_the_changed_rows_into_the_first_export_scores_as_the_new_run_does(
    opened: FinishedRun, run_folder: Path, logs: pa.Table, runtime: Runtime, tmp_path: Path
) -> None:
    folder = export(opened, "parquet", tmp_path / "export", old_items=True, context=True)
    job(run_folder, logs, tmp_path / "run2", runtime, context=True)
    first, changed = (pq.read_table(path / "items.parquet") for path in (folder, tmp_path / "run2" / "export"))
    kept = pc.invert(pc.is_in(first["item_id"], value_set=changed["item_id"]))
    pq.write_table(pa.concat_tables([first.filter(kept), changed]), folder / "items.parquet")
    run = load_run(tmp_path / "run2", runtime)
    users = torch.randint(run.prepared.num_users + 1, (800,))
    users[:100] = run.prepared.num_users  # nobody that the run knows
    items = torch.randint(run.num_items, (800,))
    items[::4] = torch.randint(run.num_old_items, run.num_items, (200,))
    user_ids = [*run.user_ids.to_pylist(), 10**9]
    ids = [user_ids[user] for user in users], run.item_ids.take(pa.array(items.numpy())).to_pylist()
    found = served_scores(folder, *ids, tmp_path)
    with torch.no_grad():
        expected = run.model.backbone(run.embeddings(items), run.context(users, items))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


def test_the_same_file_again_changes_nothing_and_says_so(
    warmed: Path, logs: pa.Table, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    before = files_of(warmed)
    again = job(run_folder, logs, warmed, runtime)
    assert again.already_done and "nothing to do" in again.text()
    third = job(warmed, logs.slice(0, 100), tmp_path / "run3", runtime)
    assert third.num_changed == 0 and "nothing new" in third.text()
    assert third.change.num_known == 100 and state_of(tmp_path / "run3") == state_of(warmed)
    assert pq.read_table(tmp_path / "run3" / "export" / "items.parquet").num_rows == 0
    assert files_of(warmed) == before


def test_rows_that_the_run_was_trained_on_and_rows_of_old_items_move_nothing(
    opened: FinishedRun, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    parts = [opened.prepared.columns(name, ("user", "item", "label", "time")) for name in ("warm_b", "pretrain")]
    users, ids = opened.prepared.entity("user").raw_ids, opened.item_ids.to_numpy()
    columns = {name: np.concatenate([part[name][:50] for part in parts]) for name in parts[0]}
    table = pa.table(
        {"user_id": users[columns["user"]], "item_id": ids[columns["item"]], "label": columns["label"],
         "timestamp": columns["time"]}
    )  # fmt: skip
    report = job(run_folder, table, tmp_path / "run2", runtime)
    assert (report.change.num_known, report.change.num_of_old_items, report.num_changed) == (50, 50, 0)


def test_a_job_that_dies_leaves_the_old_run_whole_and_no_half_of_a_new_one(
    run_folder: Path, logs: pa.Table, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(run_folder)

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(warm_module, "write_export", fails)
    with pytest.raises(OSError, match="no space"):
        job(run_folder, logs, tmp_path / "run2", runtime)
    assert files_of(run_folder) == before
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    monkeypatch.undo()
    (tmp_path / ".run2.partial").mkdir()  # what a killed job leaves
    (tmp_path / ".run2.partial" / "warm").mkdir()
    job(run_folder, logs, tmp_path / "run2", runtime)
    assert (tmp_path / "run2" / "export" / "export.json").exists() and not (tmp_path / ".run2.partial").exists()
    # The files of the run are shared, so that the copy costs nothing; deleting the old run leaves the new one whole.
    shutil.copytree(run_folder, tmp_path / "run1")
    job(tmp_path / "run1", logs, tmp_path / "run4", runtime)
    shutil.rmtree(tmp_path / "run1")
    assert load_run(tmp_path / "run4", runtime).num_items == 301


def test_an_item_may_come_with_its_fields_before_its_first_click_or_after(
    run_folder: Path, logs: pa.Table, opened: FinishedRun, runtime: Runtime, tmp_path: Path
) -> None:
    ids = [10**6 + 3, 10**6 + 50]
    fields = pa.table({"item_id": ids, "category": [2, 3], "brand": [5, 1], "tags": ["1|4", "2"]})
    pa_csv.write_csv(fields, tmp_path / "items.csv")
    no_rows = logs.slice(0, 5)
    job(run_folder, no_rows, tmp_path / "first", runtime, items=tmp_path / "items.csv")
    job(tmp_path / "first", logs, tmp_path / "then", runtime)
    job(run_folder, logs, tmp_path / "clicks", runtime)
    job(tmp_path / "clicks", no_rows, tmp_path / "late", runtime, items=tmp_path / "items.csv")
    assert state_of(tmp_path / "then") == state_of(tmp_path / "late")
    run = load_run(tmp_path / "then", runtime)
    cold = run.index_of(10**6 + 50)
    assert run.phase_codes(torch.tensor([cold]))[0] == 0 and run.num_interactions[cold] == 0
    row = run.model.new_ids.rows(torch.tensor([cold]))
    torch.testing.assert_close(row[0], opened.model.old_ids.mean_row("old"), rtol=0, atol=0)
    tables = opened.model.item_tables
    category, brand, tags = (tables.shards(name)[0].weight for name in ("category", "brand", "tags"))
    expected = torch.cat([category[3], brand[1], tags[2]])
    assert torch.equal(run.model.item_fields(torch.tensor([cold]))[0], expected)
    (tmp_path / "bad.csv").write_text("item_id,category,brand,tags\n1000003,99,1,1\n")
    with pytest.raises(UserError, match="category = '99'"):
        job(run_folder, no_rows, tmp_path / "no", runtime, items=tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.rename_columns(["user_id", "item", "label", "timestamp"]),
            "no column 'item_id'; did you mean 'item'",
        ),
        (
            lambda t: t.set_column(1, "item_id", pa.array(["A7"] * len(t))),
            "item_id is 'A7', and all items of the run have whole",
        ),
        (lambda t: t.set_column(2, "label", pa.array([3] * len(t))), "neither 0 nor 1"),
        (lambda t: t.set_column(0, "user_id", pa.array([None] * len(t), pa.int64())), "user_id is missing"),
        (lambda t: t.set_column(3, "timestamp", pa.array(t["timestamp"].to_numpy() + 0.5)), "whole numbers"),
        (lambda t: t.slice(0, 0), "no rows"),
    ],
)
def test_wrong_interactions_are_the_users_error(
    change: Any, message: str, run_folder: Path, logs: pa.Table, runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        job(run_folder, change(logs), tmp_path / "run2", runtime)
    assert not (tmp_path / "run2").exists()


def test_an_output_of_something_else_is_refused(
    run_folder: Path, logs: pa.Table, warmed: Path, runtime: Runtime
) -> None:
    for output in (run_folder, warmed, warmed.parent):
        with pytest.raises(UserError, match="name another --output"):
            job(run_folder, logs.slice(0, 9), output, runtime)


def test_a_damaged_state_is_refused(warmed: Path, logs: pa.Table, runtime: Runtime, tmp_path: Path) -> None:
    shutil.copytree(warmed, tmp_path / "copy")
    with (tmp_path / "copy" / "warm" / "rows.parquet").open("r+b") as file:
        file.seek(50)
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"rows\.parquet: is missing or damaged"):
        job(tmp_path / "copy", logs, tmp_path / "out", runtime)


@pytest.mark.dist
def test_two_ranks_make_the_state_of_one(run_folder: Path, logs: pa.Table, warmed: Path, tmp_path: Path) -> None:
    pq.write_table(logs, tmp_path / "new.parquet")
    command = ["warm", str(run_folder), "--interactions", str(tmp_path / "new.parquet"), "--output"]
    with forked(cli.main, ([*command, str(tmp_path / "two")],), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()
    assert state_of(tmp_path / "two") == state_of(warmed)
    assert launch.said().count("proof: 16,384 of 16,384") == 1


def test_an_explanation_goes_on_with_the_new_clicks_to_the_score_that_is_served(
    warmed: Path, logs: pa.Table, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    users = torch.randint(run.prepared.num_users, (1024,), generator=torch.Generator().manual_seed(0))
    known = next(item for item in logs["item_id"].to_pylist() if item < 10**6)
    for item, phases in ((known, [*PHASES, "served"]), (10**6, ["served"])):
        found = explain(run, item)
        assert list(dict.fromkeys(point.phase for point in found.history)) == phases
        assert found.replay_error == 0.0 and found.text().count("served")
        served = [point for point in found.history if point.phase == "served"]
        assert served[0].clicks == 0 and served[-1].clicks == found.interactions - (24 if item == known else 0)
        expected = run.scores(users, torch.full_like(users, run.index_of(item))).sigmoid().mean()
        assert served[-1].score == near(float(expected), num_terms=100)
