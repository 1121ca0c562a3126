"""`mwuf init --check CONFIG LOGS`: what is different in new files from the logs that a config was written for.

The new files go through the gate by the form of the config's own logs, as `warm` would read them. What cannot be used
as it is, or would be read as something else, is a fault; the rest is told.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import absent_columns, encode, gate, ids, log_files, log_tables, row_values
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.readers.ids import IdForm, codes
from mwuf_dist.data.schema import SIDES
from mwuf_dist.data.sources import logs

_FEWEST_KNOWN = 0.01  # of the IDs of a side: with fewer, the IDs are probably others
_VALUES_NAMED = 5


@dataclass
class Checked:
    """Lists what is different in new files.

    Attributes:
        faults: what has to be put right before the files can be used, a sentence each.
        told: everything else that a person may want to know.
    """

    faults: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Returns a line for each sentence, the faults first."""
        lines = [f"FAULT. {one}" for one in self.faults] + self.told
        end = "the files cannot be used as they are" if self.faults else "the files can be used as they are"
        return "\n".join([*lines, end])


def check_logs(options: LogsConfig, new: Path) -> Checked:
    """Compares new files with the interactions that section `data.logs` names.

    Args:
        options: the section.
        new: file or folder.

    Raises:
        UserError: the files of the section are wrong themselves, or there are no new ones.
    """
    logs.check_options(options)
    found, there = Checked(), log_files.find(str(new), "LOGS")
    fresh = {path.resolve() for path in there.files}
    own = [path for path in logs.interaction_files(options) if path.resolve() not in fresh]
    if not own:
        raise UserError(f"{new}: holds all of data.logs.interactions = {options.interactions!r}: name the new files")
    found.told += there.notes()
    fields = logs.columns_of_fields(options)
    before = gate.read_rows(own, options, more=fields)
    if not _columns_fit(found, own[0], there.files, options, fields):
        return found
    in_all = set.intersection(*map(set, (log_tables.column_names(path, options) for path in _with_rows(there.files))))
    try:
        table = gate.read_table(there.files, options, more=[one for one in fields if one in in_all], skip_unread=True)
        as_written = gate.rows_of(table, replace(options, drop_incomplete=True), whole=False)
        now = gate.rows_of(table, options, before.form, whole=False)
    except UserError as error:
        found.faults.append(str(error))
        return found
    found.told += now.notes()
    for name, kind in (table.unread or {}).items():
        _wrong(found, options, name).append(f"column {name!r} has type {kind}, which is not read")
    _compare_ids(found, before, now, as_written)
    _compare_labels(found, before, now, options)
    _compare_times(found, before, now, options)
    _compare_fields(found, before, now, options)
    return found


def _columns_fit(found: Checked, own: Path, files: tuple[Path, ...], options: LogsConfig, fields: list[str]) -> bool:
    """Says whether each file has the columns that are used; those of users' and items' fields only training needs."""
    known = log_tables.column_names(own, options)
    needed = {*log_tables.needed_columns(options), *row_values.columns(options)}
    lacking: dict[str, list[str]] = {}
    more: dict[str, list[str]] = {}
    for path in _with_rows(files):
        there = log_tables.column_names(path, options)
        for name in known:
            if name not in there:
                lacking.setdefault(name, []).append(path.name)
        for name in there:
            if name not in known:
                more.setdefault(name, []).append(path.name)
    found.faults += [_no_column(names, where, files, options) for where, names in _by_files(lacking, needed).items()]
    for name, where in lacking.items():
        said = f"column {name!r} is not in {_some(where)}"
        if name in needed:  # a fault already, a field of the rows themselves too
            continue
        if name in fields:
            found.told.append(f"{said}: `mwuf warm` does without, a run on these files does not")
        else:
            found.told.append(f"{said}; it is not used")
    found.told += [f"column {name!r} is new, in {_some(where)}; it is not used" for name, where in more.items()]
    return not lacking.keys() & needed


def _by_files(lacking: dict[str, list[str]], needed: Collection[str]) -> dict[tuple[str, ...], list[str]]:
    """Returns columns that are needed by the files that lack them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, where in lacking.items():
        if name in needed:
            found.setdefault(tuple(where), []).append(name)
    return found


def _no_column(names: Sequence[str], where: Sequence[str], files: tuple[Path, ...], options: LogsConfig) -> str:
    """Says that files lack columns, and why; how a file is written belongs to the run, and stays as it was."""
    there = log_tables.column_names(next(path for path in files if path.name == where[0]), options)
    near = [one for one in (absent_columns.otherwise_written(there, name) for name in names) if one]
    why = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    if absent_columns.looks_like_data(there):
        why = "; its first line looks like data: write the line of names above it"
    elif sign := absent_columns.sign_between(there):
        why = f"; {sign!r} seems to stand between its columns: write it as the run's logs are written"
    listed = ", ".join(map(repr, names))
    return (
        f"column{'s' if len(names) > 1 else ''} {listed} {'are' if len(names) > 1 else 'is'} not in {_some(where)}{why}"
    )


def _with_rows(files: tuple[Path, ...]) -> list[Path]:
    return [path for path in files if log_files.format_of(path).kind != "empty"] or [files[0]]


def _compare_ids(found: Checked, before: Rows, now: Rows, as_written: Rows) -> None:
    for side in SIDES:
        old, new = (getattr(rows, f"{side}_ids") for rows in (before, now))
        old_form, own_form = (getattr(rows.form, side) for rows in (before, as_written))
        known = ids.find(new, old, old_form) >= 0
        of_rows = known[getattr(now, side)[now.kept]]
        said = (
            f"{side}s: {int(known.sum()):,} of {len(new):,} IDs are known ({known.mean():.1%}), which have "
            f"{of_rows.mean():.1%} of the rows"
        )
        odd = "" if old_form == own_form else f"; IDs were {_form_words(old_form)} and are {_form_words(own_form)}"
        example = f" (like {old[0].as_py()!r} before, {new[0].as_py()!r} now)" if odd else ""
        is_fault = known.mean() < _FEWEST_KNOWN
        (found.faults if is_fault else found.told).append(said + odd + example)


def _form_words(form: IdForm) -> str:
    return {"integer": "whole numbers", "padded": f"numbers of {form.width} digits with zeros before them"}.get(
        form.kind, "text"
    )


def _compare_labels(found: Checked, before: Rows, now: Rows, options: LogsConfig) -> None:
    if not (name := options.label or options.label_from):
        return
    shares = [float((rows.label[rows.kept] == 1).mean()) for rows in (before, now)]
    found.told.append(f"label: {shares[0]:.1%} of the rows were positive, {shares[1]:.1%} are")
    if options.label_at_least != LogsConfig.label_at_least and not options.label_is:
        return  # numbers: others are no news
    if strangers := _new_values(before, now, name):
        found.told.append(f"label: {name} has values that were not there before: {strangers}")
    missing = [value for value in options.label_is if value not in _texts(now, name)]
    if missing:
        found.told.append(f"label: no row has {name} = {', '.join(map(repr, missing))}, which is positive")


def _compare_times(found: Checked, before: Rows, now: Rows, options: LogsConfig) -> None:
    if not options.time:
        found.told.append("time: there is no column: the order of the files counts")
        return
    old, new = (rows.time[rows.kept] for rows in (before, now))
    said = f"time: before {_moment(old.min(), before)} to {_moment(old.max(), before)}"
    said += f", now {_moment(new.min(), now)} to {_moment(new.max(), now)}"
    early = float((new <= old.max()).mean())
    found.told.append(said + (f"; {early:.1%} of the rows are not later than all before" if early else ""))


def _moment(value: int, rows: Rows) -> str:
    form = rows.form.time
    if form.kind == "date" or form.is_recent:
        moment = datetime.datetime.fromtimestamp(int(value) // 1_000_000, datetime.UTC)
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    return f"{int(value) / form.scale:g}"


def _compare_fields(found: Checked, before: Rows, now: Rows, options: LogsConfig) -> None:
    for one in options.fields:
        name = one.column or one.name
        if name not in now.table.columns.column_names:
            continue  # of a side table
        column = now.table.columns[name]
        if pa.types.is_nested(column.type) or pa.types.is_nested(before.table.columns[name].type):
            if pa.types.is_nested(column.type) != pa.types.is_nested(before.table.columns[name].type):
                _wrong(found, options, name).append(
                    f"field {one.name}: lists and single values cannot be mixed in column {name!r}"
                )
            continue
        values = codes(column)[1]
        if one.kind == "numeric":
            numbers = encode.to_float(values.cast(pa.string()))
            if np.isnan(numbers).any():
                wrong = values[int(np.argmax(np.isnan(numbers)))].as_py()
                _wrong(found, options, name).append(f"field {one.name}: {wrong!r} in column {name!r} is no number")
        elif strangers := _new_values(before, now, name):
            found.told.append(f"field {one.name}: values that were not there before: {strangers}")
        gaps = [float(rows.table.columns[name].null_count) / rows.table.num_rows for rows in (before, now)]
        if abs(gaps[0] - gaps[1]) > 0.1:
            found.told.append(f"field {one.name}: {gaps[0]:.0%} of the rows had no value, {gaps[1]:.0%} have none")


def _wrong(found: Checked, options: LogsConfig, name: str) -> list[str]:
    """Returns what a wrong column of a field goes to: `mwuf warm` reads those of rows, and of the others none here."""
    return found.faults if name in row_values.columns(options) else found.told


def _texts(rows: Rows, name: str) -> list[str]:
    return codes(rows.table.columns[name])[1].cast(pa.string()).to_pylist()


def _new_values(before: Rows, now: Rows, name: str) -> str:
    """Returns values of a column that have come up, the first few by name; empty where there are none."""
    old, new = (ids.normal(codes(rows.table.columns[name])[1], IdForm()) for rows in (before, now))
    strangers = new.filter(pc.invert(pc.is_in(new, value_set=old)))
    if not len(strangers):
        return ""
    listed = ", ".join(map(repr, strangers[:_VALUES_NAMED].to_pylist()))
    return f"{len(strangers):,} of {len(new):,}, like {listed}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
