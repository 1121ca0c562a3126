"""A run with vectors of its items: in the model, in the daily job, and in what is exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import UserError, build, to_dict
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.warm.job import warm
from tests.bounds import assert_float32_close
from tests.data.test_vectors import some_vectors
from tests.data.test_vectors import write as write_logs
from tests.serving.own_logs import a_day
from tests.tiny import TINY

NEVER_SEEN = 950


class Trained(NamedTuple):
    folder: Path
    run: FinishedRun
    runtime: Runtime


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("vectors")
    ours = to_dict(write_logs(folder, some_vectors()))["data"]
    sections = {"data": ours, "backbone": {"name": "fm"}, "method": {"name": "map"}}
    config = build(TINY | sections)
    local.train(config, folder / "run")
    with start(config) as runtime:
        yield Trained(folder, load_run(folder / "run", runtime), runtime)


def test_a_vector_is_one_more_field_by_a_learned_linear_map(trained: Trained) -> None:
    model, prepared = trained.run.model, trained.run.prepared
    vectors = torch.from_numpy(prepared.entity("item").columns["cover"].values)
    assert model.shape.item_fields == ("any_item", "cover")
    (weight,) = model.vector_fields.parameters()
    found = model.item_fields(torch.arange(prepared.num_items))[:, model.dim :]
    assert_float32_close(found, vectors @ weight, num_terms=vectors.shape[1])
    start_std = trained.run.config.embedding.init_std / vectors.shape[1] ** 0.5
    assert float(weight.std()) > 1.2 * start_std, "it has not been trained"


def test_a_warm_item_never_seen_gets_its_vector_by_the_runs_statistics(trained: Trained, tmp_path: Path) -> None:
    pq.write_table(a_day(), tmp_path / "day.parquet")
    vector = [7.0, 3.0, -2.0]
    items = pa.table({"item_id": [NEVER_SEEN], "cover": pa.array([vector])})
    pq.write_table(items, tmp_path / "items.parquet")
    warm(
        trained.folder / "run", tmp_path / "day.parquet", tmp_path / "out", trained.runtime, tmp_path / "items.parquet"
    )
    run = load_run(tmp_path / "out", trained.runtime)
    place = run.item_ids.to_pylist().index(NEVER_SEEN)
    scale = run.prepared.manifest["vectors"]["cover"]
    expected = (np.array(vector) - scale["mean"]) / scale["deviation"]
    found = run.prepared.entity("item").columns["cover"].values
    np.testing.assert_allclose(found[place], expected, rtol=1e-5)
    np.testing.assert_array_equal(
        found[: trained.run.num_items], trained.run.prepared.entity("item").columns["cover"].values
    )
    assert torch.equal(
        run.item_context([place])[0, run.model.dim :], run.model.item_fields(torch.tensor([place]))[0, 8:]
    )
    bad = pa.table({"item_id": [NEVER_SEEN], "cover": pa.array([[1.0, 2.0]])})
    pq.write_table(bad, tmp_path / "items.parquet")
    with pytest.raises(UserError, match="cover is a vector of 2 numbers, and the data set has 3"):
        warm(
            trained.folder / "run",
            tmp_path / "day.parquet",
            tmp_path / "bad",
            trained.runtime,
            tmp_path / "items.parquet",
        )


def test_the_vectors_embedding_is_exported_like_that_of_any_field(trained: Trained, tmp_path: Path) -> None:
    export(trained.run, "npy", tmp_path / "out", context=True)
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["context"] == ["any_item", "cover", "user_id"]
    found = np.load(tmp_path / "out" / "item_context.npy")
    run = trained.run
    new = run.model.item_fields(torch.arange(run.num_old_items, run.num_items))
    np.testing.assert_array_equal(found[-len(new) :], new.detach().numpy())
