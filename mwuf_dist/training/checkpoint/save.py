"""When and where the state of a run is saved, and which checkpoint it goes on from.

A checkpoint is written beside its place and renamed, then `LATEST` is replaced at once: at any moment a kill leaves
the ones before it whole. Tensors go through `torch.distributed.checkpoint`, so they can be loaded on another number of
ranks and under another sharding plan. What is in a checkpoint: `checkpoint_files`.

Large ones are written in the background (`SavePolicy.in_background`): the tensors are copied between two steps, since
optimizers write into them in place, and a thread writes the copies, with a process group of its own. torch's own
`async_save` is no help here: its stager copies plain tensors and passes `ShardedTensor`s on as they are.
"""

from __future__ import annotations

import copy
import errno
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.remote_device import _remote_device

from mwuf_dist.config import CheckpointConfig, UserError
from mwuf_dist.data.batches.lanes import LanesMove
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.files import DamagedError, make_folder, remove, remove_left_overs, sync, sync_tree, write_atomically
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import StoppedError, asked_to_stop, held_back
from mwuf_dist.training.checkpoint.files import INDEX, META, STAGES, Meta, content_problem, parse_meta, record

# On several ranks a look at the clock is an exchange: so many steps, or seconds, apart at most.
_STEPS_BETWEEN_LOOKS = 50
_SECONDS_BETWEEN_LOOKS = 1.0
_NOWHERE = (-1,)


class SavePolicy:
    """When to save, and which checkpoints to keep.

    Args:
        config: section `checkpoint`.
        runtime: ranks.
    """

    def __init__(self, config: CheckpointConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        # Of a clock that never jumps: the one on the wall is set by people, daylight saving and NTP.
        self._last_save = self._last_look = time.monotonic()
        self._last_step, self._steps_between = 0, 1
        self.stopping = False

    def due(self, step: int) -> bool:
        """Says whether to save after a step: the main rank's clock says so, or some rank was asked to stop.

        Every rank calls it after each step of a stage, counted from 1, and every rank gets the same answer. `stopping`
        says which of the reasons it is.
        """
        if step % self._steps_between:
            return False
        now = time.monotonic()
        is_time = self._runtime.is_main and self._is_time(now)
        # The slowest rank decides when to look again: the largest of what is below zero is the smallest.
        stop, save, steps = self._runtime.maxima([asked_to_stop(), is_time, -self._steps_until_a_look(now, step)])
        self._last_look, self._last_step, self._steps_between = now, step, -steps
        self.stopping = bool(stop)
        return self.stopping or bool(save)

    def _steps_until_a_look(self, now: float, step: int) -> int:
        if self._runtime.world_size == 1:
            return 1
        steps = step - self._last_step if step > self._last_step else step  # another stage counts anew
        step_s = (now - self._last_look) / steps
        return max(1, min(_STEPS_BETWEEN_LOOKS, int(_SECONDS_BETWEEN_LOOKS / max(step_s, 1e-6))))

    def _is_time(self, now: float) -> bool:
        return self._config.every_s > 0 and now - self._last_save > self._config.every_s

    def agree_to_stop(self) -> bool:
        """Says whether some rank was asked to stop. A collective, for where no step is near."""
        self.stopping = bool(self._runtime.max(asked_to_stop()))
        return self.stopping

    def in_background(self, num_bytes: float) -> bool:
        """Says whether a save of so many bytes, over all ranks, is written beside training.

        Training stands still half as long for a copy as for a save at once (`python -m benchmarks.saves`, a busy
        machine), and the copy takes as much memory as it copies: not worth it where a save is short anyway.
        """
        return num_bytes / self._runtime.world_size >= self._config.background_from_mb * 1e6

    def saved(self) -> None:
        """Hears that a checkpoint was saved."""
        self._last_save = time.monotonic()

    def to_forget(self, checkpoints: list[Path]) -> list[Path]:
        """Returns those of the checkpoints, oldest first, that are kept no longer."""
        return checkpoints[: max(0, len(checkpoints) - self._config.keep_last)]


class Checkpointer:
    """Saves the state of a run, and finds the checkpoint to go on from.

    Args:
        folder: of the run's checkpoints.
        config: section `checkpoint`.
        runtime: ranks.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, runtime: Runtime) -> None:
        self._folder = folder
        self._runtime = runtime
        self._beside: Runtime | None = None  # the ranks, for a thread that saves
        self._writer: _Writer | None = None  # of the save that is under way
        self.policy = SavePolicy(config, runtime)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for a save that is under way, unless something is wrong: other ranks may wait for ever then."""
        if kind is None or issubclass(kind, (StoppedError, LanesMove)):
            self.wait()

    def save(self, meta: Meta, tensors: dict[str, Any]) -> None:
        """Writes a checkpoint, or begins to: one at a time. A collective.

        Raises:
            UserError: the disk is full, or cannot be written to: for this checkpoint or, where that one is written in
                the background, for the one before it. The checkpoints before are whole.
        """
        with held_back():
            self.wait()
            if not self.policy.in_background(_num_bytes(tensors)):
                self._write(meta, tensors, self._runtime)
            else:
                self._beside = ranks = self._beside or self._runtime.beside()
                meta, copies = copy.deepcopy(meta), {name: _copied(value) for name, value in tensors.items()}
                self._writer = _Writer(lambda: self._write(meta, copies, ranks))
        self.policy.saved()

    def wait(self) -> None:
        """Waits until no save is under way.

        Raises:
            UserError: the one that was could not be written; see `save`.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.wait()

    def _write(self, meta: Meta, tensors: dict[str, Any], ranks: Runtime) -> None:
        final = self._folder / meta.cursor.name
        beside = self._folder / f".{meta.cursor.name}.partial"
        with self._explained(beside):
            ranks.on_main(lambda: self._make_room(beside))
            try:
                dcp.save(tensors, checkpoint_id=str(beside), process_group=ranks.group)
            except CheckpointException as error:  # every rank raises it
                raise _of_the_disk(next(iter(error.failures.values()))[0]) from None
            # Each rank reads what it has written itself, out of memory as a rule.
            ours = {path.name: record(path) for path in beside.glob(f"__{ranks.rank}_*")}
            meta.files = {name: entry for part in ranks.gather(ours) for name, entry in part.items()}
            ranks.on_main(lambda: self._install(meta, beside, final))

    @contextmanager
    def _explained(self, beside: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise UserError(self._cannot_write(error)) from error

    def _cannot_write(self, error: OSError) -> str:
        whole = self._in_order()
        state = f"{whole[-1].name}, which is whole" if whole else "the beginning, as there is none before it"
        return (
            f"{self._folder}: the checkpoint cannot be written ({error.strerror or error}): make room, then the same "
            f"command goes on from {state}"
        )

    def _make_room(self, beside: Path) -> None:
        with self._explained(beside):
            make_folder(self._folder)
            remove_left_overs(self._folder)  # of a save that was killed
            beside.mkdir()

    def _install(self, meta: Meta, beside: Path, final: Path) -> None:
        with self._explained(beside):
            meta.files[INDEX] = record(beside / INDEX)
            (beside / META).write_text(meta.to_json(), encoding="utf-8")
            sync_tree(beside)
            remove(final)  # it is damaged, or the run would not be here
            beside.rename(final)
            sync(self._folder)
            write_atomically(self._folder / "LATEST", final.name)
        # One that is further than this is damaged, or the run would not be here.
        before = [path for path in self._in_order() if _position(path) <= _position(final)]
        for path in {*self._in_order()} - {*before} | {*self.policy.to_forget(before)}:
            shutil.rmtree(path)

    def _in_order(self) -> list[Path]:
        """Returns the checkpoints of the run, by how far they are."""
        if not self._folder.is_dir():
            return []
        return sorted((path for path in self._folder.iterdir() if _position(path) != _NOWHERE), key=_position)

    def latest(self, config_hash: str) -> tuple[Path, Meta, list[str]] | None:
        """Returns the checkpoint to go on from, with what is wrong with those after it; None when there is none yet.

        A collective: every rank looks at a part of the files.

        Raises:
            UserError: none of them is whole and of this config and version.
        """
        candidates: Any = self._runtime.broadcast([path.name for path in self._candidates()])
        refused = []
        for name in candidates:
            path = self._folder / name
            problem, meta = None, None
            try:
                meta = parse_meta(path, config_hash)
                problem = content_problem(path, meta, self._runtime.rank, self._runtime.world_size)
            except DamagedError as error:
                problem = str(error)
            problem = next((found for found in self._runtime.gather(problem) if found), None)
            if problem is None:
                assert meta is not None
                return path, meta, refused
            refused.append(f"{path}: {problem}")
        if refused:
            raise UserError(
                f"{'; '.join(refused)}: no checkpoint is left to go on from; delete the run's `checkpoints` folder to "
                "start it again"
            )
        return None

    def _candidates(self) -> list[Path]:
        """Lists what `LATEST` names, then those before it, the nearest first."""
        checkpoints = self._in_order()
        name = _pointed_at(self._folder)
        newest = self._folder / name
        if newest.name != name or _position(newest) == _NOWHERE:  # nothing, or nothing that a save has written
            return checkpoints[::-1]
        # LATEST goes by the order of saves, and the order of the names by that of training: a run saves in it.
        is_there = newest in checkpoints
        before = [
            path for path in checkpoints if path != newest and (_position(path) < _position(newest) or not is_there)
        ]
        return [newest, *before[::-1]]


def _pointed_at(folder: Path) -> str:
    """Reads what `LATEST` says, whatever that is."""
    try:
        return (folder / "LATEST").read_bytes().decode(errors="replace").strip().replace("\0", "")
    except OSError:
        return ""


class _Writer:
    """A thread that writes a checkpoint, and what went wrong in it. It ends with the process, whatever it is at."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _num_bytes(tensors: dict[str, Any]) -> float:
    """Returns bytes over all ranks."""
    # Metadata, because a question to a sharded tensor itself prints that its class is to go.
    layouts = [value.metadata() for value in tensors.values() if isinstance(value, ShardedTensor)]
    plain = [value for value in tensors.values() if not isinstance(value, ShardedTensor)]
    sharded_bytes = sum(math.prod(layout.size) * layout.tensor_properties.dtype.itemsize for layout in layouts)
    return sharded_bytes + sum(value.numel() * value.element_size() for value in plain)


def _copied(value: torch.Tensor | ShardedTensor) -> torch.Tensor | ShardedTensor:
    """Returns a copy on the CPU; of a sharded tensor, of this rank's parts."""
    if not isinstance(value, ShardedTensor):
        return value.detach().to("cpu", copy=True)
    layout = copy.deepcopy(value.metadata())
    for shard in layout.shards_metadata:
        assert shard.placement is not None
        shard.placement = _remote_device(f"rank:{shard.placement.rank()}/cpu")
    places = {tuple(shard.shard_offsets): shard for shard in layout.shards_metadata}
    shards = [
        Shard(shard.tensor.detach().to("cpu", copy=True), places[tuple(shard.metadata.shard_offsets)])
        for shard in value.local_shards()
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, layout)


def _of_the_disk(error: BaseException) -> BaseException:
    """Returns the disk's own error behind that of a save, where there is one."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    # The writer of torch's files notices only that they are shorter than they should be.
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return OSError(errno.ENOSPC, "fewer bytes were taken than given: the disk is full, or a quota is used up")
    return error


def _position(path: Path) -> tuple[int, ...]:
    """Says how far a checkpoint is, from its name; `_NOWHERE` for a name that is none."""
    stage, *numbers = path.name.split("-")
    if stage not in STAGES or len(numbers) != 3 or not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
        return _NOWHERE
    return STAGES.index(stage), *map(int, numbers)


def table_state(*collections: Tables) -> dict[str, Any]:
    """Returns tensors of collections, for a checkpoint."""
    return {key: value for tables in collections for key, value in tables.state().items()}


def module_state(prefix: str, module: torch.nn.Module) -> dict[str, Any]:
    """Returns tensors of a dense module, for a checkpoint."""
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
