"""`mwuf warm`: the daily job. New interactions come in, rows of new items move by the serving rule, nothing else does.

A job reads a run's folder and writes another one: the same model (files are linked, not copied), a state that has grown
(`served_state.py`), an export of the items that changed, and a numbered delta (`deltas/`) for other copies. The folder
appears whole or not at all, and the old one is only read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import WARM_SETS, Config, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.shards import Prepared
from mwuf_dist.files import appearing
from mwuf_dist.locks import locked
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving import served_state
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas import hashes
from mwuf_dist.serving.deltas.pending import state_of
from mwuf_dist.serving.deltas.replay import Parts, parts_of, user_parts_of
from mwuf_dist.serving.export.chunks import has_user_contexts, served_table, served_users_table
from mwuf_dist.serving.export.export import write_export
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.run_files import chain_of, open_prepared, read_run
from mwuf_dist.serving.served_log import LOG_COLUMNS, Log, NewRows, empty_log, find, taken, together
from mwuf_dist.serving.served_state import Retired, WarmState, unknown_fields
from mwuf_dist.serving.warm.alarms import alarms, usual_fractions
from mwuf_dist.serving.warm.change import Change, change_by
from mwuf_dist.serving.warm.interactions import Columns, log_options, read_interactions
from mwuf_dist.serving.warm.item_fields import read_fields
from mwuf_dist.serving.warm.negatives import add_negatives
from mwuf_dist.serving.warm.retire import Retiring, retire, without_the_retired
from mwuf_dist.serving.warm.rows import WarmJob, rows_of_run
from mwuf_dist.serving.warm.users import UserChange, UserJob, users_by
from mwuf_dist.serving.writers import TableFormat
from mwuf_dist.training.item_rule.rule import check_rule_fits, rule_of

# Jobs whose rows are compared with those of the next.
DAYS = 14
# Pairs of a user and an old item that are scored before and after.
_NUM_PROOFS = 1 << 14


@dataclass(frozen=True)
class WarmReport:
    """Reports what a job has done.

    Attributes:
        folder: the output.
        change: the numbers of new and known interactions and of items.
        num_changed: items whose row or users changed.
        num_unseen_users: users of the input whom the run has never seen.
        num_proofs: scores of old items that are the same before and after, to the bit.
        digest: of the state; equal states have equal digests.
        num_drawn: negatives drawn for input of positives only, known ones too; they move rows, and are counted nowhere
            else.
        num_read: rows of the input.
        notes: what of the input was not used, and what may surprise, a sentence each.
        old_items: old items have moved too.
        num_retired: items that left.
        already_done: the output was there, made from the same run and the same input.
        users: users never seen who have a new click; None: they were not asked to have rows.
    """

    folder: Path
    change: Change
    num_changed: int
    num_unseen_users: int
    num_proofs: int
    digest: str
    num_drawn: int = 0
    num_read: int = 0
    notes: tuple[str, ...] = ()
    old_items: bool = False
    num_retired: int = 0
    already_done: bool = False
    users: UserChange | None = None

    def text(self) -> str:
        """Returns for a terminal."""
        change, output = self.change, self.folder
        if self.already_done:
            return f"{output}: made from this run and these rows already; nothing to do (state {self.digest})"
        lines = [
            f"{change.num_new:,} new interactions, {change.num_known:,} known already, {change.num_of_old_items:,} of "
            f"old items ({'moved too' if self.old_items else 'frozen'}); {self.num_unseen_users:,} users never seen "
            f"({'the mean user' if self.users is None else 'the mean user to items'})",
            f"{self.num_changed:,} items changed, {change.num_new_items:,} of them never seen before",
            f"proof: {self.num_proofs:,} of {self.num_proofs:,} scores of old items"
            f"{' by the rows of the run' if self.old_items else ''} are the same to the bit",
            f"run: {output}   state: {self.digest}   changed rows: {output / 'export'}",
        ]
        if self.num_drawn:
            lines.insert(
                1, f"the rows are positives only: {self.num_drawn:,} of label 0 were drawn and are not counted"
            )
        if self.users is not None:
            lines.insert(2, self.users.text())
        lines.append(f"{self.num_read:,} rows read")
        lines += [f"note: {note}" for note in self.notes]
        if not self.num_changed and not self.num_retired and (self.users is None or not len(self.users.touched)):
            lines.insert(0, "nothing new: all of it was known, and nothing has changed")
        return "\n".join(lines)


def warm(
    folder: Path,
    interactions: Path | None,
    output: Path,
    runtime: Runtime,
    items: Path | None = None,
    columns: Columns | None = None,
    kind: TableFormat = "parquet",
    context: bool = False,
    prepared: Path | None = None,
    old_items: bool = False,
    retiring: Retiring = Retiring(),  # noqa: B008 (it cannot be changed)
    users: bool = False,
    user_fields: Path | None = None,
) -> WarmReport:
    """Runs the job. Every rank calls it with the same arguments.

    Args:
        folder: of a finished run, or the output of an earlier job.
        interactions: Parquet or CSV, a file or a folder; None: nothing comes, and items are listed or retired.
        output: the folder to write; must not exist, unless this very job has made it.
        runtime: ranks and device.
        items: table with the fields of items that the run has never seen; those without interactions are added too.
        columns: names of the columns of the interactions.
        kind: format of the export.
        context: in the export, what the model reads of the items beside their embeddings too.
        prepared: see `load_run`.
        old_items: rows of old items move too, by the same rule, from where the run left them.
        retiring: which items leave, after the interactions have come.
        users: users whom the run has never seen get rows of their own, see `users.py`.
        user_fields: with `users`: table with the fields of such users; those without interactions are added too.

    Raises:
        UserError: the input is wrong, or `output` holds something else.
    """
    config, results, checkpoint = read_run(folder)
    check_rule_fits(config)
    if output.resolve() == folder.resolve():
        raise UserError(f"{output}: is the run itself, which stays as it is: name another --output")
    data = open_prepared(folder, config, results, prepared)
    every_id = data.raw_ids("item")
    before = state_of(folder, data, config.embedding.dim)
    tables = items, user_fields
    came = _what_comes(before, config, data, interactions, tables, columns or Columns(), old_items, retiring, users)
    made_from = _made_from(folder, checkpoint.name, came)
    change = replace(came.change, state=replace(came.change.state, made_from=made_from))
    output = Path(os.path.realpath(output))
    beside = output.with_name(f".{output.name}.partial")
    with contextlib.ExitStack() as stack:
        runtime.on_main(lambda: stack.enter_context(locked(output, "warm")))
        if output.exists():
            return _already_done(output, change, came)
        runtime.on_main(lambda: stack.enter_context(appearing(output, "name another --output")))
        run = load_run(folder, runtime, several_ranks=True, prepared=data.path)
        scores = _scores_of_old_items(run)
        made = _with_rows(came, change, run, config, data, log_options(config, columns or Columns()))
        state = hashes.with_hash(made, every_id)
        runtime.on_main(lambda: served_state.write_run(state, folder, checkpoint, beside))
        del run
        after = load_run(beside, runtime, several_ranks=True, prepared=data.path)
        same = bool(torch.equal(scores, _scores_of_old_items(after)))
        assert same, "scores of old items have changed: nothing is written"
        changed = np.union1d(change.anew, change.going_on)
        who = _who(came.users, data) if has_user_contexts(after) else None
        write_export(after, changed, kind, beside / "export", runtime, context, who if context else None)
        parts = _parts(after, state, changed, came, every_id, who)
        runtime.on_main(lambda: _write_delta(parts, before, state, folder, beside))
        del after
        runtime.on_main(stack.close)
    digest = served_state.digest_of(output)
    numbers = came.num_drawn, came.rows.num_read, tuple(came.notes), old_items, len(came.gone.ids)
    counts = len(changed), came.rows.num_unseen_users, len(scores)
    return WarmReport(output, change, *counts, digest, *numbers, users=came.users)


def _with_rows(
    came: _Comes, change: Change, run: FinishedRun, config: Config, data: Prepared, options: LogsConfig
) -> WarmState:
    """Makes the rows of the items that change, and of users where they are to have some. A collective."""
    job = WarmJob(config, run.model.runtime, data, change, came.run_log, came.run_rows)
    state = replace(change.state, rows=job.rows(run), hash="")
    if came.users is None:
        return state
    of_users = UserJob(config, run.model.runtime, data, options, run, job.frozen)
    return replace(state, users=of_users.users(came.users))


def _parts(
    after: FinishedRun, state: WarmState, changed: np.ndarray, came: _Comes, every_id: pa.Array, who: np.ndarray | None
) -> Parts:
    """Makes the parts of the delta: what leads to the state, and what servers read of it. A collective."""
    parts = parts_of(state, changed, came.change.new_log, came.gone, every_id)
    parts |= {"changed": served_table(after, changed)}
    if came.users is not None and state.users is not None and len(came.users.touched):
        parts |= user_parts_of(state.users, came.users.touched, came.users.new_log, every_id)
        parts |= {} if who is None else {"changed_users": served_users_table(after, who)}
    return parts


@dataclass(frozen=True)
class _Comes:
    """Holds what a job takes in: new rows, what the run knows of their items, the change that they make, who leaves."""

    rows: NewRows
    run_log: Log
    num_drawn: int
    run_rows: np.ndarray
    change: Change
    gone: Retired
    notes: list[str]
    users: UserChange | None


def _what_comes(
    before: WarmState,
    config: Config,
    data: Prepared,
    interactions: Path | None,
    tables: tuple[Path | None, Path | None],
    columns: Columns,
    old_items: bool,
    retiring: Retiring,
    with_users: bool,
) -> _Comes:
    """Reads the input, and adds it to the state of before; arguments as for `warm`, `tables` of items and of users."""
    items, users_table = tables
    every_id, is_logs, options = data.raw_ids("item"), config.data.name == "logs", log_options(config, columns)
    run_ids = before.run_ids(every_id)
    rows, run_log, num_drawn = _read_rows(
        interactions, options, data, run_ids, data.raw_ids("user"), is_logs, old_items, tables
    )
    persons, of_persons = None, []
    if users_table is not None:
        *persons, of_persons = read_fields(users_table, options, data, is_logs, "user")
    users = users_by(before, rows, every_id, data, None if persons is None else tuple(persons)) if with_users else None
    nothing = rows.item_ids[:0], unknown_fields(data, 0)
    listed, of_items = nothing, []
    if items is not None:
        *listed, of_items = read_fields(items, options, data, is_logs)
    rows, listed, num_late = without_the_retired(rows, tuple(listed), before)
    run_rows = rows_of_run(rule_of(config, data), data, old_items)
    change = change_by(before, rows, listed, run_ids, data, run_log, run_rows, old_items)
    usual = usual_fractions(data)
    notes = [*rows.notes, *of_items, *of_persons, *alarms(change.fractions, before.days, usual, rows.num_rows)]
    notes += change.without_fields(before, data, items is not None, is_logs and not options.items)
    if num_late:
        notes.append(f"{num_late:,} interactions are of items that had been retired by then, and are left out")
    gone = Retired.none(run_ids.type)
    days = (*before.days, change.fractions)[-DAYS:]
    if retiring:
        change, gone, said = retire(change, retiring, options, data, run_ids, is_logs)
        notes += said
    change = replace(change, state=replace(change.state, days=days, number=before.number + 1))
    return _Comes(rows, run_log, num_drawn, run_rows, change, gone, notes, users)


def _write_delta(parts: Parts, before: WarmState, state: WarmState, folder: Path, beside: Path) -> None:
    header = {"chain": chain_of(folder), "number": state.number, "before": before.hash, "after": state.hash}
    (beside / deltas.FOLDER).mkdir()
    deltas.write_delta(beside / deltas.FOLDER, header, parts)


def _read_rows(
    path: Path | None,
    options: LogsConfig,
    prepared: Prepared,
    run_ids: pa.Array,
    user_ids: pa.Array,
    is_logs: bool,
    old_items: bool,
    beside: tuple[Path | None, ...],
) -> tuple[NewRows, Log, int]:
    """Gives (The new rows, with drawn negatives for positives only.

    What the run has seen of their items; rows drawn).
    """
    if path is None:
        nothing = empty_log(prepared.row_columns)
        return NewRows(run_ids[:0], nothing, 0), nothing, 0
    rows = read_interactions(path, options, prepared, is_logs, beside)
    items = find(rows.item_ids, run_ids)
    run_log, num_positives = seen_by_run(prepared, items, user_ids, old_items), rows.num_rows
    if options.negatives_per_positive:
        drawn = options.negatives_per_positive, options.negatives_seed
        rows = add_negatives(rows, items, prepared, user_ids, run_log, *drawn, old_items)
    return rows, run_log, rows.num_rows - num_positives


def seen_by_run(prepared: Prepared, items: np.ndarray, user_ids: pa.Array, old_items: bool = False) -> Log:
    """Reads what the run has seen of its own new items (and old ones) among these, in the order of its sets."""
    wanted = np.zeros(prepared.num_items + 1, dtype=bool)
    wanted[items] = True
    wanted[-1] = False
    has_old = old_items and wanted[: prepared.num_old_items].any()
    wanted[: prepared.num_old_items] &= has_old
    parts = []
    for split in (*(("pretrain",) if has_old else ()), *WARM_SETS) if wanted.any() else ():
        for columns in prepared.in_parts(split, ("user", "item", "time", "label", *prepared.row_columns)):
            ours = {name: values[wanted[columns["item"]]] for name, values in columns.items()}
            keys = id_keys(user_ids.take(pa.array(ours["user"])))
            parts.append({name: (ours | {"user_key": keys})[name] for name in (*LOG_COLUMNS, *prepared.row_columns)})
    log = together([empty_log(prepared.row_columns), *parts])
    return taken(log, np.argsort(log["item"], kind="stable"))


def _who(users: UserChange | None, data: Prepared) -> np.ndarray | None:
    """Returns indices of the users whose rows have changed; None for none."""
    return None if users is None or not len(users.touched) else data.num_users + users.touched


def _made_from(folder: Path, checkpoint: str, came: _Comes) -> dict[str, str]:
    """Digests what tells one job from another: the run, the state before, and what is known after it."""
    known, state = hashlib.sha256(), came.change.state
    for values in (*state.log.values(), state.listed):
        known.update(np.ascontiguousarray(values).data)
    known.update(repr((state.ids.to_pylist(), state.fields.to_pydict())).encode())
    if len(state.retired.ids):
        known.update(repr((state.retired.ids.to_pylist(), state.retired.time.tolist())).encode())
    users = state.users if came.users is None else came.users.users
    if users is not None and len(users.ids):
        known.update(repr(users.ids.to_pylist()).encode())
        for values in users.log.values():
            known.update(np.ascontiguousarray(values).data)
        if users.fields is not None:
            known.update(repr((users.fields.to_pydict(), users.listed.tolist())).encode())
    run, before = f"{chain_of(folder)} {checkpoint}", served_state.digest_of(folder)
    return {"run": run, "state": before, "known": known.hexdigest()[:12]}


def _already_done(output: Path, change: Change, came: _Comes) -> WarmReport:
    """Returns the report of a job whose output is there already.

    Raises:
        UserError: it is the output of something else.
    """
    about = served_state.read_about(output) if output.is_dir() else {}
    if about.get("made_from") != change.state.made_from:
        raise UserError(f"{output}: exists, and was not made from this run and these rows: name another --output")
    unseen, digest = came.rows.num_unseen_users, served_state.digest_of(output)
    return WarmReport(output, change, 0, unseen, 0, digest, already_done=True)


@torch.no_grad()
def _scores_of_old_items(run: FinishedRun) -> torch.Tensor:
    """Returns logits of random users and old items, on the plain path of the model: [_NUM_PROOFS]."""
    generator = torch.Generator().manual_seed(0)
    device = run.model.runtime.device
    users = torch.randint(run.prepared.num_stored_users, (_NUM_PROOFS,), generator=generator).to(device)
    items = torch.randint(run.num_old_items, (_NUM_PROOFS,), generator=generator).to(device)
    return run.model.backbone(run.model.old_ids.rows(items), run.context(users, items))
