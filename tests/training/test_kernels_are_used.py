"""The stages call the kernels: what `mwuf_kernels` offers is not beside the product but in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mwuf_kernels
import pytest
import torch

from mwuf_dist.embeddings import user_means
from mwuf_dist.embeddings.tiles import TILE_ROWS
from mwuf_dist.methods import meta_warm_up
from mwuf_dist.runtime import start
from mwuf_dist.training import frozen_model
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from tests.tiny import tiny


def spy(patch: pytest.MonkeyPatch, module: Any, name: str, log: Callable[..., None]) -> None:
    """Tells `log` what a module's kernel is called with."""
    kernel = getattr(module, name)
    assert kernel is getattr(mwuf_kernels, name), f"{module.__name__}.{name} is not the kernel"

    def spied(*args: torch.Tensor, **options: Any) -> Any:
        log(*args)
        return kernel(*args, **options)

    patch.setattr(module, name, spied)


def test_stages_compute_warm_embeddings_and_user_means_with_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Counter[str] = Counter()
    means: list[int] = []
    distinct: list[int] = []
    served: list[int] = []
    compiled = mwuf_kernels.has_library()

    def rows_of(table: torch.Tensor, inverse: torch.Tensor | None, *_: torch.Tensor) -> None:
        rows.update(meta_train=len(table if inverse is None else inverse))

    spy(monkeypatch, frozen_model, "warm_embedding", rows_of)
    spy(monkeypatch, meta_warm_up, "meta_networks", lambda context, *_: distinct.append(len(context)))
    spy(monkeypatch, meta_warm_up, "bulk_warm", lambda table, *_: served.append(len(table)))
    spy(monkeypatch, user_means, "user_mean", lambda table, users, offsets, *_: means.append(len(offsets) - 1))
    config = tiny(pretrain={"epochs": 1})
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        assert not rows and not means
        job.meta_train()
        prepared = job.prepared
        # Once a step, on the distinct items of its batch; each old item's mean user once.
        assert len(distinct) == -(-prepared.num_rows("pretrain") // config.meta_train.batch_size)
        assert max(distinct) <= prepared.num_old_items and not served
        assert means == [prepared.num_old_items]
        # The compiled loop over rows reads each distinct item's embedding; torch makes one for every row.
        by_row = len(distinct) * config.meta_train.batch_size
        assert rows["meta_train"] == (sum(distinct) if compiled else by_row)
        job.warm_up_and_evaluate()
        # Each new item's warm embedding and mean user once per phase, not per row; without loops once per set scored.
        assert served == (4 if compiled else 7) * [-(-prepared.num_new_items // TILE_ROWS) * TILE_ROWS]
        assert means == [prepared.num_old_items] + 4 * [prepared.num_new_items]
        job.session.recorder.close()


def test_a_backbone_without_a_folded_head_is_scored_with_warm_embeddings_of_the_items_of_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    served: list[int] = []
    spy(monkeypatch, frozen_model, "warm_embedding", lambda t, inverse, *_: rows.append(len(inverse)))
    spy(monkeypatch, meta_warm_up, "bulk_warm", lambda table, *_: served.append(len(table)))
    config = tiny(pretrain={"epochs": 1}, backbone={"name": "dcn"})
    with start(config) as runtime:
        run_module.run(config, tmp_path, runtime)
        prepared = run_module._prepare(config, runtime)
    assert 0 <= sum(rows) - prepared.num_rows("pretrain") < config.meta_train.batch_size
    # Each phase scores the set that comes next, and the fixed test: the distinct items of each at once.
    assert len(served) == 7 and all(0 < num <= prepared.num_items for num in served)
