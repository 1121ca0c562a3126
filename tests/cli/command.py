"""A command called in this process, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mwuf_dist.config import merge
from tests.tiny import TINY

FEW_STEPS: dict[str, Any] = {
    "pretrain": {"epochs": 1, "batch_size": 2048},
    "meta_train": {"batch_size": 2048},
    "warm_up": {"batch_size": 1024},
}
SHORT = merge(TINY, FEW_STEPS)


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both streams as one line, without the frame that the parser draws around its messages."""
        return " ".join((self.out + self.err).replace("│", " ").split())


Mwuf = Callable[..., Done]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(values))
    return path


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text())


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
