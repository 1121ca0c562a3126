"""`mwuf warm RUN --follow SOURCE`: interactions are taken as they come, and each batch of them becomes a delta.

The model and the state stay in memory. As an item's row is a function of its own interactions, a batch is a job on the
part of the state that is about its items, and costs what these cost. The delta is the commit: it has the rows, the
interactions and what was taken of the source, and appears in one step, so that a process that is killed anywhere goes
on with the first file or message that is in no delta. `warm/` is written anew now and then, and at the end.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import torch

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.data.readers.ids import find as find_ids
from mwuf_dist.data.readers.ids import form_of as ids_form
from mwuf_dist.embeddings.user_means import ItemUsers, mean_users
from mwuf_dist.files import appearing, make_folder, remove_left_overs
from mwuf_dist.locks import locked
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import asked_to_stop, held_back, sigterm_asks
from mwuf_dist.serving import served_state
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas import hashes
from mwuf_dist.serving.deltas.pending import moved_on, state_of
from mwuf_dist.serving.deltas.replay import Parts, parts_of, replayed, restricted
from mwuf_dist.serving.export.chunks import Chunk, as_table, item_columns
from mwuf_dist.serving.finished_run import PHASE_NAMES, load_run
from mwuf_dist.serving.posterior import variances_of
from mwuf_dist.serving.run_files import chain_of, open_prepared, read_run
from mwuf_dist.serving.served_log import NewRows, empty_log, find, of_items, taken, together
from mwuf_dist.serving.served_state import Retired, WarmState, phases_of, unknown_fields
from mwuf_dist.serving.warm.alarms import usual_fractions
from mwuf_dist.serving.warm.change import as_type, change_by
from mwuf_dist.serving.warm.interactions import Columns, log_options, read_files
from mwuf_dist.serving.warm.item_fields import read_fields
from mwuf_dist.serving.warm.job import DAYS, seen_by_run
from mwuf_dist.serving.warm.negatives import add_negatives
from mwuf_dist.serving.warm.retire import Retiring, ids_to_retire, retire, without_the_retired
from mwuf_dist.serving.warm.rows import WarmJob, rows_of_run
from mwuf_dist.serving.warm.side_tables import ITEMS, RETIRE, SideTables, watched
from mwuf_dist.serving.warm.sources import Source, Taken
from mwuf_dist.serving.warm.sources.interface import Position
from mwuf_dist.training.item_rule.rule import check_rule_fits, rule_of

_WAIT_S = 0.2  # Between two looks at a folder in which there was nothing.
_MOST_REFUSED = 1000  # Files of a batch that are refused by name.
_MOST_TRIES = 3  # A file may go away after it was read by itself, and before all are read together.
_SNAPSHOT_ROWS = 1 << 20  # Interactions in deltas after which `warm/` is written anew.


@dataclass
class Batch:
    """Reports one batch, for a line of progress.

    Attributes:
        number: of its delta.
        num_files, num_new, num_changed: files taken, interactions that were new, items that changed.
        seconds: from taking to the delta.
        refused: file -> why nothing of it was taken.
        notes: what else is to be said, alarms too.
    """

    number: int
    num_files: int
    num_new: int
    num_changed: int
    seconds: float
    refused: dict[str, str]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns for a terminal."""
        line = f"delta {self.number}: {self.num_files} files, {self.num_new:,} new interactions, "
        line += f"{self.num_changed:,} items changed, {self.seconds:.2f} s"
        return "\n".join([line, *(f"REFUSED {name}: {why}" for name, why in self.refused.items()), *self.notes])


@dataclass(frozen=True)
class _Made:
    """Holds what is to be said of a delta, see `Batch`, and the fractions of its rows by kind."""

    num_new: int
    num_rows: int
    fractions: dict[str, float]
    notes: tuple[str, ...]


class Follower:
    """The state of an output folder in memory, and the batches that it takes.

    Args:
        output: folder that `begin` has made.
        runtime: of one process.
        columns: of the interactions.
        prepared: see `load_run`.
        beside: tables that are read where they change.
    """

    def __init__(
        self,
        output: Path,
        runtime: Runtime,
        columns: Columns,
        prepared: Path | None,
        beside: SideTables = SideTables(),  # noqa: B008 (it cannot be changed)
    ) -> None:
        self._beside = beside
        config, results, _ = read_run(output)
        self._output, self._config, self._runtime = output, config, runtime
        self._data = open_prepared(output, config, results, prepared)
        self._run_ids, self._user_ids = self._data.raw_ids("item"), self._data.raw_ids("user")
        self.state = state_of(output, self._data, config.embedding.dim)
        self._pending: list[Parts] = []
        self._written = served_state.read_about(output).get("number", 0)  # by the last snapshot
        self._since_snapshot = 0
        self._run = load_run(output, runtime, prepared=self._data.path)
        self._options, self._is_logs = log_options(config, columns), config.data.name == "logs"
        new_items = np.arange(self._data.num_old_items, self._data.num_items)
        self._run_log = seen_by_run(self._data, new_items, self._user_ids)
        self._rows_of_run = rows_of_run(rule_of(config, self._data), self._data, old_items=False)
        self._chain, self._usual = chain_of(output), usual_fractions(self._data)

    def changed_tables(self) -> Position:
        """Returns what the position is to say of tables beside the source that have changed."""
        return self._beside.changed(self.state.position)

    def batch(self, taken_files: Taken, tables: Position | None = None) -> Batch:
        """Takes some files, and the tables that `changed_tables` has named: one delta."""
        clock, refused, tables = time.perf_counter(), {}, tables or {}
        if tables:
            self._fold()
        rows = self._read(taken_files, refused) if taken_files.files else self._no_rows()
        listed, of_items = self._listed(tables, refused)
        parts, made = self._parts(rows, listed, self._leaving(tables, refused))
        window, days, notes = watched(self.state.position, made.fractions, made.num_rows, self.state.days, self._usual)
        hash_after, parts = parts.pop("hash"), parts
        number, position = self.state.number + 1, taken_files.position | tables | window
        header = {"chain": self._chain, "number": number, "before": self.state.hash, "after": hash_after}
        header |= {"position": position, "refused": refused}
        days = (*self.state.days, *days)[-DAYS:]
        header |= {"days": days} if days else {}
        deltas.write_delta(self._output / deltas.FOLDER, header, parts)
        position = moved_on(self.state.position, position)
        self.state = dataclasses.replace(self.state, number=number, hash=hash_after, position=position, days=days)
        self._pending.append(parts)
        if parts["retired"].num_rows:
            self._fold()  # so that their IDs are no items of the run any more
        self._since_snapshot += parts["log"].num_rows
        num_changed, seconds = parts["changed"].num_rows, time.perf_counter() - clock
        said = (*(f"note: {one}" for one in (*rows.notes, *of_items)), *made.notes, *notes)
        return Batch(number, len(taken_files.files), made.num_new, num_changed, seconds, refused, said)

    def _fold(self) -> None:
        """Puts the deltas that are pending into the state."""
        self.state, self._pending = replayed(self.state, self._pending, self._run_ids), []

    def snapshot(self, always: bool = False) -> None:
        """Writes `warm/` anew where enough has come since."""
        if self._written == self.state.number or not (always or self._since_snapshot >= _SNAPSHOT_ROWS):
            return
        self._fold()
        self._since_snapshot = 0
        with appearing(self._output / served_state.FOLDER, "make room") as beside:
            served_state.save_into(self.state, beside)
        self._written = self.state.number

    def _read(self, taken_files: Taken, refused: dict[str, str]) -> NewRows:
        """Returns interactions of files; where one is wrong, of the others."""
        files = taken_files.files
        for tries_left in reversed(range(_MOST_TRIES)):
            try:
                return self._rows(files) if files else self._no_rows()
            except UserError as error:
                if not tries_left:
                    raise
                files = tuple(self._good(files, taken_files, refused, error))
        raise AssertionError("the last try returns or raises")

    def _no_rows(self) -> NewRows:
        return NewRows(self._run_ids[:0], empty_log(self._data.row_columns), 0)

    def _listed(self, tables: Position, refused: dict[str, str]) -> tuple[tuple[pa.Array, pa.Table], list[str]]:
        """Returns raw IDs and fields of items, where their table has changed, and notes."""
        if ITEMS in tables and self._beside.items is not None:
            try:
                ids, fields, notes = read_fields(self._beside.items, self._options, self._data, self._is_logs)
                return (as_type(ids, self._run_ids.type), fields), notes
            except UserError as error:
                refused["--items"] = str(error)
        return (self._run_ids[:0], unknown_fields(self._data, 0)), []

    def _leaving(self, tables: Position, refused: dict[str, str]) -> pa.Array | None:
        """Returns raw IDs of items that leave, where their table has changed: those of items that are there."""
        if RETIRE not in tables or self._beside.retire is None:
            return None
        try:
            listed = ids_to_retire(self._beside.retire, self._options)
        except UserError as error:
            refused["--retire"] = str(error)
            return None
        form = ids_form(self._run_ids)
        known = self._run_ids, self.state.ids
        places = (find_ids(listed, ids, form) for ids in known)
        return pa.concat_arrays([ids.take(pa.array(at[at >= 0])) for ids, at in zip(known, places, strict=True)])

    def _rows(self, files: tuple[Path, ...]) -> NewRows:
        return read_files(files, (), self._options, self._data, self._is_logs)

    def _good(
        self, files: tuple[Path, ...], taken_files: Taken, refused: dict[str, str], error: UserError
    ) -> Iterator[Path]:
        """Yields those of some files, which together are not read for a reason, that are; and parts of the others."""
        first, *others = files
        if others:
            half = len(files) // 2
            parts = (files[:half], files[half:])
        elif divided := taken_files.divide(first):
            parts = tuple((part,) for part in divided)
        else:
            if len(refused) < _MOST_REFUSED:
                refused[first.name] = str(error)
            else:
                refused["and more"] = f"behind the first {_MOST_REFUSED}: they are not named"
            return
        for part in parts:
            try:
                self._rows(part)
                yield from part
            except UserError as why:
                yield from self._good(part, taken_files, refused, why)

    def _parts(
        self, rows: NewRows, listed: tuple[pa.Array, pa.Table], leaving: pa.Array | None
    ) -> tuple[dict[str, Any], _Made]:
        """Returns (The tables of the delta and, as `hash`, that of the state after it; what to say)."""
        living = self.state.run_ids(self._run_ids)
        about = [rows.item_ids, *(ids.cast(rows.item_ids.type) for ids in (listed[0], leaving) if ids is not None)]
        before = self._about(pa.concat_arrays(about), living)
        items = find(rows.item_ids, living)
        run_log = taken(self._run_log, np.isin(self._run_log["item"], items))
        if self._options.negatives_per_positive:
            drawn = self._options.negatives_per_positive, self._options.negatives_seed
            rows = add_negatives(rows, items, self._data, self._user_ids, run_log, *drawn)
        num_rows = rows.num_counted(rows.log)
        rows, listed, num_late = without_the_retired(rows, listed, before)
        change = change_by(before, rows, listed, living, self._data, run_log, self._rows_of_run)
        gone = Retired.none(living.type)
        in_rows = self._is_logs and not self._options.items
        told = change.without_fields(before, self._data, self._beside.items is not None, in_rows, is_day=False)
        if num_late:
            told.append(f"{num_late:,} interactions are of items that had been retired by then, and are left out")
        if leaving is not None:
            newest = int(self.state.log["time"].max(initial=np.iinfo(np.int64).min))
            given = self._options, self._data, living, self._is_logs, newest
            change, gone, said = retire(change, Retiring(leaving), *given)
            told += said
        job = WarmJob(self._config, self._runtime, self._data, change, run_log, self._rows_of_run)
        touched = np.union1d(change.anew, change.going_on)
        after = dataclasses.replace(change.state, rows=job.rows(self._run) if len(touched) else change.state.rows)
        parts: dict[str, Any] = parts_of(after, touched, change.new_log, gone, living)
        parts["changed"] = self._served(job, after, touched, living)
        difference = hashes.hash_of(after, self._run_ids) - hashes.hash_of(before, self._run_ids)
        parts["hash"] = hashes.text_of(hashes.from_text(self.state.hash) + difference)
        return parts, _Made(change.num_new, num_rows, change.fractions, tuple(f"note: {one}" for one in told))

    def _about(self, ids: pa.Array, living: pa.Array) -> WarmState:
        """Returns the part of the state that is about some items."""
        part = restricted(self.state, ids, living)
        own = [{name: _of(table, ids) for name, table in parts.items()} for parts in self._pending]
        own = [parts for parts in own if parts["rows"].num_rows or parts["retired"].num_rows]
        return replayed(part, own, self._run_ids)

    @torch.no_grad()
    def _served(self, job: WarmJob, state: WarmState, touched: np.ndarray, living: pa.Array) -> pa.Table:
        """Returns the changed items as an export has them."""
        uncertainty = self._run.method.has_posterior
        columns = item_columns(self._run, True, uncertainty)
        if not len(touched):
            return as_table([], self._run_ids.type, columns)
        log = together([job.run_log, state.log])
        is_event = self._data.is_event(log["label"], self._config.data.events)
        users = ItemUsers.of_rows(log["user"][is_event], log["item"][is_event], state.num_items)
        items = torch.from_numpy(touched).to(self._runtime.device)
        fields = job.frozen.item_fields(items).float()
        means = mean_users(users, items, self._run.model.user_tables, self._run.mean_user, self._runtime)
        rows = torch.from_numpy(state.rows.served[np.searchsorted(state.rows.item, touched)]).to(items.device)
        counts = np.bincount(log["item"][self._data.is_counted(log["label"])], minlength=state.num_items)[touched]
        own = np.full(len(touched), PHASES.index(PHASES[-1]), dtype=np.uint8)
        phases = phases_of(counts, self._config.data.warm_rows)
        found = {
            "embedding": self._run.method.warm_rows(rows, fields, means).cpu().numpy(),
            "phase": np.where(touched < state.num_run_items, own, phases).astype(np.uint8),
            "interactions": counts.astype(np.int64),
            "item_context": fields.cpu().numpy(),
        }
        if uncertainty:
            log, num = of_items(log, touched)  # of others only known rows have come
            rule = rule_of(self._config, self._data)
            found["variance"] = variances_of(job.frozen, rule, touched, rows.cpu().numpy(), num, log)
        assert max(found["phase"]) < len(PHASE_NAMES)
        ids = pa.concat_arrays([living, state.ids]).take(pa.array(touched))
        return as_table([Chunk(ids, found)], ids.type, columns)


def begin(folder: Path, output: Path, prepared: Path | None) -> None:
    """Makes the folder that a follower writes: a run with a state and room for deltas. One that is there is checked.

    Raises:
        UserError: it is another run's, or no follower's.
    """
    config, results, checkpoint = read_run(folder)
    check_rule_fits(config)
    if (output / "config.toml").exists():
        if chain_of(output) != chain_of(folder) or not (output / deltas.FOLDER).is_dir():
            raise UserError(f"{output}: was not made by following files from {folder}: name another --output")
        remove_left_overs(output, output / deltas.FOLDER)
        return
    data = open_prepared(folder, config, results, prepared)
    state = state_of(folder, data, config.embedding.dim)
    with appearing(output, "name another --output") as beside:
        served_state.write_run(state, folder, checkpoint, beside)
        make_folder(beside / deltas.FOLDER)


def follow(
    folder: Path,
    source: Source,
    output: Path,
    runtime: Runtime,
    columns: Columns | None = None,
    prepared: Path | None = None,
    until_idle: bool = False,
    told: Callable[[Batch], None] = lambda _: None,
    beside: SideTables = SideTables(),  # noqa: B008 (it cannot be changed)
) -> int:
    """Takes what the source gives until SIGTERM; returns the number of the last delta.

    Args:
        folder: of a finished run, or of a job.
        source: of interactions.
        output: folder to write; the same command goes on there.
        runtime: of one process.
        columns: names of the columns of the interactions.
        prepared: see `load_run`.
        until_idle: end where the source has nothing more.
        told: called after each delta.
        beside: tables that are read where they change.

    Raises:
        UserError: `output` is something else's, or there are several ranks.
    """
    if runtime.world_size > 1:
        raise UserError("--follow is one process: start it without torchrun")
    output = Path(os.path.realpath(output))
    if output == Path(os.path.realpath(folder)):
        raise UserError(f"{output}: is the run itself, which stays as it is: name another --output")
    with locked(output, "warm --follow"), sigterm_asks(), held_back():
        begin(folder, output, prepared)
        follower = Follower(output, runtime, columns or Columns(), prepared, beside)
        while not asked_to_stop():
            found, tables = source.take(follower.state.position), follower.changed_tables()
            if found is not None or tables:
                told(follower.batch(found or Taken((), {}), tables))
                follower.snapshot()
            elif until_idle:
                break
            else:
                time.sleep(_WAIT_S)
        follower.snapshot(always=True)
        return follower.state.number


def _of(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["item_id"], value_set=ids))
