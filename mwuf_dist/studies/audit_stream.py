"""The leak audit of the stream protocol: with another future, every score of the days before it is the same to the bit.

The data are prepared and the days played twice. The second time what comes after the middle day is another future:
half of its rows are gone, and users, items and labels of the others are shuffled, before anything is made of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.config import Config, config_hash
from mwuf_dist.data import sources
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.schema import RawPieces
from mwuf_dist.data.sources import logs
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.studies.audit import quietly
from mwuf_dist.training.run import Run

_STEPS_PER_EPOCH = 20


@dataclasses.dataclass(frozen=True)
class _OtherFuture:
    """A source, or what stands before it, whose rows from a time on are others."""

    source: Any
    since: int

    def fingerprint(self, config: Any) -> dict[str, Any]:
        """Gives that of the source itself."""
        return self.source.fingerprint(config)

    def pieces(self, config: Any) -> RawPieces:
        """Returns the pieces of the source, each with another future."""
        raw = self.source.pieces(config)

        def read(piece: Any) -> Iterator[dict[str, np.ndarray]]:
            return map(self._other, raw.read(piece))

        return dataclasses.replace(raw, read=read, is_in_memory=True)

    def _other(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept, shuffled = other_rows(columns["time"], self.since)
        moved = {name: columns[name][order] for name, order in zip(("user", "item", "label"), shuffled, strict=True)}
        return {name: (moved.get(name, column))[kept] for name, column in columns.items()}


def other_rows(time: np.ndarray, since: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draws (mask of rows that stay [R], three orders of rows [R], in which only rows from `since` on have moved)."""
    random = np.random.default_rng(7)
    later = np.flatnonzero(time >= since)
    kept = np.ones(len(time), dtype=bool)
    kept[later[::2]] = False
    orders = []
    for _ in range(3):
        order = np.arange(len(time))
        order[later] = random.permutation(later)
        orders.append(order)
    return kept, orders


@contextlib.contextmanager
def other_future(name: str, since: int) -> Iterator[None]:
    """Says where the data set of this name has another future from `since` on, in this process."""
    if name != "logs":
        with _patched(sources.SOURCES, name, _OtherFuture(sources.SOURCES[name], since)):
            yield
        return
    read = logs.read

    def others(options: Any) -> Rows:  # before repeated rows are left out and negatives drawn
        rows = read(options)
        kept, (users, items, labels) = other_rows(rows.time, since)
        found = {"user": rows.user[users], "item": rows.item[items], "label": rows.label[labels]}
        return dataclasses.replace(rows, **found, kept=rows.kept[kept[rows.kept]])

    logs.read = others
    try:
        yield
    finally:
        logs.read = read


@contextlib.contextmanager
def _patched(known: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    before, known[name] = known[name], value
    try:
        yield
    finally:
        known[name] = before


def audit_stream(config: Config, folder: Path) -> dict[str, Any]:
    """Audits one run of the stream protocol; the same keys as `audit.audit`.

    Args:
        config: of the run; its base trained anew is not looked at, only what it starts from.
        folder: for what the two passes leave; it is removed.
    """
    quiet = quietly(config)
    with start(quiet) as runtime:
        runtime.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
        prepared = prepare(quiet.data)
        time = prepared.columns("test", ("time",))["time"]
        day, day_0 = prepared.manifest["day"], prepared.manifest["day_0"]
        since = day_0 + int(np.median((time - day_0) // day) + 1) * day
        honest = _logits(quiet, folder / "honest", runtime)
        with other_future(quiet.data.name, since):
            blind = _logits(_prepared_in(quiet, folder / "prepared"), folder / "blind", runtime)
        runtime.barrier()
        runtime.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    num = int((time < since).sum())
    expected, found = honest[:num], blind[:num]
    changed = num if len(found) < num else int((expected != found).sum())
    moved = len(time) - num
    return {
        "passed": not changed and moved > 0,
        "num_scores": num,
        "num_labels": moved,
        "changed": {"days before the other future": changed} if changed else {},
        "config_hash": config_hash(config),
    }


def _prepared_in(config: Config, folder: Path) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, prepared_dir=str(folder)))


def _logits(config: Config, folder: Path, runtime: Runtime) -> np.ndarray:
    runtime.on_main(lambda: prepare(config.data))
    job = Run(config, folder, runtime, prepare(config.data))
    job.session.steps_per_epoch = _STEPS_PER_EPOCH
    job.session.recorder.is_silent = True  # its AUC is no result
    with contextlib.closing(job.session.recorder):
        job.pretrain(None)
        job.meta_train()
        job.stream()
    runtime.barrier()
    return np.load(folder / "scores" / "stream-test.npy")
