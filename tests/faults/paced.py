"""A run whose pretraining goes on until a test has done with it what it has to, however fast steps are."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from mwuf_dist.backbones import Shape
from mwuf_dist.backbones.deepfm import DeepFM
from mwuf_dist.config import MlpConfig, section
from mwuf_dist.files import write_atomically

PACE_S = 1.0


@section
class PacedConfig(MlpConfig):
    """Keys of DeepFM, and for how long it is slow."""

    until: str = ""  # Until this file is there, a step of pretrain takes a second at least.


class Paced(DeepFM):
    """DeepFM that, until a file is there, slows down the steps of pretrain in its process: in whatever starts ranks.

    Each rank says beside that file which process it is, and that all are training (`process_of`, `begun`).
    """

    Config = PacedConfig

    def __init__(self, config: PacedConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        if not Path(config.until).exists():
            _slow_down(Path(config.until))


def paced(until: Path) -> dict[str, Any]:
    """Values of a config whose pretraining takes its time until a file is there."""
    return {"backbone": {"name": f"{__name__}:{Paced.__name__}", "until": str(until)}}


def process_of(until: Path, rank: str) -> Path:
    """The file with the ID of a rank's process, from its first step on."""
    return until.with_name(f"process-of-{rank}")


def begun(until: Path) -> Path:
    """The file that is there as soon as every rank has taken a step."""
    return until.with_name("begun")


def _slow_down(until: Path) -> None:
    from mwuf_dist.training.stages.pretrain import Pretrain

    step, numbers = Pretrain.step, itertools.count()

    def slow(*given: Any) -> Any:
        number = next(numbers)
        if number == 0:
            write_atomically(process_of(until, os.environ["RANK"]), str(os.getpid()))
        if number == 1:  # the step before has taken all
            begun(until).touch()
        end = time.monotonic() + PACE_S
        while not until.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return step(*given)

    Pretrain.step = slow  # pyright: ignore[reportAttributeAccessIssue]
