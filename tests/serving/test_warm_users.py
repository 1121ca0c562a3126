"""`mwuf warm --users`: a row of a user never seen is a function of the user's own clicks and of the run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist import cli
from mwuf_dist.cli.serving import run_command
from mwuf_dist.config import UserError
from mwuf_dist.evaluation.item_page import item_page
from mwuf_dist.evaluation.item_plot import plot_item
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.check import check as check_module
from mwuf_dist.serving.check.check import serve_check
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.reader import UserTable, read_delta
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.warm.catch_up import catch_up
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.serving.warm.retire import Retiring
from mwuf_dist.training.item_rule.frozen_users import FEWEST_CLICKS
from mwuf_dist.training.item_rule.rule import frozen_double
from tests.bounds import assert_float32_close, near
from tests.faults.ranks import forked

OF_ITEMS = ("items.parquet", "log.parquet", "rows.parquet")
OF_USERS = ("users.parquet", "user_log.parquet")
FIRST_NEW_USER = 10**7
_numbers = itertools.count()


def later_rows(run: FinishedRun) -> pa.Table:
    """Rows of five users never seen, and of users of the run, with items of the run and with item 10**6."""
    random, num = np.random.default_rng(0), 260
    user = run.user_ids.to_numpy()[random.integers(run.prepared.num_users, size=num)]
    user[:180] = FIRST_NEW_USER + np.sqrt(random.integers(25, size=180)).astype(int)  # of 0 few, of 4 many
    item = run.item_ids.to_numpy()[random.integers(run.num_items, size=num)]
    item[::13] = 10**6
    columns = {"user_id": user, "item_id": item, "label": random.integers(2, size=num)}
    return pa.table(columns | {"timestamp": 10**9 + random.permutation(num)})


@pytest.fixture(scope="module")
def logs(opened: FinishedRun) -> pa.Table:
    return later_rows(opened)


def job(
    folder: Path, table: pa.Table, output: Path, runtime: Runtime, users: bool = True, **options: Any
) -> WarmReport:
    path = output.with_name(f"{output.name}-{next(_numbers)}.parquet")
    pq.write_table(table, path)
    return warm(folder, path, output, runtime, users=users, **options)


def state_of(folder: Path, names: tuple[str, ...] = (*OF_ITEMS, *OF_USERS)) -> dict[str, bytes]:
    return {name: (folder / "warm" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def warmed(run_folder: Path, logs: pa.Table, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("users") / "run2"
    report = job(run_folder, logs, output, runtime, context=True)
    assert "5 users never seen have" in report.text() and "the mean user to items" in report.text()
    return output


def clicks_of(logs: pa.Table, user: int, run: FinishedRun) -> list[dict[str, Any]]:
    """The user's rows with items of the run, in order of time."""
    there = set(run.item_ids.to_pylist())
    return sorted(
        (row for row in logs.to_pylist() if row["user_id"] == user and row["item_id"] in there),
        key=lambda row: row["timestamp"],
    )


def test_the_row_is_that_of_torchs_adam_on_the_users_own_clicks(
    warmed: Path, logs: pa.Table, opened: FinishedRun, runtime: Runtime
) -> None:
    run = load_run(warmed, runtime)
    settings, block, dim = run.config.warm_up, run.config.data.warm_rows, opened.model.dim
    backbone, sizes = frozen_double(opened.model.backbone), []
    place = opened.model.users.names.index("user_id") * dim
    for user in range(FIRST_NEW_USER, FIRST_NEW_USER + 5):
        own = clicks_of(logs, user, opened)
        row = opened.mean_user
        sizes.append(len(own))
        found = run.model.user_tables.rows_of("user_id", torch.tensor([run.index_of(user, "user") + 1]))[0]
        if len(own) < FEWEST_CLICKS:
            assert torch.equal(found, opened.mean_user)
            continue
        for begin, end, size in ((0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 6, 3), (6, 12, 6)):
            rows = own[begin * block : end * block]
            parameter = torch.nn.Parameter(row.double())
            adam = torch.optim.Adam([parameter], lr=settings.learning_rate)
            for _ in range(settings.epochs):
                for first in range(0, len(rows), size):
                    step = rows[first : first + size]
                    items = [opened.index_of(one["item_id"]) for one in step]
                    side = opened.unknown_user_context().double().expand(len(step), -1)
                    side = torch.cat([side[:, :place], parameter.expand(len(step), -1), side[:, place + dim :]], dim=1)
                    context = torch.cat([opened.item_context(items).double(), side], dim=1)
                    logit = backbone(opened.embeddings(items).double(), context)
                    label = torch.tensor([float(one["label"]) for one in step]).double()
                    adam.zero_grad()
                    torch.nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
                    adam.step()
            row = parameter.detach().float()
        assert not torch.equal(found, opened.mean_user)
        assert_float32_close(found, row, num_terms=8, size=max(1.0, float(row.abs().max())))
    assert min(sizes) < FEWEST_CLICKS and max(sizes) > 3 * block


def test_neither_files_nor_their_order_nor_repeats_nor_jobs_without_users_between_change_a_row(
    warmed: Path, logs: pa.Table, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    random, folder = np.random.default_rng(3), run_folder
    day = random.integers(2, size=logs.num_rows)
    for number in range(2):
        rows = np.concatenate([np.flatnonzero(day == number), random.integers(logs.num_rows, size=40)])
        table = logs.take(pa.array(random.permutation(rows)))
        job(folder, table, tmp_path / f"plain-{number}", runtime, users=False)
        job(tmp_path / f"plain-{number}", table, tmp_path / f"day-{number}", runtime)
        folder = tmp_path / f"day-{number}"
    assert state_of(folder) == state_of(warmed)
    assert read_delta(folder / "deltas" / "000000000004.delta").header["after"] == \
        read_delta(warmed / "deltas" / "000000000001.delta").header["after"]  # fmt: skip
    again = job(folder, logs, tmp_path / "again", runtime)
    assert "nothing new" in again.text() and state_of(tmp_path / "again") == state_of(warmed)
    assert job(run_folder, logs, warmed, runtime, context=True).already_done


def test_rows_of_items_have_the_same_bits_and_without_the_option_nothing_is_kept_of_users(
    warmed: Path, logs: pa.Table, opened: FinishedRun, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    job(run_folder, logs, plain, runtime, users=False)
    assert state_of(plain, OF_ITEMS) == state_of(warmed, OF_ITEMS)
    assert not any((plain / "warm" / name).exists() for name in OF_USERS)
    assert set(read_delta(plain / "deltas" / "000000000001.delta", None).parts) == {
        "items", "rows", "log", "retired", "changed"
    }  # fmt: skip
    with_users, without = load_run(warmed, runtime), load_run(plain, runtime)
    items = torch.arange(without.num_items)
    assert torch.equal(with_users.embeddings(items), without.embeddings(items))
    users = torch.arange(opened.prepared.num_users).repeat(2)[: len(items)]
    assert torch.equal(with_users.scores(users, items), without.scores(users, items))
    nobody = [torch.full_like(items, run.prepared.num_users) for run in (with_users, without)]
    assert torch.equal(with_users.scores(nobody[0], items), without.scores(nobody[1], items))
    assert job(plain, logs, tmp_path / "then", runtime).users is not None
    assert state_of(tmp_path / "then") == state_of(warmed)


def test_a_user_is_found_by_name_and_scored_with_its_row_by_the_run_and_by_a_server(
    warmed: Path, logs: pa.Table, opened: FinishedRun, runtime: Runtime, tmp_path: Path
) -> None:
    run = load_run(warmed, runtime)
    users = torch.tensor([run.index_of(FIRST_NEW_USER + one, "user") for one in range(5)])
    assert users.tolist() == [opened.prepared.num_users + one for one in range(5)]
    with pytest.raises(UserError, match="no user"):
        run.index_of(FIRST_NEW_USER + 5, "user")
    items = torch.arange(50)
    stranger = run.scores(torch.full_like(items, run.prepared.num_users), items)
    folder = export(run, "parquet", tmp_path / "export", old_items=True, context=True)
    table = UserTable.of_export(folder)
    assert len(table) == len(run.user_ids)
    for user in users.tolist():
        scores = run.scores(torch.full_like(items, user), items)
        of_own = len(clicks_of(logs, run.user_ids[user].as_py(), opened)) >= FEWEST_CLICKS
        assert float((scores - stranger).abs().max()) > 1e-3 if of_own else torch.equal(scores, stranger)
        _, found, columns = table.rows([run.user_ids[user].as_py()])
        assert found.all()
        context = torch.cat(
            [run.item_context(items), torch.from_numpy(columns["user_context"]).expand(len(items), -1)], dim=1
        )
        with torch.no_grad():
            served = run.model.backbone(run.embeddings(items), context)
        torch.testing.assert_close(scores, served, rtol=0, atol=1e-5)
    of_job = pq.read_table(warmed / "export" / "users.parquet")
    assert of_job["user_id"].to_pylist() == run.user_ids[opened.prepared.num_users :].to_pylist()


@pytest.fixture(scope="module")
def fields(opened: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fields of the five users as those of the run's first ones, of one without a click, and of one of the run."""
    own = pq.read_table(opened.prepared.path / "users.parquet").drop_columns(["user_id"])
    ids = [*range(FIRST_NEW_USER, FIRST_NEW_USER + 5), FIRST_NEW_USER + 9, opened.user_ids[0].as_py()]
    table = own.slice(0, len(ids)).drop_columns(["raw_id"]).append_column("user_id", pa.array(ids))
    path = tmp_path_factory.mktemp("fields") / "users.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def with_fields(
    run_folder: Path, logs: pa.Table, fields: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("with-fields") / "run2"
    report = job(run_folder, logs, output, runtime, user_fields=fields, context=True)
    assert "6 have got fields" in report.text()
    return output


def test_fields_of_new_users_count_in_their_rows_and_scores_whenever_they_come(
    warmed: Path,
    with_fields: Path,
    logs: pa.Table,
    fields: Path,
    opened: FinishedRun,
    run_folder: Path,
    runtime: Runtime,
    tmp_path: Path,
) -> None:
    run, without = load_run(with_fields, runtime), load_run(warmed, runtime)
    items, dim = torch.arange(50), opened.model.dim
    place = opened.model.users.names.index("user_id") * dim
    for number in (0, 4):  # with few clicks, with many
        new, like = run.index_of(FIRST_NEW_USER + number, "user"), number
        one, other = run.user_context([new])[0], opened.user_context([like])[0]
        assert torch.equal(one[:place], other[:place]) and torch.equal(one[place + dim :], other[place + dim :])
        scores = run.scores(torch.full_like(items, new), items)
        assert not torch.equal(scores, without.scores(torch.full_like(items, new), items))
    rows = [
        one.model.user_tables.rows_of("user_id", torch.tensor([one.index_of(FIRST_NEW_USER + 4, "user") + 1]))
        for one in (run, without)
    ]
    assert not torch.equal(*rows), "the rule reads the fields"
    quiet = run.index_of(FIRST_NEW_USER + 9, "user")
    assert torch.equal(run.model.user_tables.rows_of("user_id", torch.tensor([quiet + 1]))[0], opened.mean_user)
    # After the clicks, before them and by deltas: the same state.
    warm(warmed, None, tmp_path / "after", runtime, users=True, user_fields=fields)
    warm(run_folder, None, tmp_path / "first", runtime, users=True, user_fields=fields)
    job(tmp_path / "first", logs, tmp_path / "then", runtime)
    apply(run_folder, [warmed / "deltas", tmp_path / "after" / "deltas"], tmp_path / "copy")
    for folder in ("after", "then", "copy"):
        assert state_of(tmp_path / folder) == state_of(with_fields), folder
    with pytest.raises(UserError, match="add --users"):
        run_command("warm", [str(run_folder), "--user-fields", str(fields), "--output", str(tmp_path / "none")])


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
def test_deltas_bring_users_into_exports_and_into_copies_of_the_run(
    kind: Any, warmed: Path, logs: pa.Table, opened: FinishedRun, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    first = export(opened, kind, tmp_path / "export", old_items=True, context=True)
    report = apply(first, [warmed / "deltas"])
    assert report.num_changed > 0
    run = load_run(warmed, runtime)
    expected = export(run, kind, tmp_path / "expected", old_items=True, context=True)
    names = [path.name for path in expected.iterdir() if path.name.startswith("user")]
    assert names and all((first / name).read_bytes() == (expected / name).read_bytes() for name in names)
    if kind == "parquet":
        plain = export(opened, kind, tmp_path / "plain")
        apply(plain, [warmed / "deltas"])
        assert not (plain / "users.parquet").exists()
        apply(run_folder, [warmed / "deltas"], tmp_path / "copy")
        assert state_of(tmp_path / "copy") == state_of(warmed)
        users = UserTable.of_export(tmp_path / "expected")
        assert (users.number, users.state) == (1, report.state)


# A server that leaves users as the export has them.
WITHOUT_USERS = """
UserTable._changes = lambda self, delta: ([], {}, [])
"""


def test_a_server_is_checked_on_the_users_that_deltas_bring(
    opened: FinishedRun, warmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(opened, "parquet", tmp_path / "export", context=True)
    found = serve_check(folder, opened, [warmed / "deltas"], num_requests=40, num_rows=32)
    assert found.is_good and found.num_deltas == 1
    (tmp_path / "reader.py").write_text(check_module.READER.read_text() + WITHOUT_USERS)
    monkeypatch.setattr(check_module, "READER", tmp_path / "reader.py")
    assert not serve_check(folder, opened, [warmed / "deltas"], num_requests=40, num_rows=32).is_good


def test_a_click_on_a_retired_id_later_than_its_end_is_another_items(
    opened: FinishedRun, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    item = opened.item_ids[0].as_py()
    newest = int(opened.prepared.columns("test", ("time",))["time"].max())
    columns = {"user_id": [FIRST_NEW_USER] * 3, "item_id": [item] * 3, "label": [1, 0, 1]}
    table = pa.table(columns | {"timestamp": [5, 6, newest + 9]})
    pq.write_table(pa.table({"item_id": [item]}), tmp_path / "gone.parquet")
    before = job(run_folder, table.slice(0, 1), tmp_path / "a", runtime, retiring=Retiring(tmp_path / "gone.parquet"))
    assert before.users is not None and len(before.users.new_log["item"]) == 1
    after = load_run(tmp_path / "a", runtime)
    row = after.model.user_tables.rows_of("user_id", torch.tensor([after.index_of(FIRST_NEW_USER, "user") + 1]))[0]
    assert torch.equal(row, opened.mean_user), "with so few clicks the mean user's row stays"
    then = job(tmp_path / "a", table, tmp_path / "b", runtime).users
    assert then is not None and then.new_log["time"].tolist() == [6] and then.num_left_out == 1


def test_a_row_begins_to_move_at_the_tenth_click(
    opened: FinishedRun, run_folder: Path, runtime: Runtime, tmp_path: Path
) -> None:
    users = [FIRST_NEW_USER] * (FEWEST_CLICKS - 1) + [FIRST_NEW_USER + 1] * FEWEST_CLICKS
    items = opened.item_ids.to_pylist()[: len(users)]
    columns = {"user_id": users, "item_id": items, "label": [one % 2 for one in range(len(users))]}
    job(run_folder, pa.table(columns | {"timestamp": range(10**9, 10**9 + len(users))}), tmp_path / "a", runtime)
    run = load_run(tmp_path / "a", runtime)
    places = torch.tensor([run.index_of(FIRST_NEW_USER + one, "user") + 1 for one in range(2)])
    below, reached = run.model.user_tables.rows_of("user_id", places)
    assert FEWEST_CLICKS == 10
    assert torch.equal(below, opened.mean_user) and not torch.equal(reached, opened.mean_user)


def test_a_catch_up_leaves_users_as_they_are(warmed: Path, runtime: Runtime, tmp_path: Path) -> None:
    assert catch_up(warmed, tmp_path / "all", runtime).change.num_new > 0
    assert state_of(tmp_path / "all", OF_USERS) == state_of(warmed, OF_USERS)


def test_users_do_not_go_with_following() -> None:
    with pytest.raises(UserError, match="--users out"):
        run_command("warm", ["run", "--follow", "clicks", "--users", "--output", "out"])


@pytest.mark.dist
def test_two_ranks_make_the_users_of_one(
    run_folder: Path, logs: pa.Table, fields: Path, with_fields: Path, tmp_path: Path
) -> None:
    pq.write_table(logs, tmp_path / "new.parquet")
    command = ["warm", str(run_folder), "--interactions", str(tmp_path / "new.parquet"), "--users", "--context"]
    command += ["--user-fields", str(fields)]
    with forked(cli.main, ([*command, "--output", str(tmp_path / "two")],), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()
    assert state_of(tmp_path / "two") == state_of(with_fields)
    users = "export/users.parquet"
    assert (tmp_path / "two" / users).read_bytes() == (with_fields / users).read_bytes()


def test_a_later_user_is_explained_by_the_rows_that_jobs_would_have_served(
    run_folder: Path, opened: FinishedRun, logs: pa.Table, runtime: Runtime, tmp_path: Path
) -> None:
    job(run_folder, logs.slice(0, 130), tmp_path / "monday", runtime)
    job(tmp_path / "monday", logs, tmp_path / "tuesday", runtime)
    run = load_run(tmp_path / "tuesday", runtime)
    user = FIRST_NEW_USER + 4
    clicks = clicks_of(logs, user, opened)
    found = explain(run, user, side="user")
    assert (found.side, found.interactions, found.phase) == (
        "user",
        len(clicks),
        "since the run, with a row of its own",
    )
    assert found.positives == {"served": sum(one["label"] for one in clicks) / len(clicks)}
    # The first rows are the mean user's, the last one is the one that is served.
    index = run.index_of(user, "user")
    served = run.model.user_tables.rows_of("user_id", torch.tensor([index + 1]))[0].detach().numpy()
    few = [point for point in found.history if point.clicks < FEWEST_CLICKS]
    assert few and all(np.array_equal(point.embedding, run.mean_user.numpy()) for point in few)
    assert found.history[-1].clicks == len(clicks) and np.array_equal(found.history[-1].embedding, served)
    items = torch.randint(run.num_items, (1024,), generator=torch.Generator().manual_seed(0))
    expected = run.scores(torch.full_like(items, index), items).sigmoid().mean()
    assert found.history[-1].score == near(float(expected), num_terms=100)
    # The deltas of both jobs have what a server knew after them.
    num_then = len(clicks_of(logs.slice(0, 130), user, opened))
    told = explain(run, user, deltas=[tmp_path / "monday"], side="user").applied
    assert [(one.number, one.interactions) for one in told] == [(1, num_then), (2, len(clicks))] and num_then > 0
    assert told[-1].score == found.history[-1].score
    assert f"user {user}: since the run" in found.text() and "same 1024 random items" in found.text()
    plot_item(found.view(), tmp_path / "user.png")
    assert "Nearest users of the run" in item_page(found.view(), tmp_path / "user.png")
    rows = run.model.user_tables.rows_of("user_id", 1 + torch.arange(run.prepared.num_users)).detach().numpy()
    cosine = rows[: len(run.prepared.raw_ids("user"))] @ served / np.linalg.norm(rows, axis=1)[:300]
    best = np.argsort(-cosine, kind="stable")[:10]
    assert [one for one, _ in found.nearest] == [run.user_ids[int(place)].as_py() for place in best]
