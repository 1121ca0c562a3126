"""One run, from prepared shards to results: the five stages in order, resumed where it stopped."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mwuf_dist.config import (
    PHASES,
    Config,
    UserError,
    config_hash,
    hash_of_values,
    read_toml,
)
from mwuf_dist.data.batches.lanes import check_lanes
from mwuf_dist.data.batches.order import num_lanes
from mwuf_dist.data.both_classes import data_notes
from mwuf_dist.data.prepare.prepare import describe, is_prepared, prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.files import (
    parse_json,
    whole_lines,
    write_json,
)
from mwuf_dist.methods import Method, build_method
from mwuf_dist.runtime import Runtime, generator_seed
from mwuf_dist.training.checkpoint.files import Cursor, Meta, load_tensors, read_meta
from mwuf_dist.training.checkpoint.save import Checkpointer
from mwuf_dist.training.folder import alone_in, check_folder, check_same_data, claim, finished_results
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.implementations import frozen_model, named, trained_model
from mwuf_dist.training.item_rule.rule import check_rule_fits
from mwuf_dist.training.loop import Session
from mwuf_dist.training.model import Model, pretrained_items
from mwuf_dist.training.profile import StageProfiler
from mwuf_dist.training.recorder import Recorder
from mwuf_dist.training.results import NEXT_SETS, phase_metrics, results_of, versions, write_scores
from mwuf_dist.training.stages.episodes import EpisodeTrain
from mwuf_dist.training.stages.meta_train import MetaTrain, initialise_new_ids, meta_trained_tensors
from mwuf_dist.training.stages.pretrain import Pretrain, pretrained_tensors
from mwuf_dist.training.stages.prior_fit import fit_prior
from mwuf_dist.training.stages.stream import stream
from mwuf_dist.training.stages.warm_up import WarmUp


def run(config: Config, folder: Path, runtime: Runtime, pretrained: Path | None = None) -> dict[str, Any]:
    """Runs all stages, or those that are left, and writes what they made into `folder`.

    Args:
        config: of the run; the folder keeps it as `config.toml`.
        folder: of the run. One that holds this very run goes on where it stopped.
        runtime: ranks and device.
        pretrained: checkpoint of a finished `pretrain` with the same data, backbone and seed, to start from.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the folder holds another run, or the data or config is wrong.
    """
    with alone_in(folder, runtime):
        runtime.on_main(lambda: check_folder(config, folder))
        results: Any = runtime.broadcast(finished_results(folder) if runtime.is_main else None)
        if results is not None:
            if runtime.is_main:
                print(
                    f"{folder}: finished already, nothing is trained (whether the data have changed is not looked at)"
                )
            return results
        _check_batch_sizes(config, ("pretrain", "meta_train", "warm_up"), runtime)
        job = _start(config, folder, runtime)
        with contextlib.closing(job.session.recorder), job.session.checkpointer:
            if pretrained is None and runtime.is_main:  # of runs that share one, `compare` has said it
                job.session.recorder.say("\n".join(data_notes(job.prepared, config.data)))
            job.pretrain(pretrained)
            job.meta_train()
            found = job.stream() if config.data.protocol == "stream" else job.warm_up_and_evaluate()
        results = results_of(config, job.prepared, runtime, job.session.meta, job.implementation())
        results |= {} if found is None else {"stream": found}
        runtime.on_main(lambda: write_json(folder / "results.json", results))
        if runtime.is_main and found is None:
            _plot(results, folder)
    return results


def _plot(results: dict[str, Any], folder: Path) -> None:
    """Draws a picture, without which the run is finished too."""
    try:
        # Not earlier: a run that is started again has no use for it until its end.
        from mwuf_dist.evaluation.plots import plot_run

        lines, _ = whole_lines(folder / "metrics.jsonl")
        plot_run([parse_json(line) for line in lines], results, folder / "run.png")
    except Exception as error:  # whatever a font, a label or a backend of matplotlib brings
        print(f"{folder / 'run.png'}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)


def run_pretrain(config: Config, folder: Path, runtime: Runtime) -> Path:
    """Runs `prepare` and `pretrain` only; returns the checkpoint, for several runs to start from."""
    with alone_in(folder, runtime):
        runtime.on_main(lambda: check_folder(config, folder))
        _check_batch_sizes(config, ("pretrain",), runtime)
        checkpointer = Checkpointer(folder / "checkpoints", config.checkpoint, runtime)
        found = checkpointer.latest(config_hash(config))
        if found is None or found[1].cursor.stage == "pretrain":
            job = _start(config, folder, runtime)
            with contextlib.closing(job.session.recorder), job.session.checkpointer:
                job.pretrain(None)
            found = checkpointer.latest(config_hash(config))
        assert found is not None
        return found[0]


def _check_batch_sizes(config: Config, stages: Sequence[str], runtime: Runtime) -> None:
    # Now, and not when the stage begins, hours later.
    for stage in stages:
        batch_size = getattr(config, stage).batch_size
        check_lanes(num_lanes(batch_size), batch_size, runtime.world_size, f"{stage}.batch_size")


def _check_constant_columns(config: Config, prepared: Prepared, runtime: Runtime) -> None:
    """Refuses data on which several ranks cannot make what one makes.

    BatchNorm takes the mean of a batch away, and with it all that a column says which is the same in every row: the
    gradient of its weights is zero but for rounding, of which Adam makes steps of full length. Ranks round otherwise.
    """
    if runtime.world_size == 1 or not getattr(config.backbone, "batch_norm", False):
        return
    for name, number in (("user", prepared.num_users), ("old item", prepared.num_old_items)):
        if number == 1:
            raise UserError(
                f"There is one {name} in these data: with BatchNorm its weights learn from rounding alone, and "
                f"{runtime.world_size} ranks round otherwise than one. Set backbone.batch_norm = false, or use one rank"
            )


def _start(config: Config, folder: Path, runtime: Runtime) -> Run:
    clock = time.perf_counter()
    prepared, reused = _prepare_or_reuse(config, runtime)
    seconds = time.perf_counter() - clock
    _check_constant_columns(config, prepared, runtime)
    job = Run(config, folder, runtime, prepared)
    if not reused and "prepare" not in job.session.meta.stages:
        job.session.count("prepare", sum(prepared.num_rows(split) for split in prepared.manifest["splits"]), seconds)
    return job


def _since(clock: float) -> float:
    return time.perf_counter() - clock


def _prepare(config: Config, runtime: Runtime) -> Prepared:
    return _prepare_or_reuse(config, runtime)[0]


def _prepare_or_reuse(config: Config, runtime: Runtime) -> tuple[Prepared, bool]:
    """Returns the data, and whether they were prepared before."""
    made_of: dict[str, Any] = {}
    reused = []

    def build() -> None:
        made_of.update(describe(config.data))
        reused.append(is_prepared(config.data, made_of))
        prepare(config.data, runtime.show_progress, made_of=made_of)

    # The main rank reads the raw files and builds what is missing, then the others find it.
    runtime.on_main(build)
    found: Any = runtime.broadcast((made_of, reused))
    return prepare(config.data, made_of=found[0]), found[1][0]


@dataclass
class Run:
    """The parts of a run and the stages over them. Each stage is skipped when the checkpoint is past it."""

    config: Config
    folder: Path
    runtime: Runtime
    prepared: Prepared

    def __post_init__(self) -> None:
        config, runtime = self.config, self.runtime
        # What the config may have got wrong comes first, so that a mistake leaves no folder behind that is in the way.
        if config.data.protocol == "stream" and not config.data.stream.retrain_every_days:
            check_rule_fits(config)
        self.model = Model(config, self.prepared, runtime)
        torch.manual_seed(generator_seed(config.seed, 3))  # the same meta networks on every rank
        context = self.model.shape.num_item_fields * self.model.dim
        method = build_method(config.method, self.model.dim, context, self.model.backbone)
        self.method: Method = method.to(runtime.device)
        checkpointer = Checkpointer(self.folder / "checkpoints", config.checkpoint, runtime)
        # A run that an earlier version began goes on, though its config had keys that this one's has not.
        begun = self.folder / "config.toml"
        found = checkpointer.latest(hash_of_values(read_toml(begun)) if begun.exists() else config_hash(config))
        fresh = Meta(Cursor("pretrain"), config_hash(config), runtime.world_size, versions())
        fresh.data = self.prepared.checksum
        self._checkpoint, meta, refused = found or (None, fresh, [])
        check_same_data(self.folder, meta.data, self.prepared)
        runtime.on_main(lambda: claim(config, self.folder))
        recorder = Recorder(self.folder, runtime, meta.metrics_bytes)
        for reason in refused:
            recorder.say(f"not taken: {reason}")
        if self._checkpoint is not None:
            recorder.say(f"goes on from {self._checkpoint.name}")
            meta.world_size, meta.versions = fresh.world_size, fresh.versions
            meta.config_hash, meta.data = fresh.config_hash, fresh.data
        self.session = Session(runtime, recorder, checkpointer, meta)
        if config.runtime.profile and runtime.is_main:
            self.session.profiler = StageProfiler(self.folder / "profile", runtime.device)
        meta.plans = {t.name: dict(t.plan) for t in (*self.model.pretrained_tables, self.model.new_ids)}
        self._frozen: Frozen | None = None

    @property
    def frozen(self) -> Frozen:
        """The frozen model, once `meta_train` has been."""
        assert self._frozen is not None
        return self._frozen

    @property
    def cursor(self) -> Cursor:
        """Where the run stands."""
        return self.session.meta.cursor

    def implementation(self) -> dict[str, object]:
        """Names what this run computes with: see `implementations.py`."""
        assert self._frozen is not None
        return named(trained_model(self.model, self.method), self._frozen)

    def pretrain(self, pretrained: Path | None) -> None:
        """Runs stage `pretrain`, from a shared checkpoint where one is given."""
        if self.cursor.stage != "pretrain":
            load_tensors(self._found(), pretrained_tensors(self.model))
            return
        if self._checkpoint is None and pretrained is not None:
            shared = read_meta(pretrained, None)
            check_same_data(pretrained, shared.data, self.prepared)
            load_tensors(pretrained, pretrained_tensors(self.model))
            self.session.meta.stages |= {
                name: shared.stages[name] for name in ("prepare", "pretrain") if name in shared.stages
            }
        else:
            stage = Pretrain(self.config, self.model, self.method)
            if self._checkpoint is not None:
                load_tensors(self._checkpoint, stage.tensors())
            stage.run(self.session, self.prepared, self.cursor)
        self.session.save(Cursor("meta_train"), pretrained_tensors(self.model))
        self._checkpoint = None

    def meta_train(self) -> None:
        """Runs stage `meta_train`: phase 0 of the cursor on episodes, phase 1 Algorithm 1; a method may skip both."""
        self._frozen = frozen_model(self.model, self.config.embedding)
        self.method.attach(pretrained_items(self.model, self.prepared))
        if self.cursor.stage == "warm_up":
            load_tensors(self._found(), meta_trained_tensors(self.model.new_ids, self.method))
            return
        if self.cursor.phase == 0:
            if self.method.episode_trained:
                self._go_on_with(EpisodeTrain(self.config, self._frozen, self.method))
            if self.method.fits_prior:
                clock = time.perf_counter()
                num_rows = fit_prior(self.config, self._frozen, self.method, self.prepared)
                self.session.count("meta_train", num_rows, _since(clock))
            self.session.meta.cursor = Cursor("meta_train", 1)
        initialise_new_ids(self.config, self.model, self.method)
        if not self.method.meta_trained:
            return
        settings = self.config.meta_train
        events = self.config.data.events
        users = ItemUsers(self.prepared, ["pretrain"], settings.users_per_item, self.config.seed, events)
        self._frozen.set_users(users, range(self.model.num_old))
        self._go_on_with(MetaTrain(self.config, self.model, self._frozen, self.method))

    def _go_on_with(self, stage: EpisodeTrain | MetaTrain) -> None:
        """Trains a part of `meta_train`, from its beginning or where the checkpoint stands."""
        if self._checkpoint is not None and (self.cursor.epoch or self.cursor.step):
            load_tensors(self._checkpoint, stage.tensors())
        stage.run(self.session, self.prepared, self.cursor, lambda: pretrained_tensors(self.model) | stage.tensors())

    def warm_up_and_evaluate(self) -> None:
        """Runs stages `warm_up` and `evaluate`, phase by phase."""
        assert self._frozen is not None
        model, session = self.model, self.session
        stage = WarmUp(self.config, model, self._frozen, self.method)
        first = self.cursor.phase if self.cursor.stage == "warm_up" else 0
        if first == 0:
            initialise_new_ids(self.config, model, self.method, from_row=model.num_old)
        for phase in range(first, len(PHASES)):
            if phase:
                stage.run_phase(session, self.prepared, phase)
            clock = time.perf_counter()
            stage.finish_phase(self.prepared, phase)
            session.count("warm_up", 0, _since(clock))
            self.evaluate(stage, phase)
            session.save(Cursor("warm_up", phase + 1), self._trained_tensors())

    def stream(self) -> dict[str, Any]:
        """Returns the days of the stream protocol, in the place of the phases; see `stages/stream.py`."""
        self.session.save(Cursor("warm_up"), self._trained_tensors())
        return stream(self)

    def evaluate(self, stage: WarmUp, phase: int) -> None:
        """Runs stage `evaluate` of one phase: scores the next set and `test`, then looks at their labels."""
        clock = time.perf_counter()
        profiler = self.session.profiler
        with contextlib.nullcontext() if profiler is None else profiler.whole("evaluate"):
            scores = self.scores(stage, phase)
        seconds = _since(clock)
        scale = stage.mean_abs_scale()
        self.session.count("evaluate", sum(self.prepared.num_rows(split) for split in scores), seconds)
        if not self.runtime.is_main:
            return
        metrics = phase_metrics(self.prepared, phase, self.config.data.warm_rows, scores, self.runtime.threads)
        metrics |= {} if scale is None or not math.isfinite(scale) else {"mean_abs_scale": scale}
        write_scores(self.folder, PHASES[phase], scores)
        self.session.meta.phases[PHASES[phase]] = metrics
        record: dict[str, object] = {"stage": "evaluate", "phase": PHASES[phase]}
        self.session.recorder.write(record | metrics, phase)
        of_next, of_test = ("–" if auc is None else f"{auc:.4f}" for auc in (metrics["auc_next"], metrics["auc_test"]))
        self.session.recorder.say(f"{PHASES[phase]:>7}   AUC next set {of_next}   fixed test {of_test}")

    def scores(self, stage: WarmUp, phase: int) -> dict[str, np.ndarray | None]:
        """Returns logits of the sets that a phase is scored on, by their names; see `WarmUp.score`."""
        return {split: stage.score(self.prepared, split) for split in dict.fromkeys((NEXT_SETS[phase], "test"))}

    def _trained_tensors(self) -> dict[str, Any]:
        """Lists all that the stages have made: what is saved behind `meta_train`."""
        return pretrained_tensors(self.model) | meta_trained_tensors(self.model.new_ids, self.method)

    def _found(self) -> Path:
        assert self._checkpoint is not None
        return self._checkpoint
