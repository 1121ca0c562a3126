"""Checkpoints: written beside and renamed, then an atomic `LATEST`, with a `meta.json` that a person can read.

Tensors go through `torch.distributed.checkpoint`, so a checkpoint can be loaded on another number of ranks and under
another sharding plan.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from mwuf_dist.config import CheckpointConfig, UserError
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.evaluation.files import write_atomically
from mwuf_dist.runtime import Runtime

# Steps between two looks at the clock: on several ranks a look is a collective.
_STEPS_BETWEEN_LOOKS = 50


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: the next thing to do is `step` of `epoch` of `stage` (for `warm_up`: of phase `phase`)."""

    stage: str
    phase: int = 0
    epoch: int = 0
    step: int = 0


@dataclass
class Meta:
    """What `meta.json` holds beside the tensors.

    `held_out_loss` is that of the last finished epoch of a stage that trains until it stops falling.
    """

    cursor: Cursor
    config_hash: str
    world_size: int
    versions: dict[str, str]
    metrics_bytes: int = 0
    held_out_loss: float | None = None
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    plans: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


class Checkpointer:
    """When and where the state of a run is saved, and which checkpoint to go on from.

    Args:
        folder: of the run's checkpoints.
        config: section `checkpoint`.
        runtime: ranks.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, runtime: Runtime) -> None:
        self._folder = folder
        self._config = config
        self._runtime = runtime
        self._last_save = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time to save after a step: the main rank's clock decides, for all."""
        if not self._config.every_s or step % _STEPS_BETWEEN_LOOKS:
            return False
        return bool(self._runtime.share(time.monotonic() - self._last_save > self._config.every_s))

    def save(self, meta: Meta, tensors: dict[str, Any]) -> None:
        """Writes a checkpoint. A collective."""
        cursor = meta.cursor
        name = f"{cursor.stage}-{cursor.phase}-{cursor.epoch}-{cursor.step:08d}"
        final, beside = self._folder / name, self._folder / f".{name}.partial"
        if self._runtime.is_main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        self._runtime.barrier()
        dcp.save(tensors, checkpoint_id=str(beside))
        if self._runtime.is_main:
            meta.files = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
            (beside / "meta.json").write_text(json.dumps(asdict(meta), indent=1))
            shutil.rmtree(final, ignore_errors=True)
            beside.rename(final)
            write_atomically(self._folder / "LATEST", name)
            self._forget_old(name)
        self._runtime.barrier()
        self._last_save = time.monotonic()

    def _forget_old(self, newest: str) -> None:
        folders = sorted(
            (path for path in self._folder.iterdir() if path.is_dir() and path.name != newest),
            key=lambda path: path.stat().st_mtime,
        )
        for path in folders[: max(0, len(folders) + 1 - self._config.keep_last)]:
            shutil.rmtree(path)

    def latest(self, config_hash: str) -> tuple[Path, Meta] | None:
        """The checkpoint to go on from: None when there is none yet.

        Raises:
            UserError: it is of another config, or a file of it is missing or has another size.
        """
        pointer = self._folder / "LATEST"
        if not pointer.exists():
            return None
        path = self._folder / pointer.read_text().strip()
        return path, read_meta(path, config_hash)


def read_meta(path: Path, config_hash: str | None) -> Meta:
    """Reads and checks `meta.json` of a checkpoint.

    Raises:
        UserError: it is damaged, or made by a run of another config (`config_hash` None: not compared).
    """
    advice = "delete the run's `checkpoints` folder to start it again"
    try:
        values = json.loads((path / "meta.json").read_text())
        meta = Meta(**values | {"cursor": Cursor(**values["cursor"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: meta.json cannot be read ({error}); {advice}") from None
    for name, size in meta.files.items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(f"{path}: {name} {state}: the checkpoint is damaged; {advice}")
    if config_hash is not None and meta.config_hash != config_hash:
        raise UserError(f"{path}: made by a run of config {meta.config_hash}, this is {config_hash}; {advice}")
    return meta


def load_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Loads a checkpoint into tensors, in place. A collective."""
    dcp.load(tensors, checkpoint_id=str(path))


def table_state(*collections: Tables) -> dict[str, Any]:
    """Tensors of collections, for a checkpoint."""
    return {key: value for tables in collections for key, value in tables.state().items()}


def module_state(prefix: str, module: torch.nn.Module) -> dict[str, Any]:
    """Tensors of a dense module, for a checkpoint."""
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
