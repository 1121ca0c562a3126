"""This process: alone, or one of those that `torchrun` started (the runtime reads which from the environment)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwuf_dist.config import Config
from mwuf_dist.runtime import start
from mwuf_dist.runtime.shutdown import sigterm_asks
from mwuf_dist.training.run import run, run_pretrain


def train(config: Config, folder: Path, pretrained: Path | None = None) -> dict[str, Any]:
    """Runs or resumes a run; see `mwuf_dist.training.run.run`."""
    with sigterm_asks(), start(config) as runtime:
        return run(config, folder, runtime, pretrained)


def pretrain(config: Config, folder: Path) -> Path:
    """Runs or resumes `prepare` and `pretrain`; see `mwuf_dist.training.run.run_pretrain`."""
    with sigterm_asks(), start(config) as runtime:
        return run_pretrain(config, folder, runtime)
