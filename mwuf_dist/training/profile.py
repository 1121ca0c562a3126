"""Traces of a few steps of each stage, for Perfetto (https://ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Item = TypeVar("Item")

# The first steps of a stage load code and allocate memory.
_SKIPPED_STEPS = 3
_TRACED_STEPS = 5


class StageProfiler:
    """Writes `STAGE.json` into a folder, once for each stage that this process goes through.

    Args:
        folder: for the traces; made when the first one is written.
        device: of the run.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage.replace(' ', '-')}.json"

    def steps(self, stage: str, batches: Iterable[Item]) -> Iterator[Item]:
        """Passes batches on; what happens between the fourth and the ninth of them is traced.

        A stage that has been traced, in an earlier epoch, is not traced again, and one of three steps or fewer is not
        traced at all.
        """
        batches = iter(batches)
        if self._path(stage).exists():
            yield from batches
            return
        for _ in range(_SKIPPED_STEPS):
            try:
                yield next(batches)
            except StopIteration:
                return
        # The loader's work belongs to a step too: that on the batch of the next one.
        with self.whole(stage):
            for number in range(_SKIPPED_STEPS, _SKIPPED_STEPS + _TRACED_STEPS):
                with record_function(f"{stage}, step {number + 1}"):
                    try:
                        batch = next(batches)
                    except StopIteration:
                        break
                    yield batch
        yield from batches

    @contextlib.contextmanager
    def whole(self, stage: str) -> Iterator[None]:
        """Traces everything within, unless the stage has been traced before."""
        if self._path(stage).exists():
            yield
            return
        with profile(activities=self._activities) as tracer, record_function(stage):
            yield
        self._folder.mkdir(parents=True, exist_ok=True)
        tracer.export_chrome_trace(str(self._path(stage)))
