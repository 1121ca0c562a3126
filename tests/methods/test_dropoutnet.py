"""DropoutNet drops item ID embeddings in pretraining, as often as it says, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.config import Config, UserError, config_hash
from mwuf_dist.config.registry import backbone_config, method_config
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.methods import build_method
from mwuf_dist.methods.dropoutnet import DropoutNet
from mwuf_dist.runtime import start
from mwuf_dist.studies.compare import pretraining_of
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.bounds import assert_float32_close, sampling_error
from tests.tiny import tiny

BACKBONE = {"name": "wide_deep", "batch_norm": False}


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    config: Config = request.param
    with start(config) as runtime:
        (tmp_path / "run").mkdir()
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        yield job
        job.session.recorder.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_row_is_kept_whole_or_becomes_zero_in_the_configured_share(share: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(20_000, 4)
    found = DropoutNet(method_config(name="dropoutnet", item_dropout=share), 4, 8).pretrain_item(rows)
    dropped = (found == 0).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(share, abs=4 * sampling_error(0.5, 20_000))
    assert torch.equal(found[~dropped], rows[~dropped])  # kept rows are not scaled


@pytest.mark.parametrize("job", [tiny(method={"name": "dropoutnet"}, backbone=BACKBONE)], indirect=True)
def test_a_dropped_row_gives_its_id_no_gradient_and_the_draw_depends_on_the_step_alone(job: Run) -> None:
    batch = next(iter(Loader(job.prepared, ["pretrain"], 64, 0, job.runtime).epoch(0)))
    kept: list[torch.Tensor] = []

    def record(item: torch.Tensor) -> torch.Tensor:
        out = DropoutNet.pretrain_item(job.method, item)  # type: ignore[arg-type]
        kept.append((out != 0).any(dim=1))
        return out

    job.method.pretrain_item = record  # type: ignore[method-assign]
    stage = Pretrain(job.config, job.model, job.method)
    before = job.model.old_ids.shards("old")[0].weight.clone()
    stage.step(batch)
    moved = (job.model.old_ids.shards("old")[0].weight != before).any(dim=1)
    expected = torch.zeros_like(moved)
    expected[batch.item[kept[0]]] = True
    assert torch.equal(moved, expected) and 0 < kept[0].sum() < 64
    torch.manual_seed(99)
    stage.step(batch)
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    "job", [tiny(method={"name": "dropoutnet", "item_dropout": 0.9}, pretrain={"epochs": 1})], indirect=True
)
def test_scoring_and_warming_up_drop_nothing_and_new_items_start_at_zero(job: Run) -> None:
    job.pretrain(None)
    job.meta_train()
    job.method.pretrain_item = lambda item: pytest.fail("called outside pretrain")  # type: ignore[method-assign]
    assert job._frozen is not None
    weight = job.model.new_ids.shards("new")[0].weight
    assert not weight.any()
    with torch.no_grad():
        weight.normal_()
    stage = WarmUp(job.config, job.model, job._frozen, job.method)
    user, item = torch.arange(50), torch.arange(job.model.num_items)[-50:]
    with torch.no_grad():
        context = torch.cat([job.model.item_fields(item), job.model.user_fields(user)], dim=1)
        expected = job.model.backbone(weight[item], context)
        job._frozen.serve(stage.scored_rows)
        assert_float32_close(job._frozen.served_logit(user, item), expected, num_terms=100)  # fields and hidden units
    stage.run_phase(job.session, job.prepared, 1)


def test_pretraining_is_shared_by_methods_that_leave_it_alone_and_with_nobody_elses_dropout() -> None:
    def key(**method: object) -> str:
        return config_hash(pretraining_of(tiny(method=method)))

    shared = key(name="base")
    assert shared == key(name="mwuf", scaling=False) == key(name="metaemb") == key(name="base", variant="again")
    assert shared == key(name="examples.own_method:ContentShift")
    dropped = key(name="dropoutnet")
    assert dropped != shared
    assert dropped == key(name="dropoutnet", variant="again", initialisation="mean")
    assert dropped != key(name="dropoutnet", item_dropout=0.2)


def test_a_backbone_that_cannot_train_a_zero_row_is_refused() -> None:
    afn = build_backbone(backbone_config(name="afn"), Shape(dim=4, num_item_fields=2, num_user_fields=1))
    with pytest.raises(UserError, match="no gradient, so they would stay there: choose another backbone"):
        build_method(method_config(name="dropoutnet"), 4, 8, afn)
    build_method(method_config(name="dropoutnet", initialisation="mean"), 4, 8, afn)
