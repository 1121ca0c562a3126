"""This process: alone, or one of those that `torchrun` started (the runtime reads which from the environment)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mwuf_dist.config import Config
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.runtime.shutdown import sigterm_asks
from mwuf_dist.training.run import run, run_pretrain


def train(config: Config, folder: Path, pretrained: Path | None = None) -> dict[str, Any]:
    """Runs or resumes a run; see `mwuf_dist.training.run.run`."""
    with _started(config) as runtime:
        return run(config, folder, runtime, pretrained)


def pretrain(config: Config, folder: Path) -> Path:
    """Runs or resumes `prepare` and `pretrain`; see `mwuf_dist.training.run.run_pretrain`."""
    with _started(config) as runtime:
        return run_pretrain(config, folder, runtime)


@contextmanager
def _started(config: Config) -> Iterator[Runtime]:
    """Gives the runtime, and leaves nothing of the run in this process."""
    try:
        with sigterm_asks(), start(config) as runtime:
            yield runtime
    finally:
        # Process groups of a run that is over live on in cycles of references, each with threads that poll: after the
        # two hundred runs of a study there were 570 of them, and nothing else went on.
        gc.collect()
