"""The loop that every training stage shares."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.data.batches.lanes import LanesMove, Leases
from mwuf_dist.data.batches.loader import Batch, Batches
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import StoppedError, held_back
from mwuf_dist.training.checkpoint.files import Cursor, Meta
from mwuf_dist.training.checkpoint.save import Checkpointer
from mwuf_dist.training.profile import StageProfiler
from mwuf_dist.training.recorder import Recorder

_STEPS_BETWEEN_RECORDS = 50
# Stage `meta_train` has two parts, which count their steps apart.
_META_TRAIN_PARTS = ("episodes", "algorithm 1")


@dataclass
class Session:
    """Holds what all stages of a run need: who we are, where we stand, where it is written down.

    `steps_per_epoch` cuts every epoch short, for a pass that looks at what the stages do and not at how well: an audit.
    `profiler` traces a few steps of each stage, on the main rank of a run that asks for it.
    """

    runtime: Runtime
    recorder: Recorder
    checkpointer: Checkpointer
    meta: Meta
    steps_per_epoch: int | None = None
    profiler: StageProfiler | None = None

    def save(self, cursor: Cursor, tensors: dict[str, Any]) -> None:
        """Saves a checkpoint that goes on at `cursor`, and leaves if the run was asked to stop. A collective.

        Raises:
            StaleLease: other ranks have gone on with this run; nothing was written.
            LanesMove: it is written, and another set of ranks is to go on from it.
            StoppedError: it is written, and the run was asked to stop.
        """
        goes_on = Leases(self.runtime).renew()
        self.meta.cursor = cursor
        self.meta.metrics_bytes = self.recorder.num_bytes()
        self.checkpointer.save(self.meta, tensors)
        if self.checkpointer.policy.agree_to_stop():
            self.leave()
        if not goes_on:
            raise LanesMove

    def leave(self) -> NoReturn:
        """Ends the run between two steps, as it was asked to."""
        raise StoppedError(f"stopped by SIGTERM; the same command goes on from {self.meta.cursor.name}")

    def count(self, stage: str, samples: int, seconds: float) -> None:
        """Adds to a stage's samples and seconds; a stage may run in several pieces."""
        entry = self.meta.stages.setdefault(stage, {"samples": 0, "seconds": 0.0, "samples_per_s": 0.0})
        entry["samples"] += samples
        entry["seconds"] += seconds
        entry["samples_per_s"] = entry["samples"] / entry["seconds"] if entry["seconds"] else 0.0


def train(
    session: Session,
    start: Cursor,
    loader: Batches,
    epochs: int,
    step: Callable[[Batch, Batch | None], torch.Tensor],
    tensors: Callable[[], dict[str, Any]] | None,
) -> None:
    """Trains from `start` to the end of the last epoch.

    Args:
        session: of the run.
        start: stage, phase, and the first epoch and step to do.
        loader: the rows.
        epochs: the last epoch is `epochs - 1`.
        step: trains on a batch, knowing the next one of the epoch, and returns this rank's part of the loss.
        tensors: the state to save when a save is due; None where the stage is not saved before its end.
    """
    title = start.stage if start.stage != "warm_up" else f"warm_up {'abc'[start.phase - 1]}"
    done = start.epoch * loader.num_steps + start.step
    bar = session.recorder.bar(title, epochs * loader.num_steps, done)
    clock = time.perf_counter()
    samples = 0
    with held_back():
        for epoch in range(start.epoch, epochs):
            batches = loader.epoch(epoch, start.step if epoch == start.epoch else 0)
            pairs = with_following(itertools.islice(batches, session.steps_per_epoch))
            if session.profiler is not None:
                pairs = session.profiler.steps(title, pairs)
            for batch, following in pairs:
                loss = step(batch, following)
                samples += batch.num_rows
                done += 1
                bar.update()
                is_last = done == epochs * loader.num_steps
                if done % _STEPS_BETWEEN_RECORDS == 0 or is_last:
                    trained = epoch * loader.num_rows + min((batch.step + 1) * loader.batch_size, loader.num_rows)
                    _record(session, start, batch, done, trained, loss)
                if is_last or not session.checkpointer.policy.due(done):
                    continue
                if tensors is not None:
                    session.count(start.stage, samples, time.perf_counter() - clock)
                    session.save(replace(start, epoch=epoch, step=batch.step + 1), tensors())
                    clock, samples = time.perf_counter(), 0
                elif session.checkpointer.policy.stopping:
                    session.leave()
    session.count(start.stage, samples, time.perf_counter() - clock)
    bar.close()


def with_following(batches: Iterator[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Yields each batch with the one behind it, which is read before its step; None behind the last."""
    for batch, following in itertools.pairwise(itertools.chain(batches, [None])):
        assert batch is not None
        yield batch, following


def _record(session: Session, start: Cursor, batch: Batch, done: int, trained: int, loss: torch.Tensor) -> None:
    value = float(session.runtime.sum(loss.detach().clone()))
    if not math.isfinite(value):
        raise UserError(
            f"{start.stage}: the loss is {value} at step {done}: lower the stage's learning rate, then run again in a "
            "new output folder"
        )
    record = {"epoch": batch.epoch, "step": done, "samples": trained, "loss": round(value, 6)}
    session.recorder.write(named_position(start) | record, done)


def named_position(cursor: Cursor) -> dict[str, object]:
    """Says for a record where it was made: the stage, and the phase or part of it that counts its own steps."""
    if cursor.stage == "warm_up":
        return {"stage": cursor.stage, "phase": PHASES[cursor.phase]}
    if cursor.stage == "meta_train":
        return {"stage": cursor.stage, "part": _META_TRAIN_PARTS[cursor.phase]}
    return {"stage": cursor.stage}
