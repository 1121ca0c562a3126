"""`mwuf export --uncertainty`: variances of the posterior, which jobs, deltas and exports agree on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.launch import local
from mwuf_dist.methods import build_method
from mwuf_dist.methods.map import Map
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.reader import values_of
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.follow import follow
from mwuf_dist.serving.warm.interactions import Columns
from mwuf_dist.serving.warm.sources import FolderSource
from tests.serving.test_warm_methods import QUICK, UNSEEN, job, make_logs
from tests.tiny import tiny


class Warmed(NamedTuple):
    folder: Path
    output: Path
    runtime: Runtime


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warmed]:
    scratch = tmp_path_factory.mktemp("uncertainty")
    method = {"name": "map", "prior": "content"}
    local.train(tiny(**QUICK | {"method": method, "backbone": {"name": "fm"}}), scratch / "run")
    with start(read_run(scratch / "run")[0]) as runtime:
        export(load_run(scratch / "run", runtime), "parquet", scratch / "export", uncertainty=True)
        job(scratch / "run", make_logs(load_run(scratch / "run", runtime)), scratch / "out", runtime)
        yield Warmed(scratch / "run", scratch / "out", runtime)


def variances(folder: Path) -> dict[int, np.ndarray]:
    table = pq.read_table(folder / "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), values_of(table["variance"]), strict=True))


def exported(run: FinishedRun, folder: Path, old_items: bool = False) -> dict[int, np.ndarray]:
    return variances(export(run, "parquet", folder, old_items=old_items, uncertainty=True))


def by_hessian(
    run: FinishedRun,
    item: int,
    users: list[int],
    labels: list[int],
    weights: np.ndarray | None = None,
    rows: dict[str, list[Any]] | None = None,
) -> np.ndarray:
    """Variances by the inverse of the second derivative of an item's loss, which autograd takes at the served row."""
    assert isinstance(run.method, Map)
    index, precision = run.index_of(item), run.method.precision.double()
    row = run.model.new_ids.rows(torch.tensor([index]))[0].double()
    context = run.context(torch.tensor(users), torch.full((len(users),), index), rows).double()
    backbone = run.model.backbone.double()
    label = torch.tensor(labels).double()
    weight = None if weights is None else torch.from_numpy(weights).double()

    def loss(v: torch.Tensor) -> torch.Tensor:
        logit = backbone(v.expand(len(users), -1), context)
        bce = torch.nn.functional.binary_cross_entropy_with_logits(logit, label, weight, reduction="sum")
        return bce + v @ precision @ v / 2

    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(loss, row)
    run.model.backbone.float()
    assert isinstance(hessian, torch.Tensor)
    return torch.linalg.inv(hessian).diagonal().numpy()


def test_variances_are_the_inverse_curvature_at_the_served_rows_and_fall_with_clicks(
    warmed: Warmed, tmp_path: Path
) -> None:
    before, after = (load_run(folder, warmed.runtime) for folder in (warmed.folder, warmed.output))
    found = {False: exported(before, tmp_path / "before"), True: exported(after, tmp_path / "after", old_items=True)}
    log = pq.read_table(warmed.output.with_suffix(".parquet")).to_pylist()
    raw = {user: index for index, user in enumerate(before.prepared.entity("user").raw_ids.tolist())}
    chosen = [one for one in after.new_item_ids if any(row["item_id"] == one for row in log)]
    chosen = [one for one in chosen if all(row["user_id"] in raw for row in log if row["item_id"] == one)][:3]
    assert len(chosen) == 3
    for item in chosen:
        users, labels = [], []
        for split in ("warm_a", "warm_b", "warm_c"):
            columns = before.prepared.columns(split, ("user", "item", "label"))
            mine = columns["item"] == before.index_of(item)
            users += columns["user"][mine].tolist()
            labels += columns["label"][mine].tolist()
        assert found[False][item] == pytest.approx(by_hessian(before, item, users, labels), rel=1e-3)
        new = [(raw[row["user_id"]], row["label"]) for row in log if row["item_id"] == item]
        users, labels = [*users, *(user for user, _ in new)], [*labels, *(label for _, label in new)]
        assert found[True][item] == pytest.approx(by_hessian(after, item, users, labels), rel=1e-3)
    moved = [item for item in found[False] if not np.array_equal(found[False][item], found[True][item])]
    assert set(moved) <= {row["item_id"] for row in log}
    old = after.old_item_ids[0]
    assert np.isnan(found[True][old]).all() and not any(np.isnan(found[True][item]).any() for item in moved)
    assert {item for item in found[True] if item >= UNSEEN}, "items that the run has never seen have one too"


def test_an_export_that_deltas_bring_up_to_date_is_the_export_of_the_job(warmed: Warmed, tmp_path: Path) -> None:
    expected = exported(load_run(warmed.output, warmed.runtime), tmp_path / "expected")
    apply(warmed.folder.parent / "export", [warmed.output / "deltas"], tmp_path / "applied")
    found = variances(tmp_path / "applied")
    assert found.keys() == expected.keys()
    for item, values in expected.items():
        assert found[item] == pytest.approx(values, rel=1e-5), item
    changed = variances(warmed.output / "export")
    assert changed and all(changed[item] == pytest.approx(expected[item], rel=1e-5) for item in changed)


def test_a_follower_writes_the_variances_that_a_job_writes(warmed: Warmed, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pq.read_table(warmed.output.with_suffix(".parquet"))
    # The second file brings rows of one item that are known beside new ones of others.
    item = table["item_id"].to_numpy()
    first, known = item != item[-1], item == item[0]
    pq.write_table(table.filter(pa.array(first)), tmp_path / "in" / "1.parquet")
    source = FolderSource(tmp_path / "in")
    follow(warmed.folder, source, tmp_path / "live", warmed.runtime, Columns(), until_idle=True)
    pq.write_table(table.filter(pa.array(~first | known)), tmp_path / "in" / "2.parquet")
    follow(warmed.folder, source, tmp_path / "live", warmed.runtime, Columns(), until_idle=True)
    apply(warmed.folder.parent / "export", [tmp_path / "live" / "deltas"], tmp_path / "applied")
    found, changed = variances(tmp_path / "applied"), variances(warmed.output / "export")
    assert item[0] in changed and item[-1] in changed and item[0] != item[-1]
    assert all(found[item] == pytest.approx(changed[item], rel=1e-5) for item in changed)


def test_a_method_without_a_posterior_is_refused_by_its_name(warmed: Warmed, tmp_path: Path) -> None:
    run, base = load_run(warmed.folder, warmed.runtime), method_config(name="base")
    method = build_method(base, run.model.dim, run.model.shape.num_item_fields * run.model.dim)
    run = dataclasses.replace(run, method=method, config=dataclasses.replace(run.config, method=base))
    with pytest.raises(UserError, match="method 'base' trains rows by steps and has no posterior"):
        export(run, "parquet", tmp_path / "export", uncertainty=True)
    assert not (tmp_path / "export").exists()
