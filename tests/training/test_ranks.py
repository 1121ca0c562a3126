"""One rank and several ranks compute the same thing from the same global batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from mwuf_kernels import native
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from mwuf_dist.config import build, merge, read_toml, to_toml, without_studies
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run, _prepare
from tests.bounds import SAME_AUC, SAME_TABLES
from tests.faults.ranks import finished, launched
from tests.serving.own_logs import write
from tests.tiny import TINY
from tests.waiting import LONGEST_S

pytestmark = pytest.mark.dist

# Small steps and few hidden units. Ranks sum in another order, and two things make that rounding visible: Adam, where a
# gradient is near its epsilon (an error of learning rate x rounding / 1e-8), and a ReLU whose input is about zero.
# Over two seeds and both shardings the tables differed by at most 8e-7 with these settings.
VALUES = merge(TINY, {"backbone": {"hidden": [8], "dropout": 0.2}, "pretrain": {"epochs": 3, "learning_rate": 5e-3}})


def run(folder: Path, values: dict[str, Any], ranks: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """`mwuf run` in processes of its own; its results and the tensors of its last checkpoint."""
    finished(folder, ranks, values=values)
    return read(folder)


def run_under_torchrun(folder: Path, values: dict[str, Any], ranks: int) -> None:
    """The same from the command line, each rank a new Python."""
    config = folder.with_suffix(".toml")
    config.write_text(to_toml(build(values)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, "-m", "mwuf_dist", "run", str(config), "--output", str(folder)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.returncode == 0, done.stderr[-3000:]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text()
    dcp_to_torch_save(checkpoint, folder / "whole.pt")
    return json.loads((folder / "results.json").read_text()), torch.load(folder / "whole.pt", weights_only=False)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return run(tmp_path_factory.mktemp("ranks") / "one", VALUES, 1)


def check(
    folder: Path,
    one_rank: tuple[dict[str, Any], dict[str, torch.Tensor]],
    above: float = 0.62,
    num_tables: int = 8,
) -> dict[str, Any]:
    """That the run in a folder has made what one rank makes; its results."""
    expected, expected_tensors = one_rank
    assert expected["split"]["pretrain"] % VALUES["pretrain"]["batch_size"], "the last batch must not be full"
    assert all(phase["auc_test"] > above for phase in expected["phases"].values())
    found, tensors = read(folder)
    for phase, metrics in expected["phases"].items():
        for name in ("auc_next", "auc_test"):
            assert found["phases"][phase][name] == pytest.approx(metrics[name], abs=SAME_AUC), (phase, name)
    tables = [name for name in expected_tensors if name.split(".")[0] in ("user", "item", "old", "new")]
    assert len(tables) >= num_tables
    for name in tables:
        difference = (tensors[name] - expected_tensors[name]).abs().max()
        assert difference < SAME_TABLES, (name, float(difference))
    return found


TRACED_STEPS = 5


def traced(folder: Path, stage: str) -> list[str]:
    """What the main rank did in the traced steps of a stage."""
    trace = json.loads((folder / "profile" / f"{stage}.json").read_text())
    return [event["name"] for event in trace["traceEvents"]]


# Three ranks cannot share 64 lanes evenly: two of them pad each batch.
@pytest.mark.parametrize(
    ("ranks", "sharding"),
    [
        (2, "row_wise"),
        (2, "table_wise"),
        (2, "column_wise"),
        pytest.param(3, "row_wise", marks=pytest.mark.slow),
        pytest.param(3, "replicated", marks=pytest.mark.slow),
    ],
)
def test_several_ranks_give_the_auc_and_the_tables_of_one_rank(
    ranks: int, sharding: str, one_rank: Any, tmp_path: Path
) -> None:
    values = merge(VALUES, {"embedding": {"sharding": sharding}, "runtime": {"profile": sharding == "table_wise"}})
    (run_under_torchrun if sharding == "row_wise" else run)(tmp_path / "several", values, ranks)
    assert check(tmp_path / "several", one_rank)["world_size"] == ranks
    if sharding == "table_wise" and native.library() is not None:
        # Rows, and gradients with those of others and the next IDs, once for all tables; in pretrain two for BatchNorm.
        for stage, most in {"pretrain": 4, "meta_train": 2, "warm_up-a": 2, "warm_up-c": 2}.items():
            assert traced(tmp_path / "several", stage).count("one_host:meet") == most * TRACED_STEPS, stage


def test_small_tables_are_replicated_and_a_step_makes_few_exchanges(one_rank: Any, tmp_path: Path) -> None:
    """One of all gradients, and two of each BatchNorm. What two ranks have saved, one goes on from.

    In pretrain the rows go through the compiled loop, as on one rank: torch sees no product of matrices.
    """
    folder = tmp_path / "two"
    run(folder, merge(VALUES, {"runtime": {"profile": True}}), 2)
    check(folder, one_rank)
    meta = json.loads(next((folder / "checkpoints").glob("*/meta.json")).read_text())
    assert {kind for tables in meta["plans"].values() for kind in tables.values()} == {"replicated"}
    for stage, most in {"pretrain": 3, "meta_train": 1, "warm_up-a": 1, "warm_up-c": 1}.items():
        names = traced(folder, stage)
        assert names.count("one_host:meet") == most * TRACED_STEPS, stage
        if stage == "pretrain" and native.library() is not None:
            assert "aten::mm" not in names and "aten::addmm" not in names
        # Beside steps, the ranks agree on whether to save: as often as before it, and not for each step.
        others = [name for name in names if name.startswith("gloo:")]
        assert set(others) <= {"gloo:all_reduce"} and len(others) < TRACED_STEPS, (stage, others)
    config = build(VALUES)
    with start(config) as runtime:
        job = Run(config, folder, runtime, _prepare(config, runtime))
        job.pretrain(None)
        job.session.recorder.close()
        for tables in job.model.pretrained_tables:
            for name in tables.specs:
                saved = torch.load(folder / "whole.pt", weights_only=False)[f"{tables.name}.{name}"]
                assert torch.equal(tables.shards(name)[0].weight, saved), name


@pytest.mark.slow
def test_two_agents_of_one_rank_each_give_the_auc_and_the_tables_of_one_rank(one_rank: Any, tmp_path: Path) -> None:
    """As on two machines: `torchrun --nnodes=2`, which meet at an address; here both are this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, config = tmp_path / "two", tmp_path / "two.toml"
    config.write_text(to_toml(build(VALUES)))
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]
    command = [*torchrun, "-m", "mwuf_dist", "run", str(config), "--output", str(folder)]
    with (tmp_path / "log").open("w") as log:
        agents = [subprocess.Popen(command, env=os.environ, stdout=log, stderr=subprocess.STDOUT) for _ in range(2)]
        try:
            codes = [agent.wait(240) for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
    assert codes == [0, 0], (tmp_path / "log").read_text()[-3000:]
    check(folder, one_rank)


OWN_MODULE = """
import torch
from torch import nn

class Dropped(nn.Module):
    def __init__(self, config, shape):
        super().__init__()
        width = shape.num_fields * shape.dim
        self.layers = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))
    def forward(self, item, context):
        return self.layers(torch.cat([item, context], dim=1)).squeeze(1)
"""


def test_dropoutnet_and_a_backbone_of_ones_own_with_dropout_give_on_two_ranks_what_they_give_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_dropped.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"backbone": {"name": "own_dropped:Dropped"}, "method": {"name": "dropoutnet"}, "pretrain": {"epochs": 1}}
    values = merge(VALUES, own)
    expected = run(tmp_path / "one", values, 1)
    run(tmp_path / "two", values, 2)
    check(tmp_path / "two", expected, above=0.5)


def own_log(folder: Path, num_old: int, num_new: int, num_users: int) -> dict[str, Any]:
    """The values of a run on a log of so few items and users; an old item has 60 rows, a new one 15."""
    random = np.random.default_rng(0)
    item = np.concatenate([np.repeat(np.arange(num_old), 60), np.repeat(1000 + np.arange(num_new), 15)])
    item = item[random.permutation(len(item))]
    user = random.integers(num_users, size=len(item))
    label = random.random(len(item)) < np.where(user % 2 == item % 2, 0.7, 0.2)
    color = np.array(["red", "blue"])[item % 2]  # or all items would have the same field, see below
    times = 1_600_000_000 + np.arange(len(item))
    columns = {"user_id": user, "item_id": item, "timestamp": times, "label": label, "color": color}
    columns["place"] = times % 3
    log = {"interactions": str(write(pa.table(columns), folder / "log.csv")), "label": "label"}
    log |= {"fields": [{"name": "color", "side": "item"}]}
    data = {"name": "logs", "old_above": 50, "warm_rows": 4, "logs": log}
    return {key: value for key, value in VALUES.items() if key != "data"} | {"data": data}


def test_three_ranks_give_what_one_gives_where_there_are_fewer_rows_than_lanes(tmp_path: Path) -> None:
    values = own_log(tmp_path, num_old=2, num_new=3, num_users=5)
    expected = run(tmp_path / "one", values, 1)
    run(tmp_path / "three", values, 3)
    check(tmp_path / "three", expected, above=0, num_tables=3)


def test_two_ranks_fit_rows_of_fewer_new_items_than_old_ones_that_they_cannot_share_evenly(tmp_path: Path) -> None:
    """A stand-in for the item that the second rank lacks was looked for before the first new one.

    The rows' own fields were padded with fields instead of rows.
    """
    values = merge(
        own_log(tmp_path, num_old=20, num_new=5, num_users=30), {"method": {"name": "map"}, "backbone": {"name": "fm"}}
    )
    values["data"]["logs"]["fields"].append({"name": "place", "side": "row"})
    expected = run(tmp_path / "one", values, 1)
    run(tmp_path / "two", values, 2)
    check(tmp_path / "two", expected, above=0, num_tables=3)


@pytest.mark.parametrize(("num_old", "num_users", "named"), [(1, 40, "one old item"), (20, 1, "one user")])
def test_with_batch_norm_a_column_that_is_the_same_in_all_rows_is_refused_on_several_ranks(
    num_old: int, num_users: int, named: str, tmp_path: Path
) -> None:
    """Its gradient is zero but for rounding, which Adam makes steps of: tables differed by .1, AUCs by .02."""
    values = own_log(tmp_path, num_old, 30, num_users)
    with launched(tmp_path / "two", 2, values=values) as launch:
        assert launch.wait() == [2, 2]
        assert f"{named} in these data" in launch.said() and "backbone.batch_norm = false" in launch.said()
    without = merge(values, {"backbone": {"batch_norm": False}})
    expected = run(tmp_path / "one", without, 1)
    run(tmp_path / "two without", without, 2)
    check(tmp_path / "two without", expected, above=0, num_tables=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo.toml", "movielens-1m.toml"])
def test_the_shipped_configs_find_on_several_ranks_what_one_finds_but_for_amplified_rounding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Dropout, BatchNorm and all. What one weight's last bit changes on one rank is as large: see docs/algorithm.md."""
    if name.startswith("movielens"):
        request.getfixturevalue("movielens_dir")
    monkeypatch.setattr("tests.faults.ranks.TIMEOUT_S", 900)
    shipped = without_studies(read_toml(Path(__file__).parents[2] / "configs" / name))
    values = merge(shipped, {"runtime": {"progress": "off"}})
    expected, _ = run(tmp_path / "one", values, 1)
    for ranks in (2, 3):
        found, _ = run(tmp_path / str(ranks), values, ranks)
        for phase, metrics in expected["phases"].items():
            for scoring in ("auc_next", "auc_test"):
                assert found["phases"][phase][scoring] == pytest.approx(metrics[scoring], abs=0.01), (ranks, phase)
