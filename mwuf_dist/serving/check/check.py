"""Compares the scores of a process that has only an export with those of the run, while deltas are applied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from mwuf_dist.config import UserError
from mwuf_dist.serving.check import server
from mwuf_dist.serving.check.rehearsal import made_up_deltas
from mwuf_dist.serving.deltas import reader
from mwuf_dist.serving.deltas.files import delta_files, read_chain
from mwuf_dist.serving.deltas.reader import Delta, changed_items, values_of
from mwuf_dist.serving.export.export import read_manifest
from mwuf_dist.serving.finished_run import FinishedRun

# Largest difference of a logit, per unit of the largest logit (at least 1).
MOST_DIFFERENCE = 1e-5
ROWS = 64
# What a process that has only an export must not have imported.
OURS = {"mwuf_dist", "mwuf_kernels", "torchrec", "fbgemm_gpu", "ray"}
SERVER, READER = Path(server.__file__), Path(reader.__file__)
_RANDOM = 0


@dataclass(frozen=True)
class ServeReport:
    """Reports what a server answered.

    Attributes:
        export: its folder.
        made_up: whether the deltas were made up for the check.
        num_deltas: applied while it answered.
        num_answers, num_rows: answers, and rows of each.
        versions: number of a delta -> answers of that version.
        num_telling: rows of requests whose score differs between two of the versions.
        difference: largest of a logit from the run's.
        largest: largest logit of the run.
        num_wrong: answers that are not those of the version they name.
        num_mixed: of those, answers whose rows are each of some version, but not of one.
        p50_ms, p99_ms: time of an answer.
    """

    export: Path
    made_up: bool
    num_deltas: int
    num_answers: int
    num_rows: int
    versions: dict[int, int]
    num_telling: int
    difference: float
    largest: float
    num_wrong: int
    num_mixed: int
    p50_ms: float
    p99_ms: float

    @property
    def is_good(self) -> bool:
        """Whether every answer is the run's, of one version."""
        return self.num_wrong == 0

    def text(self) -> str:
        """Returns for a terminal."""
        limit = MOST_DIFFERENCE * max(1.0, self.largest)
        whose = "made up for this check" if self.made_up else "named"
        told = ", ".join(f"{number} ({count:,})" for number, count in self.versions.items())
        verdict = "none" if not self.num_wrong else f"{self.num_wrong:,} WRONG, {self.num_mixed:,} of them mixed"
        return (
            f"{self.export}: {self.num_answers:,} answers of {self.num_rows} rows by a process without this package\n"
            f"deltas applied meanwhile: {self.num_deltas} ({whose}); answers of the versions {told}\n"
            f"rows whose score tells versions apart: {self.num_telling:,}\n"
            f"largest difference of a logit from the run's: {self.difference:.1e} (allowed {limit:.1e}; the largest "
            f"logit is {self.largest:.2f})\n"
            f"answers that are not of the one version they name: {verdict}\n"
            f"an answer takes {self.p50_ms:.2f} ms (median), {self.p99_ms:.2f} ms (99th percentile)"
        )


def serve_check(
    folder: Path, run: FinishedRun, named: Sequence[Path] = (), num_requests: int = 300, num_rows: int = ROWS
) -> ServeReport:
    """Starts a process that has the export, PyTorch, NumPy and PyArrow, and compares what it answers with the run.

    Args:
        folder: of an export with `--context`, its items in Parquet.
        run: that was exported, in the same state.
        named: deltas, or folders of them; none: some are made up.
        num_requests: different requests.
        num_rows: of each.

    Raises:
        UserError: the export cannot be checked: it lacks contexts, is of another run or state, or in arrays.
    """
    about, version = _about(folder, run)
    with tempfile.TemporaryDirectory(prefix="mwuf-serve-check-") as name:
        work = Path(name)
        paths = delta_files(named) if named else made_up_deltas(folder, about, work / "deltas")
        deltas = read_chain(paths, *version, names=("changed", "retired", "changed_users"))
        truth = _Truth(run, about, deltas)
        requests = _requests(run, truth, num_requests * num_rows)
        pq.write_table(requests, work / "requests.parquet")
        plan = {"rows": num_rows, "requests": num_requests, "deltas": [str(path.resolve()) for path in paths]}
        (work / "plan.json").write_text(json.dumps(plan))
        answers = _serve(folder, work)
    return _compared(folder, not named, answers, truth.logits(requests), version[1], num_rows)


def _about(folder: Path, run: FinishedRun) -> tuple[dict[str, Any], tuple[str, int, str]]:
    about, version = read_manifest(folder)
    if about.get("model") is None:
        raise UserError(f"{folder}: holds changed items alone and no model: name the export that they go into")
    if run.prepared.row_fields:
        raise UserError(
            f"{folder}: rows of its run have fields of their own, of which this check makes up none: score a few rows "
            "with the export, and with `FinishedRun.scores(users, items, rows)`"
        )
    if "unknown_user" not in about:
        raise UserError(f"{folder}: has no contexts of users: export it with --context")
    if not (folder / "items.parquet").exists():
        raise UserError(f"{folder}: its items are in {about['format']}, and this check reads Parquet: export it so")
    if about["state"] != run.version:
        raise UserError(
            f"{folder}: is of the state {about['state']['hash']} (delta {about['state']['number']}), and {run.folder} "
            f"of {run.version['hash']} (delta {run.version['number']}): name the run that it was made of with --run"
        )
    return about, version


class _Truth:
    """Scores of the run, and of what each delta makes of it, by the backbone as Python has it."""

    def __init__(self, run: FinishedRun, about: dict[str, Any], deltas: list[Delta]) -> None:
        self.run, self._old_items = run, about["old_items"]
        served = run.served_items(self._old_items)
        self.place = dict(zip(run.ids_of(served).to_pylist(), list(served), strict=True))
        # Of each version after the first: item -> (embedding, context), or None where it is gone.
        self.changes: list[dict[Any, tuple[np.ndarray, np.ndarray] | None]] = []
        self.user_changes: list[dict[Any, np.ndarray]] = []  # user -> context
        for delta in deltas:
            changed = changed_items(delta, self._old_items)
            vectors = values_of(changed["embedding"]), values_of(changed["item_context"])
            change: dict[Any, Any] = dict.fromkeys(delta.parts["retired"]["item_id"].to_pylist())
            change |= dict(zip(changed["item_id"].to_pylist(), zip(*vectors, strict=True), strict=True))
            self.changes.append(change)
            users = delta.parts.get("changed_users")
            pairs: Any = ()
            if users is not None:
                pairs = zip(users["user_id"].to_pylist(), values_of(users["user_context"]), strict=True)
            self.user_changes.append(dict(pairs))

    @torch.no_grad()
    def logits(self, requests: pa.Table) -> np.ndarray:
        """Returns scores [versions, rows], NaN where the item is not there."""
        run, model = self.run, self.run.model
        item_ids, user_ids = (requests[name].to_pylist() for name in ("item_id", "user_id"))
        index = np.array([self.place.get(one, -1) for one in item_ids])
        known = np.flatnonzero(index >= 0)
        fields = model.shape.num_item_fields * model.dim
        item, context = np.zeros((len(index), model.dim), np.float32), np.zeros((len(index), fields), np.float32)
        some = torch.from_numpy(index[known])
        item[known], context[known] = run.embeddings(some).cpu().numpy(), run.item_context(some).cpu().numpy()
        users = self._users(user_ids)
        there, found = index >= 0, []
        for change, user_change in zip(({}, *self.changes), ({}, *self.user_changes), strict=True):
            for place, one in enumerate(user_ids):
                users[place] = user_change.get(one, users[place])
            for place, one in enumerate(item_ids):
                if one in change:
                    row = change[one]
                    there[place] = row is not None
                    if row is not None:
                        item[place], context[place] = row
            both = torch.from_numpy(np.concatenate([context, users], axis=1)).to(model.runtime.device)
            scores = model.backbone(torch.from_numpy(item.copy()).to(model.runtime.device), both)
            found.append(np.where(there, scores.double().cpu().numpy(), np.nan))
        return np.stack(found)

    def _users(self, user_ids: list[Any]) -> np.ndarray:
        ids = {one: place for place, one in enumerate(self.run.user_ids.to_pylist())}
        index = np.array([ids.get(one, -1) for one in user_ids])
        contexts = self.run.user_context(torch.from_numpy(np.maximum(index, 0))).cpu().numpy()
        return np.where(index[:, None] >= 0, contexts, self.run.unknown_user_context().cpu().numpy())


def _requests(run: FinishedRun, truth: _Truth, num: int) -> pa.Table:
    """Returns random pairs.

    Half of their items, and a quarter of their users, are ones that a delta changes; one user in 64 is a stranger.
    """
    random = np.random.default_rng(_RANDOM)
    ids, users = pa.array(list(truth.place), run.item_ids.type), run.user_ids
    items = random.integers(len(ids), size=num)
    changed = pa.array(sorted(set().union(*truth.changes)), run.item_ids.type)
    if len(changed):
        items = np.where(random.random(num) < 0.5, len(ids) + random.integers(len(changed), size=num), items)
    user = random.integers(len(users), size=num)
    others = pa.array(sorted(set().union(*truth.user_changes)), users.type)
    if len(others):
        user = np.where(random.random(num) < 0.25, len(users) + random.integers(len(others), size=num), user)
    user = pa.concat_arrays([users, others]).take(pa.array(user))
    is_text = pa.types.is_string(user.type)
    stranger = pa.scalar("a stranger" if is_text else -(10**9), user.type)
    user = pc.call_function("if_else", [pa.array(random.random(num) < 1 / 64), stranger, user])
    return pa.table({"user_id": user, "item_id": pa.concat_arrays([ids, changed]).take(pa.array(items))})


def _serve(folder: Path, work: Path) -> dict[str, np.ndarray]:
    """Starts the process, and returns what it answered."""
    shutil.copy(SERVER, work / "server.py")
    shutil.copy(READER, work / "reader.py")
    command = [sys.executable, "-I", str(work / "server.py"), str(folder.resolve()), str(work)]
    done = subprocess.run(command, cwd=work, env=_bare_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{folder}: a process that has only this export failed:\n{done.stderr[-2000:]}")
    imported = OURS & set(json.loads((work / "modules.json").read_text()))
    assert not imported, f"the process was to have the export alone, and imported {sorted(imported)}"
    with np.load(work / "answers.npz") as found:
        return {name: found[name] for name in found.files}


def _bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MWUF_")}


def _compared(
    folder: Path, made_up: bool, answers: dict[str, np.ndarray], truth: np.ndarray, first: int, num_rows: int
) -> ServeReport:
    expected = truth.reshape(len(truth), -1, num_rows)[:, answers["request"]]  # [versions, answers, rows]
    there = ~np.isnan(expected)
    largest = float(np.abs(expected[there]).max(initial=0.0))
    limit = MOST_DIFFERENCE * max(1.0, largest)
    off = np.abs(expected - answers["logits"].astype(np.float64))
    off = np.where(np.isnan(answers["logits"]), np.where(there, np.inf, 0.0), np.where(there, off, np.inf))
    own = np.take_along_axis(off, (answers["version"] - first)[None, :, None], axis=0)[0]  # [answers, rows]
    wrong = (own > limit).any(axis=1)
    # Each row is of some version, but no version has them all.
    fits = off <= limit  # [versions, answers, rows]
    mixed = wrong & np.all(np.any(fits, axis=0), axis=-1) & ~np.any(np.all(fits, axis=-1), axis=0)
    numbers, counts = np.unique(answers["version"], return_counts=True)
    apart = np.isnan(truth) != np.isnan(truth[:1])
    apart |= np.abs(np.nan_to_num(truth) - np.nan_to_num(truth[:1])) > 2 * limit
    p50, p99 = np.percentile(answers["seconds"], [50, 99]) * 1e3
    return ServeReport(
        export=folder,
        made_up=made_up,
        num_deltas=len(truth) - 1,
        num_answers=len(wrong),
        num_rows=num_rows,
        versions=dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
        num_telling=int(apart.any(axis=0).sum()),
        difference=float(own.max(initial=0.0)),
        largest=largest,
        num_wrong=int(wrong.sum()),
        num_mixed=int(mixed.sum()),
        p50_ms=float(p50),
        p99_ms=float(p99),
    )
