"""`mwuf warm`: the daily job. New interactions come in, rows of new items move by the serving rule, nothing else does.

A job reads a run's folder and writes another one: the same model (files are linked, not copied), a state that has grown
(`warm_state.py`), and an export of the items that changed. The folder appears whole or not at all, and the old one is
only read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mwuf_dist.backbones.folded import FoldedHead
from mwuf_dist.config import WARM_SETS, Config, UserError
from mwuf_dist.data.prepare import prepare
from mwuf_dist.data.schema import RAW_ID
from mwuf_dist.data.shards import ENTITY_FILES, Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving import warm_state
from mwuf_dist.serving.export import Format, write_export
from mwuf_dist.serving.run_folder import FinishedRun, load_run, read_run
from mwuf_dist.serving.warm_fields import read_fields, unknown_fields
from mwuf_dist.serving.warm_first import first_rows
from mwuf_dist.serving.warm_input import (
    LOG_COLUMNS,
    Columns,
    Log,
    NewRows,
    find,
    id_keys,
    log_options,
    read_interactions,
    taken,
    together,
)
from mwuf_dist.serving.warm_rule import (
    FEWEST_ROWS,
    WarmRule,
    check_rule_fits,
    folded_slope,
    frozen_double,
    module_slope,
    rule_of,
    warm_rows,
)
from mwuf_dist.serving.warm_state import Change, Grown, Rows, WarmState

# Interactions whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 18
# Pairs of a user and an old item that are scored before and after.
_NUM_PROOFS = 1 << 14


@dataclass(frozen=True)
class WarmReport:
    """What a job has done.

    Attributes:
        folder: the output.
        change: the numbers of new and known interactions and of items.
        num_changed: items whose row or users changed.
        num_unseen_users: users of the input whom the run has never seen.
        num_proofs: scores of old items that are the same before and after, to the bit.
        digest: of the state; equal states have equal digests.
        already_done: the output was there, made from the same run and the same input.
    """

    folder: Path
    change: Change
    num_changed: int
    num_unseen_users: int
    num_proofs: int
    digest: str
    already_done: bool = False

    def text(self) -> str:
        """For a terminal."""
        change, output = self.change, self.folder
        if self.already_done:
            return f"{output}: made from this run and these rows already; nothing to do (state {self.digest})"
        lines = [
            f"{change.num_new:,} new interactions, {change.num_known:,} known already, {change.num_of_old_items:,} of "
            f"old items (frozen); {self.num_unseen_users:,} users never seen (the mean user)",
            f"{self.num_changed:,} items changed, {change.num_new_items:,} of them never seen before",
            f"proof: {self.num_proofs:,} of {self.num_proofs:,} scores of old items are the same to the bit",
            f"run: {output}   state: {self.digest}   changed rows: {output / 'export'}",
        ]
        if not self.num_changed:
            lines.insert(0, "nothing new: all of it was known, and nothing has changed")
        return "\n".join(lines)


def warm(
    folder: Path,
    interactions: Path,
    output: Path,
    runtime: Runtime,
    items: Path | None = None,
    columns: Columns | None = None,
    kind: Format = "parquet",
) -> WarmReport:
    """Runs the job. Every rank calls it with the same arguments.

    Args:
        folder: of a finished run, or the output of an earlier job.
        interactions: Parquet or CSV, a file or a folder.
        output: the folder to write; must not exist, unless this very job has made it.
        runtime: ranks and device.
        items: table with the fields of items that the run has never seen; those without interactions are added too.
        columns: names of the columns of the interactions.
        kind: format of the export.

    Raises:
        UserError: the input is wrong, or `output` holds something else.
    """
    config, _, checkpoint = read_run(folder)
    check_rule_fits(config)
    if output.resolve() == folder.resolve():
        raise UserError(f"{output}: is the run itself, which stays as it is: name another --output")
    prepared = prepare(config.data)
    run_ids, user_ids = (raw_ids(prepared, ENTITY_FILES[side]) for side in ("item", "user"))
    before = warm_state.load(folder) or warm_state.new_state(prepared, run_ids.type, config.embedding.dim)
    options = log_options(config, columns or Columns())
    rows = read_interactions(interactions, options, user_ids)
    listed = (rows.item_ids[:0], unknown_fields(prepared, 0))
    if items is not None:
        listed = read_fields(items, options, prepared, config.data.name == "logs")
    run_log = seen_by_run(prepared, find(rows.item_ids, run_ids), user_ids)
    change = warm_state.change(before, rows, listed, run_ids, prepared, run_log, 3 * config.data.warm_rows)
    change = replace(change, state=replace(change.state, made_from=_made_from(folder, change.state)))
    if output.exists():
        return _already_done(output, change, rows)
    beside = output.parent / f".{output.name}.partial"
    runtime.on_main(lambda: _make_folder(beside))
    try:
        job = WarmJob(config, runtime, prepared, change, run_log)
        run = load_run(folder, runtime, several_ranks=True)
        scores = _scores_of_old_items(run)
        state = replace(change.state, rows=job.rows(run))
        runtime.on_main(lambda: _write(state, folder, checkpoint, beside))
        del run
        after = load_run(beside, runtime, several_ranks=True)
        same = bool(torch.equal(scores, _scores_of_old_items(after)))
        assert same, "scores of old items have changed: nothing is written"
        changed = np.union1d(change.anew, change.going_on)
        write_export(after, changed, kind, beside / "export", runtime)
        runtime.on_main(lambda: os.rename(beside, output))
    finally:
        runtime.on_main(lambda: shutil.rmtree(beside, ignore_errors=True))
    return WarmReport(output, change, len(changed), rows.num_unseen_users, len(scores), warm_state.digest_of(output))


def raw_ids(prepared: Prepared, name: str) -> pa.Array:
    """Raw IDs of an entity file of the prepared data."""
    column = pq.read_table(prepared.path / name, columns=[RAW_ID], memory_map=True)[RAW_ID]
    return pa.concat_arrays(column.chunks)


def seen_by_run(prepared: Prepared, items: np.ndarray, user_ids: pa.Array) -> Log:
    """What the run has seen of its own new items among these, in the order of its sets."""
    wanted = np.zeros(prepared.num_items + 1, dtype=bool)
    wanted[items] = True
    wanted[: prepared.num_old_items] = wanted[-1] = False
    parts = []
    for split in WARM_SETS if wanted.any() else ():
        columns = prepared.columns(split, ("user", "item", "time", "label"))
        columns = {name: values[wanted[columns["item"]]] for name, values in columns.items()}
        keys = id_keys(user_ids.take(pa.array(columns["user"])))
        parts.append({name: (columns | {"user_key": keys})[name] for name in LOG_COLUMNS})
    log = together([warm_state.empty_log(), *parts])
    return taken(log, np.argsort(log["item"], kind="stable"))


def _made_from(folder: Path, state: WarmState) -> dict[str, str]:
    """What tells one job from another: the run, the state before, and what is known after it."""
    known = hashlib.sha256()
    for values in (*state.log.values(), state.listed):
        known.update(np.ascontiguousarray(values).data)
    known.update(repr((state.ids.to_pylist(), state.fields.to_pydict())).encode())
    checkpoint = (folder / "checkpoints" / "LATEST").read_text()
    config = hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()[:12]
    return {"run": f"{config} {checkpoint}", "state": warm_state.digest_of(folder), "known": known.hexdigest()[:12]}


def _already_done(output: Path, change: Change, rows: NewRows) -> WarmReport:
    """The report of a job whose output is there already.

    Raises:
        UserError: it is the output of something else.
    """
    about = warm_state.read_about(output) if output.is_dir() else {}
    if about.get("made_from") != change.state.made_from:
        raise UserError(f"{output}: exists, and was not made from this run and these rows: name another --output")
    return WarmReport(output, change, 0, rows.num_unseen_users, 0, warm_state.digest_of(output), already_done=True)


def _make_folder(beside: Path) -> None:
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{beside.parent}: cannot be written ({error.strerror}); name another --output") from None


def _write(state: WarmState, folder: Path, checkpoint: Path, beside: Path) -> None:
    """The folder without its export: the run's files, linked where the file system can, and the state."""
    names = ["config.toml", "results.json", "checkpoints/LATEST"]
    names += [f"checkpoints/{checkpoint.name}/{path.name}" for path in checkpoint.iterdir()]
    for name in names:
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target)
        except OSError:  # another file system, or one without links
            shutil.copy2(folder / name, target)
    warm_state.save(state, beside)


@torch.no_grad()
def _scores_of_old_items(run: FinishedRun) -> torch.Tensor:
    """Logits of random users and old items, on the plain path of the model: [_NUM_PROOFS]."""
    generator = torch.Generator().manual_seed(0)
    device = run.model.runtime.device
    users = torch.randint(run.prepared.num_users, (_NUM_PROOFS,), generator=generator).to(device)
    items = torch.randint(run.num_old_items, (_NUM_PROOFS,), generator=generator).to(device)
    return run.model.backbone(run.model.old_ids.rows(items), run.context(users, items))


@dataclass
class WarmJob:
    """The rows that must move, and what the rule needs of each.

    Lookups are collectives, so that every rank makes the same ones; the rule itself runs on a share of the items.
    """

    config: Config
    runtime: Runtime
    prepared: Prepared
    change: Change
    run_log: Log

    def rows(self, run: FinishedRun) -> Rows:
        """All rows that are not the run's, on the main rank (elsewhere what is there is not complete)."""
        state, device = self.change.state, self.runtime.device
        grown = Grown(self.prepared, state)
        self.items = FeatureStore(grown.entity("item"), device)
        self.users = FeatureStore(grown.entity("user"), device)
        backbone = frozen_double(run.model.backbone)
        head = backbone.fold()  # pyright: ignore[reportCallIssue]
        self.head = head if isinstance(head, FoldedHead) else None
        self.slope = folded_slope(self.head) if self.head is not None else module_slope(backbone)
        old = state.rows
        touched = np.union1d(self.change.anew, self.change.going_on)
        at = np.full(state.num_items, -1, dtype=np.int64)
        at[old.item] = np.arange(len(old.item))
        at[self.change.anew] = -1
        start, boundary = self._starts(run, touched, at[touched])
        made = self._fit(run, touched, start, boundary)
        kept = np.isin(old.item, touched, invert=True)
        parts = [(old.item[kept], old.served[kept], old.at_boundary[kept], old.boundary[kept]), made]
        item, served, at_boundary, boundary = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(item)
        return Rows(item[order], served[order], at_boundary[order], boundary[order])

    def _starts(self, run: FinishedRun, touched: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [T, D], interactions before them [T]) where each item goes on; `at` is its place in the state or -1."""
        state, old = self.change.state, self.change.state.rows
        is_run = touched < state.num_run_items
        start = np.empty((len(touched), run.model.dim), dtype=np.float32)
        boundary = np.where(is_run, 3 * self.config.data.warm_rows, 0)
        anew = at < 0
        start[~anew], boundary[~anew] = old.at_boundary[at[~anew]], old.boundary[at[~anew]]
        theirs = torch.from_numpy(touched[anew & is_run])
        if run.run_rows is not None:
            start[anew & is_run] = run.run_rows[theirs].numpy()
        else:
            with torch.no_grad():
                start[anew & is_run] = run.model.new_ids.rows(theirs.to(self.runtime.device)).cpu().numpy()
        unseen = touched[anew & ~is_run]
        ids = state.ids.take(pa.array(unseen - state.num_run_items))
        start[anew & ~is_run] = first_rows(run, id_keys(ids), lambda: self._item_fields(run, unseen)).cpu().numpy()
        return start, boundary

    def _item_fields(self, run: FinishedRun, items: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(items.astype(np.int64)).to(self.runtime.device)
        with torch.no_grad():
            return run.model.item_tables(self.items.features(index))

    def _fit(
        self, run: FinishedRun, touched: np.ndarray, start: np.ndarray, boundary: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(items, rows, rows at their boundary, boundary) by the rule, gathered on the main rank."""
        rule, runtime = rule_of(self.config), self.runtime
        # The run's rows of an item, then those that came since: both are sorted by item.
        log = together([self.run_log, self.change.state.log])
        log = taken(log, np.isin(log["item"], touched))
        log = taken(log, np.argsort(log["item"], kind="stable"))
        counts = np.diff(np.searchsorted(log["item"], np.append(touched, np.iinfo(np.int32).max)))
        ends = np.cumsum(counts)
        out = []
        for group in _groups(counts):
            rows = taken(log, np.arange(int(ends[group[0]] - counts[group[0]]), int(ends[group[-1]])))
            parts = self._parts(run, rule, touched[group], counts[group], boundary[group], rows)
            ours = np.arange(runtime.rank, len(group), runtime.world_size)
            place = _of_items(counts[group], ours)
            # An array of its own: `parts` of our items' rows are those at these places of the group.
            made = warm_rows(
                rule,
                self.slope,
                torch.from_numpy(start[group[ours]]).to(runtime.device),
                boundary[group[ours]],
                counts[group[ours]],
                lambda needed, place=place, parts=parts: parts(place[needed]),
                rows["label"][place],
            )
            items = touched[group[ours]]
            out.append((items, made.rows.cpu().numpy(), made.at_boundary.cpu().numpy(), made.boundary))
        dim = start.shape[1]
        none = (np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty((0, dim), np.float32))
        columns = [np.concatenate(column) for column in zip(*out, (*none, np.empty(0, np.int64)), strict=True)]
        gathered = [runtime.gather_rows(column) for column in columns]
        items, rows, at_boundary, boundary = (
            ours if whole is None else whole for ours, whole in zip(columns, gathered, strict=True)
        )
        return items, rows, at_boundary, boundary

    def _parts(
        self, run: FinishedRun, rule: WarmRule, items: np.ndarray, counts: np.ndarray, boundary: np.ndarray, rows: Log
    ) -> Callable[[np.ndarray], torch.Tensor]:
        """Frozen parts in float64 of a group's interactions by their place. Looks up on every rank alike."""
        place = np.arange(len(rows["item"])) - np.repeat(np.cumsum(counts) - counts, counts)
        needed = np.flatnonzero((place >= np.repeat(boundary, counts)) | rule.carry_over)
        unknown = self.users.num_rows - 1
        user = np.where(rows["user"] < 0, unknown, rows["user"]).astype(np.int64)
        distinct, inverse = np.unique(user[needed], return_inverse=True)
        of_row = np.zeros(len(user), dtype=np.int64)
        of_row[needed] = inverse
        # Never so few rows that a product of them would add in another order.
        distinct = np.append(distinct, np.full(FEWEST_ROWS, unknown))
        item = np.append(items, np.repeat(items[:1], FEWEST_ROWS))
        of_item = torch.from_numpy(np.repeat(np.arange(len(items)), counts))
        with torch.no_grad():
            index = torch.from_numpy(distinct).to(self.runtime.device)
            user_side = run.model.user_tables(self.users.features(index)).double()
            item_side = self._item_fields(run, item).double()
        if self.head is not None:
            user_side, item_side = self.head.user_part(user_side), self.head.item_part(item_side)
        users, device, head = torch.from_numpy(of_row), user_side.device, self.head

        def parts(places: np.ndarray) -> torch.Tensor:
            index = torch.from_numpy(places)
            one, other = item_side[of_item[index].to(device)], user_side[users[index].to(device)]
            return torch.cat([one, other], dim=1) if head is None else one + other

        return parts


def _groups(counts: np.ndarray) -> list[np.ndarray]:
    """Items cut into groups of about `_GROUP_ROWS` interactions, at least one item each."""
    group = np.cumsum(counts) // _GROUP_ROWS
    cuts = np.flatnonzero(np.diff(group)) + 1
    return [part for part in np.split(np.arange(len(counts)), cuts) if len(part)]


def _of_items(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Places of the interactions of some items, whose `counts` stand one after another."""
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(np.repeat(mask, counts))
