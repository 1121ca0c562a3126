"""A step on several ranks makes a number of exchanges that its tables and BatchNorms say, whatever it looks up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mwuf_kernels import has_library

from mwuf_dist.backbones.layers import GlobalBatchNorm
from mwuf_dist.config import build, fitting, merge
from mwuf_dist.data.batches.episodes import EpisodeLoader
from mwuf_dist.data.batches.histories import History
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import start
from mwuf_dist.runtime.many_hosts import ManyHosts
from mwuf_dist.runtime.one_host import OneHost
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.loop import with_following
from mwuf_dist.training.model import pretrained_items
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.run import Run, _prepare
from mwuf_dist.training.stages.episodes import EpisodeTrain
from mwuf_dist.training.stages.meta_train import MetaTrain
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.faults.ranks import VALUES, forked
from tests.runtime.test_one_host import be_a_host

KEYS = {"hidden": [8], "history_length": 6, "dropout": 0.2}
BACKBONES = ("deepfm", "din", "gru4rec", "encoder")
# Of all tables: rows, and gradients with those of dense weights and the next batch's IDs.
SHARDED = {"pretrain": 2, "meta_train": 2, "warm_up": 2}
REPLICATED = {"pretrain": 1, "meta_train": 1, "warm_up": 1}


def _num_exchanges(action: Callable[[], object]) -> int:
    """How often ranks talk in it, by whatever way."""
    number = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal number
            number += 1
            return function(*args, **kwargs)

        return count

    with (
        mock.patch.object(OneHost, "_meet", counted(OneHost._meet)),
        mock.patch.object(ManyHosts, "_swap", counted(ManyHosts._swap)),
        mock.patch.object(dist, "all_reduce", counted(dist.all_reduce)),
        mock.patch.object(dist, "all_to_all_single", counted(dist.all_to_all_single)),
    ):
        action()
    return number


def _batches(job: Run) -> Iterator[Batch]:
    """Batches whose ranks look up unequally much: one has no history at all in every second of them."""
    histories = job.model.histories(job.prepared, 0)
    loader = Loader(job.prepared, ["pretrain"], 256, 0, job.runtime, histories=histories)
    for batch in loader.epoch(0):
        history = batch.history
        if history is not None and batch.step % 2 and job.runtime.rank:
            nothing, zeros = history.items[:0], torch.zeros_like(history.offsets)
            history = History(nothing, history.labels[:0], zeros, history.group, torch.zeros_like(history.earlier))
        yield replace(batch, history=history)


def _num_scored_by_us(warm_up: WarmUp, job: Run) -> int:
    """How many rows of the test set this rank reads to score its part; scores are gathered without torch's objects."""
    warm_up.finish_phase(job.prepared, 0)
    numbers, read_rows = [], Prepared.read_rows

    def noted(prepared: Prepared, split: str, start: int, stop: int, names: Any) -> Any:
        numbers.append(stop - start)
        return read_rows(prepared, split, start, stop, names)

    with mock.patch.object(Prepared, "read_rows", noted), mock.patch.object(dist, "gather_object") as by_torch:
        warm_up.score(job.prepared, "test")
    assert not by_torch.called
    return sum(numbers)


def _check(name: str, sharding: str) -> None:
    values = merge(VALUES, {"embedding": {"sharding": sharding}, "method": {"name": "mwuf"}})
    config = build(values | {"backbone": {"name": name} | fitting("backbone", KEYS, name)})
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        job = Run(config, Path(str(runtime.broadcast(folder))), runtime, _prepare(config, runtime))
        batches, expected = with_following(_batches(job)), dict(SHARDED if sharding == "row_wise" else REPLICATED)
        norms = [module for module in job.model.backbone.modules() if isinstance(module, GlobalBatchNorm)]
        expected["pretrain"] += 2 * len(norms)
        pretrain = Pretrain(config, job.model, job.method)
        job.model.backbone.train()
        found = {"pretrain": [_num_exchanges(lambda: pretrain.step(*next(batches))) for _ in range(4)]}
        frozen = frozen_model(job.model, config.embedding)
        meta_train = MetaTrain(config, job.model, frozen, job.method)
        found["meta_train"] = [_num_exchanges(lambda: meta_train.step(*next(batches))) for _ in range(4)]
        warm_up, optimizer = WarmUp(config, job.model, frozen, job.method), Adam([], [(job.model.new_ids, 1e-2)])

        def step() -> None:
            batch, following = next(batches)
            warm_up.step(batch, optimizer, following)

        found["warm_up"] = [_num_exchanges(step) for _ in range(4)]
        assert _num_scored_by_us(warm_up, job) * runtime.world_size <= job.prepared.num_rows("test") + 1
        job.session.recorder.close()
        runtime.barrier()
        # The first step of a stage asks for IDs itself.
        first = int(sharding == "row_wise")
        assert found == {stage: [number + first, *[number] * 3] for stage, number in expected.items()}, (name, found)


def _check_episodes(sharding: str) -> None:
    """Nothing but the method's weights is trained, so that IDs have no gradients of rows to go along with."""
    values = merge(VALUES, {"embedding": {"sharding": sharding}, "method": {"name": "metaemb"}})
    config = build(values | {"backbone": {"name": "din"} | fitting("backbone", KEYS, "din")})
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        job = Run(config, Path(str(runtime.broadcast(folder))), runtime, _prepare(config, runtime))
        stage = EpisodeTrain(config, frozen_model(job.model, config.embedding), job.method)
        job.method.attach(pretrained_items(job.model, job.prepared))
        histories = job.model.histories(job.prepared, 0)
        batches = EpisodeLoader(job.prepared, config.data.warm_rows, 256, 0, runtime, None, histories).epoch(0)
        found = [_num_exchanges(lambda: stage.step(next(batches))) for _ in range(2)]
        job.session.recorder.close()
        runtime.barrier()
        assert found == [3 if sharding == "row_wise" else 1] * 2, (sharding, found)


def _check_all(are_hosts: bool) -> None:
    if are_hosts:
        be_a_host()
    for sharding in ("row_wise", "auto"):
        for name in BACKBONES:
            _check(name, sharding)
        _check_episodes(sharding)


@pytest.mark.dist
@pytest.mark.skipif(not has_library(), reason="no C++ compiler")
@pytest.mark.parametrize("are_hosts", [False, True])
def test_a_step_makes_few_exchanges_with_histories_and_without(are_hosts: bool, tmp_path: Path) -> None:
    with forked(_check_all, (are_hosts,), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()
