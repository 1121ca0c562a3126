"""`mwuf plan`: memory near what is measured, and the plan that a run would have."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.plan import compare
from mwuf_dist import cli
from mwuf_dist.config import EmbeddingConfig, UserError, merge, to_toml
from mwuf_dist.config import build as build_config
from mwuf_dist.embeddings.sharding import TableSpec, placements
from mwuf_dist.planning.devices import DEVICES, Network, _fastest, _mean_s
from mwuf_dist.planning.estimate import Size, _step_times, count, estimate, seconds_of_exchanges
from mwuf_dist.planning.report import plan
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run, _prepare
from tests.tiny import TINY, tiny

# Tables of 300,000 users, so that what is planned outweighs what a process takes anyway.
LARGE = merge(TINY, {"data": {"synthetic": {"num_users": 300_000}}, "embedding": {"dim": 64}})


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_estimated_memory_is_within_one_and_a_half_times_of_the_measured(ranks: int, tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_text(to_toml(build_config(LARGE)))
    record = compare(path, ranks, num_steps=3)
    assert 1 / 1.5 < record["measured_bytes"] / record["estimated_bytes"] < 1.5, json.dumps(record)


def test_products_are_counted_though_a_compiled_loop_does_them_here(tmp_path: Path) -> None:
    config = tiny()
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, _prepare(config, runtime))
        found = count(config, job.prepared, runtime, job.method, job.model)
        job.session.recorder.close()
        weights = sum(p.numel() for p in job.model.backbone.mlp.parameters() if p.dim() == 2)
    # A multiplication and an addition for each weight, forward and in both products of the backward.
    assert found.flops_per_row >= 0.9 * 2 * 3 * weights and found.num_ops > 50


@pytest.mark.parametrize(
    ("sharding", "backbone", "exchanges"),
    [("row_wise", "deepfm", 2), ("row_wise", "gru4rec", 2), ("column_wise", "deepfm", 16)],
)
def test_a_plan_counts_exchanges_of_the_way_that_tables_take(
    sharding: str, backbone: str, exchanges: int, tmp_path: Path
) -> None:
    """Rows are asked for once a step, with histories too; by TorchRec five times a table of three, and a sum apart."""
    config = tiny(embedding={"sharding": sharding, "dim": 8}, backbone={"name": backbone, "batch_norm": False})
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, _prepare(config, runtime))
        counts = count(config, job.prepared, runtime, job.method, job.model)
        job.session.recorder.close()
        is_compiled = runtime.is_compiled
    here = replace(DEVICES["h200"], is_here=True, per_host=2, latency_s=1.0)
    found = estimate(config, counts, Size(2, 1000, 100, 100), here).seconds["collectives"]
    assert found == (exchanges if is_compiled else 16)


def test_large_tables_are_shared_by_all_ranks_and_small_ones_spread_over_them() -> None:
    specs = [TableSpec("large", 1 << 20, 16), TableSpec("a", 100, 16), TableSpec("b", 100, 16)]
    found = placements(specs, EmbeddingConfig(), 4)
    assert found["large"].kind == "row_wise"
    assert {found["a"].kind, found["b"].kind} == {"table_wise"} and found["a"].rank != found["b"].rank
    assert {placement.kind for placement in placements(specs, EmbeddingConfig(), 1).values()} == {"table_wise"}


def test_a_table_by_rows_of_which_a_rank_would_have_none_is_one_ranks() -> None:
    """Of 4 rows three ranks would have 2, 2 and 0."""
    specs = [TableSpec(str(rows), rows, 16) for rows in (2, 3, 4, 5, 7)]
    found = placements(specs, EmbeddingConfig(sharding="row_wise"), 3)
    by_rows = {name for name, placement in found.items() if placement.kind == "row_wise"}
    assert by_rows == {"3", "5", "7"}


def test_a_plan_names_every_table_and_warns_where_it_does_not_fit() -> None:
    fits = plan(tiny(), 64, "h200", 1e9, 0, 0)
    assert "user.user_id" in fits and "row_wise" in fits and "estimate" in fits and "do not fit" not in fits
    too_large = plan(tiny(embedding={"dim": 512}), 2, "h200", 1e9, 1e9, 1e6)
    assert "do not fit on h200" in too_large
    with pytest.raises(UserError, match="--world-size"):
        plan(tiny(), 0, "cpu", 0, 0, 0)


def test_ranks_of_other_hosts_pay_for_the_network_and_those_of_one_do_not() -> None:
    network = Network(bytes_per_s=1e6, delay_s=1e-3, ranks_per_host=2)
    device = DEVICES["h200"].joined_by(network)
    assert seconds_of_exchanges(5e6, 3, device, 1) == {"wire": 0.0, "collectives": 0.0}
    assert sum(seconds_of_exchanges(5e6, 3, device, 2).values()) < 1e-3
    assert 5.003 < sum(seconds_of_exchanges(5e6, 3, device, 3).values()) < 5.01
    assert DEVICES["h200"].joined_by(Network()) == DEVICES["h200"]
    assert "8 Gbit/s a rank, 1 ms one way" in plan(tiny(), 4, "h200", 0, 0, 0, Network(1e9, 1e-3, 2))


def test_time_in_which_other_programs_have_the_core_is_no_work() -> None:
    """A step that waits stands for one that another program holds up: the clock counts it, the estimate does not."""
    wait_s = 2e-3

    def wait(_: object = None) -> None:
        time.sleep(wait_s)

    config = tiny()
    stage: Any = SimpleNamespace(
        step=wait, model=SimpleNamespace(pretrain_rows=lambda *_: SimpleNamespace(epoch=lambda _: itertools.repeat(0)))
    )
    times = _step_times(config, None, stage)  # pyright: ignore[reportArgumentType]
    assert times.fixed_s + config.pretrain.batch_size * times.row_s < wait_s
    assert _fastest(wait, times=2) < wait_s
    processor_s, clock_s = _mean_s(wait)
    assert processor_s < wait_s <= clock_s


def test_the_command_needs_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny()))
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(path), "--world-size", "8", "--device", "a100"])
    assert not end.value.code
    assert "pretrain on 8 x a100" in capsys.readouterr().out
