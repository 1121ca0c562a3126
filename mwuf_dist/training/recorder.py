"""What a run tells while it works: `metrics.jsonl`, TensorBoard events, a progress bar on the main rank."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from mwuf_dist.escape import printable
from mwuf_dist.files import whole_lines, with_checksum, write_atomically
from mwuf_dist.runtime import Runtime

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Recorder:
    """Records of one run, written by the main rank only.

    Args:
        folder: of the run.
        runtime: ranks.
        keep_bytes: length of `metrics.jsonl` at the checkpoint that the run goes on from; what came later is cut off,
            since it will be done again.

    Attributes:
        is_silent: `say` says nothing.
    """

    def __init__(self, folder: Path, runtime: Runtime, keep_bytes: int = 0) -> None:
        self._runtime = runtime
        self._folder = folder
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        self.is_silent = False
        if runtime.is_main:
            self._file = self._mended(folder / "metrics.jsonl", keep_bytes).open("a", encoding="utf-8")

    def _mended(self, path: Path, keep_bytes: int) -> Path:
        """Returns the file up to there, without what a disk or a power cut has spoilt."""
        path.touch()
        size = path.stat().st_size
        os.truncate(path, min(keep_bytes, size))
        lines, num_damaged = whole_lines(path)
        if num_damaged or size < keep_bytes:
            missing = f", {keep_bytes - size} bytes at its end are missing" if size < keep_bytes else ""
            self.say(f"{path}: {num_damaged} damaged lines are left out{missing}; the other {len(lines)} are kept")
            write_atomically(path, "".join(f"{line}\n" for line in lines))
        return path

    def write(self, record: dict[str, object], step: int) -> None:
        """Writes one line of `metrics.jsonl`; its numbers go to TensorBoard as `stage/name` too.

        A stage that counts its steps anew in each `phase` or `part` has a curve for each: `stage/phase/name`.
        """
        if self._file is None:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # not earlier: the first step need not wait for it

            self._board = SummaryWriter(str(self._folder / "tensorboard"))
        self._file.write(json.dumps(with_checksum(record)) + "\n")
        curve = record.get("part") or ("loss" in record and record.get("phase"))
        prefix = f"{record['stage']}/{curve}" if curve else record["stage"]
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{prefix}/{name}", value, step)

    def num_bytes(self) -> int:
        """Returns the length of `metrics.jsonl` so far, all of it on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def bar(self, title: str, total: int, done: int) -> tqdm:
        """Returns a progress bar over steps, silent except on the main rank of a terminal."""
        return tqdm(
            total=total, initial=done, desc=title, unit="step", leave=False, disable=not self._runtime.show_progress
        )

    def say(self, text: str) -> None:
        """Prints a line for the person who started the run."""
        if self._runtime.is_main and text and not self.is_silent:
            tqdm.write(printable(text))

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
