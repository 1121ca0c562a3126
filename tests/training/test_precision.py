"""`backbone.precision = "bfloat16"`: the backbone's products are made in it, and nothing else is."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mwuf_dist.backbones.layers import GlobalBatchNorm
from mwuf_dist.config import Config, UserError, fitting
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.checkpoint.save import module_state
from mwuf_dist.training.run import Run
from tests.bounds import assert_float32_close
from tests.tiny import tiny

BFLOAT16 = {"precision": "bfloat16"}
FEW_STEPS: dict[str, Any] = {"pretrain": {"epochs": 1, "batch_size": 1024}, "meta_train": {"batch_size": 1024}}
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")


class Products(TorchDispatchMode):
    """Counts matrix products by the type of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.types[out.dtype] += 1
        return out


def few_steps(**sections: dict[str, Any]) -> Config:
    return tiny(**FEW_STEPS, **sections)


# One of each kind: with a folded head, with products of fields, with each kind of history.
@pytest.mark.parametrize("name", ["deepfm", "pnn", "din", "gru4rec", "encoder"])
def test_every_stage_multiplies_in_bfloat16_and_keeps_its_state_in_float32(name: str, tmp_path: Path) -> None:
    config = few_steps(backbone=BFLOAT16 | {"name": name} | fitting("backbone", {"batch_norm": False}, name))
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, run_module._prepare(config, runtime))
        seen = []
        for stage in (lambda: job.pretrain(None), job.meta_train, job.warm_up_and_evaluate):
            with Products() as products:
                stage()
            seen.append(products.types)
        # Forward and backward of the backbone: all that `pretrain` multiplies. Later there are the meta networks, too.
        assert set(seen[0]) == {torch.bfloat16}
        assert all(types[torch.bfloat16] for types in seen), seen
        tensors = module_state("backbone", job.model.backbone) | job.method.state_dict()
        tables = (*job.model.pretrained_tables, job.model.new_ids)
        tensors |= {f"{t.name}.{key}": shard.weight for t in tables for key in t.specs for shard in t.shards(key)}
        assert {key for key, value in tensors.items() if value.dtype != torch.float32} == set()
        job.session.recorder.close()


def test_float32_multiplies_in_nothing_else(tmp_path: Path) -> None:
    config = few_steps()
    with start(config) as runtime, Products() as products:
        run_module.run(config, tmp_path, runtime)
    assert products.types[torch.float32] and not products.types[torch.bfloat16]


def test_logits_are_off_by_rounding_to_bfloat16_and_no_more_in_the_folded_head_too(tmp_path: Path) -> None:
    config = few_steps(backbone=BFLOAT16)
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        job.meta_train()
        model = job.model
        batch = next(iter(Loader(job.prepared, ["pretrain"], 256, 1, runtime).epoch(0)))
        with torch.no_grad():
            item = model.old_ids.rows(batch.item)
            context = torch.cat([model.item_fields(batch.item), model.user_fields(batch.user)], dim=1)
            exact = model.backbone(item, context)
            found = [model.backbone.in_precision(model.backbone, item, context)]
            assert job._frozen is not None
            found.append(job._frozen.logit(item, job._frozen.part(batch.user, batch.item)))
        for logit in found:
            assert logit.dtype == torch.float32
            error = (logit - exact).abs().max() / exact.abs().max()
            assert 1e-5 < error < 4 * 2**-8, error  # rounded to 8 bits in each of three layers and the logit
        job.session.recorder.close()


def test_moments_are_taken_in_float32() -> None:
    """With a weight per row too, where they are a product."""
    draws = torch.randn(512, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    with start(tiny()):
        for weight in (None, torch.ones(512)):
            norm = GlobalBatchNorm(3)
            with torch.autocast("cpu", torch.bfloat16):
                out = norm(draws, weight)
            assert out.dtype == torch.float32
            # 512 roundings of either sign add up to some 23; of bfloat16 each would be 2^16 times as large.
            assert_float32_close(norm.running_mean, 0.1 * draws.double().mean(0), num_terms=64, size=0.1)


def test_a_run_in_bfloat16_learns_as_much_and_says_what_it_is(tmp_path: Path) -> None:
    results, losses = {}, {}
    for precision in ("float32", "bfloat16"):
        config = tiny(backbone={"precision": precision})
        with start(config) as runtime:
            results[precision] = run_module.run(config, tmp_path / precision, runtime)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [one["loss"] for one in map(json.loads, lines) if one.get("stage") == "pretrain"]
    # A logit of up to 4 that is rounded to 8 bits is off by 4 * 2^-8, and a loss by no more than its logit. A processor
    # without units for it may also add in 8 bits: a sum of n products is off by the square root of n such roundings.
    most_terms = max(results["bfloat16"]["config"]["backbone"]["hidden"])
    off = 4 * 2**-8 * math.sqrt(most_terms)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=off)
    assert losses["bfloat16"][-1] < math.log(2) - 0.1
    full, half = (results[precision]["phases"]["warm-c"]["auc_test"] for precision in ("float32", "bfloat16"))
    assert half == pytest.approx(full, abs=off) and half != full
    assert results["bfloat16"]["config"]["backbone"]["precision"] == "bfloat16"
    assert results["bfloat16"]["config_hash"] != results["float32"]["config_hash"]
    with start(config) as runtime, pytest.raises(UserError, match=r"backbone\.precision: 'float32' -> 'bfloat16'"):
        run_module.run(config, tmp_path / "float32", runtime)
