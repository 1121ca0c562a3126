"""Looks at someone's logs and proposes section `data.logs`: which column is what, by its name and by its content.

Nothing is guessed in silence: each choice has a note that says what spoke for it and against it, and what could be
meant in several ways is an error that names the option which decides.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, TableForm
from mwuf_dist.data.init_config import fields, names, vocabulary
from mwuf_dist.data.init_config.label_guess import guess_label
from mwuf_dist.data.init_config.time_guess import propose_time
from mwuf_dist.data.init_config.written import how_written, refuse_data_for_names
from mwuf_dist.data.readers import csv_text, gate, log_files, log_tables, times
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.schema import SIDES, Side

CONSTANT_SHARE = 0.99  # So many of the users (or items) have one value of the column: it is theirs.
_SHOWN_BEFORE_S = 3600
_ROWS_LOOKED_AT = 300_000
_MOST_GAPS = 0.2  # So many rows without an ID are worth a question.
_ONE_USER_SHARE = 0.2  # A user with so many of the rows is probably "nobody".


@dataclass(frozen=True)
class Asked:
    """Holds what the person says; empty where it is to be found out.

    Attributes:
        user, item, time, label: columns.
        label_is, label_at_least: the label's rule.
        missing: what stands for no value, beside the usual words.
        header, delimiter, quote, encoding, time_format: how the files are written.
        users_header, users_delimiter, users_quote, users_encoding: how the table of users is written.
        items_header, items_delimiter, items_quote, items_encoding: how that of items is.
        constant_share: so many of the users (or items) must have one value of a column for it to be theirs.
        progress: show a bar while many files are read.
    """

    user: str = ""
    item: str = ""
    time: str = ""
    label: str = ""
    label_is: tuple[str, ...] = ()
    label_at_least: float | None = None
    missing: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    delimiter: str = ""
    quote: str | None = None
    encoding: str = ""
    time_format: str = ""
    users_header: tuple[str, ...] = ()
    users_delimiter: str = ""
    users_quote: str | None = None
    users_encoding: str = ""
    items_header: tuple[str, ...] = ()
    items_delimiter: str = ""
    items_quote: str | None = None
    items_encoding: str = ""
    constant_share: float = CONSTANT_SHARE
    progress: bool = False


@dataclass
class Proposal:
    """Holds what was found.

    Attributes:
        options: section `data.logs`.
        notes: per key or field name, what a person should know of the choice.
        left_out: column -> why it is no field.
        remarks: which files were not used, and what is odd; what of their rows was not, `logs.join` says.
        rows: the rows by these options.
        lacking: columns of the first file that another does not have, and which one.
        added: columns that the first file does not have, and which file has.
    """

    options: LogsConfig
    notes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    rows: Rows | None = None
    lacking: dict[str, Path] = field(default_factory=dict)
    added: dict[str, Path] = field(default_factory=dict)

    def refuse_lacking(self, log: LogTable, role: str, taken: str, score: Callable[[str], int]) -> None:
        """Refuses to go on without a column of a role that only some files have, for arguments see `names`.

        One that later files add is told only, where what is taken stands in every row.

        Raises:
            UserError: it names the file, and the options.
        """
        names.refuse_lacking(self.lacking, role, taken, score)
        if not taken or log.columns[taken].null_count:
            names.refuse_lacking(dict.fromkeys(self.added, log.files[0]), role, taken, score)
        for name, path in self.added.items():
            if taken and score(name) > score(taken):
                self.remarks.append(
                    f"{name} looks like the {role}, too, but stands in {path} and not in {log.files[0]}: {taken} is "
                    "taken, which all files have"
                )


def propose(interactions: str, users: str = "", items: str = "", asked: Asked | None = None) -> Proposal:
    """Proposes a section for logs.

    Args:
        interactions: file or folder.
        users: side table, or empty.
        items: the same for items.
        asked: what the person has said.

    Raises:
        UserError: the files cannot be read, or something could be meant in several ways; the message names the option.
    """
    asked = asked or Asked()
    options = LogsConfig(interactions=interactions, users=users, items=items)
    options = dataclasses.replace(options, missing=tuple(dict.fromkeys((*options.missing, *asked.missing))))
    there = log_files.find(interactions, "LOGS")
    beside = {path for key in (users, items) if key for path in log_files.find_files(key, "--users or --items")}
    files = tuple(path for path in there.files if path not in beside)
    if not files:
        raise UserError(f"{interactions}: holds the files of --users and --items alone; name those of the interactions")
    found = Proposal(how_written(files[0], options, asked.header, asked.delimiter, asked.quote, asked.encoding))
    found.remarks += there.notes()
    columns = log_tables.column_names(files[0], found.options)
    refuse_data_for_names(files[0], columns, asked.header, "--header user_id,item_id,... (data.logs.header)")
    found.options = dataclasses.replace(found.options, constant_share=asked.constant_share)
    for side in SIDES:
        if getattr(found.options, f"{side}s"):
            found.options = _with_form_of_table(found.options, side, asked)
    log = _read(found, files, columns, asked)
    _propose_ids(found, log, asked)
    propose_time(found, log, asked)
    shares = fields.constant_shares(log, found.options)
    several = {name: share for name, share in shares.items() if not fields.has_one_value(log.columns[name])}
    of_items = [name for name, share in several.items() if share["item"] >= asked.constant_share]
    of_users = [name for name, share in several.items() if share["user"] >= asked.constant_share]
    said = (asked.label, asked.label_is, asked.label_at_least)
    label = guess_label(log, found.options, *said, of_items=of_items, of_users=of_users)
    found.options, found.notes[label.key] = label.options, label.note
    if not asked.label:
        taken = label.options.label or label.options.label_from
        if not taken:
            found.added = _that_say_more(found, log, label.options)
        found.refuse_lacking(log, "label", taken, _label_score)
        names.refuse_unread(log.unread or {}, log.files[0], "label", taken, _label_score)
        gaps = log.columns[taken].null_count / log.num_rows if taken else 0.0
        if gaps > _MOST_GAPS and (label.options.label or label.options.label_is) and not asked.missing:
            raise UserError(
                f"{log.files[0]}: column {taken!r} looks like the label, and {gaps:.0%} of the rows have none: if that "
                f"means 0, write 0 (or a word) there; --label {taken} leaves these rows out"
            )
    _propose_incomplete(found, log)
    fields.propose_fields(found, log, shares, asked.constant_share)
    found.left_out |= {name: f"its type is {kind}, which is not read" for name, kind in (log.unread or {}).items()}
    found.rows = gate.rows_of(log, found.options)
    for side in SIDES:
        num = len(found.rows.user_ids if side == "user" else found.rows.item_ids)
        found.notes[side] = f"{num:,} {side}s, {found.notes[side]}"
    _remark(found, found.rows)
    return found


def _with_form_of_table(options: LogsConfig, side: Side, asked: Asked) -> LogsConfig:
    """Returns the options with how the side table is written, where otherwise than the interactions."""
    files = log_files.find_files(getattr(options, f"{side}s"), f"--{side}s")
    said = [getattr(asked, f"{side}s_{name}") for name in ("header", "delimiter", "quote", "encoding")]
    found = how_written(files[0], options, *said, prefix=f"{side}s-")
    hint = f"--{side}s-header {getattr(options, side) or f'{side}_id'},... (data.logs.{side}s_form.header)"
    refuse_data_for_names(files[0], log_tables.column_names(files[0], found), found.header, hint)
    names = ("delimiter", "quote", "encoding")
    other = {name: getattr(found, name) for name in names if getattr(found, name) != getattr(options, name)}
    if "delimiter" in other:  # an empty one is the usual one, which need not be that of the interactions
        other["delimiter"] = csv_text.delimiter_of(files[0], found)
    if "quote" in other:
        other["quote"] = other["quote"] or "none"
    if log_files.is_parquet(files[0]):
        return options
    return dataclasses.replace(options, **{f"{side}s_form": TableForm(header=found.header, **other)})


def _read(found: Proposal, files: Sequence[Path], columns: Sequence[str], asked: Asked) -> LogTable:
    """Returns all columns that all files have."""
    lacking, added = found.lacking, found.added
    for path in files[1:]:
        if log_files.format_of(path).kind != "empty":
            there = set(log_tables.column_names(path, found.options))
            if not there & set(columns):
                break  # which the reader tells better
            lacking |= {name: path for name in columns if name not in there and name not in lacking}
            added |= {name: path for name in there if name not in columns and name not in added}
    absent = lacking | dict.fromkeys(added, files[0])
    found.left_out |= {name: f"{path} has no such column" for name, path in absent.items()}
    wanted = [name for name in columns if name not in lacking]
    return log_tables.read(files, wanted, found.options, "interactions", skip_unread=True, progress=asked.progress)


def _propose_ids(found: Proposal, log: LogTable, asked: Asked) -> None:
    taken = ""
    for side, wanted, named in (("user", vocabulary.USER, asked.user), ("item", vocabulary.ITEM, asked.item)):
        columns = [one for one in log.columns.column_names if one != taken]
        if named and named not in columns:
            raise UserError(f"{log.files[0]}: no column {named!r}; --{side} takes one of {', '.join(columns)}")
        scored = sorted(
            ((score, one) for one in columns if (score := names.entity_score(one, wanted)) and _could_be_id(log, one)),
            key=lambda pair: -pair[0],
        )
        if not named and not scored:
            # Somebody's own log, of one user: the last resort, as a column of one value is mostly no ID.
            scored = [(score, one) for one in columns if (score := names.entity_score(one, wanted))][:1]
        if not named:
            best, score_of = scored[0][1] if scored else "", functools.partial(_entity_score, wanted)
            found.refuse_lacking(log, side, best, score_of)
            names.refuse_unread(log.unread or {}, log.files[0], side, best, score_of)
        if not named and not scored:
            one_column = len(columns) < 2 and not taken
            how = "if other letters stand between columns, name them: --delimiter" if one_column else (
                f"name it: --{side} one of {', '.join(columns)}"
            )  # fmt: skip
            if 2 * sum(bool(re.fullmatch(r"column_\d+", one)) for one in columns) >= len(columns):
                how = f"most columns have no name in its first line; if a title stands there, remove it; else {how}"
            raise UserError(f"{log.files[0]}: no column looks like the {side}; {how}"[:1000])
        taken = named or scored[0][1]
        if pa.types.is_nested(log.columns[taken].type):
            raise UserError(f"{log.files[0]}: column {taken!r} is a list, which is no {side}; --{side} names another")
        if not named:
            _refuse_gaps(log, side, taken, [one for _, one in scored])
        others = [one for _, one in scored if one != taken][:3]
        against = f"; {', '.join(others)} could be it, too (--{side})" if others else ""
        found.notes[side] = (f"as --{side} says" if named else "by its name") + against
        found.options = dataclasses.replace(found.options, **{side: taken})


def _entity_score(wanted: Sequence[str], name: str) -> int:
    return names.entity_score(name, wanted)


def _that_say_more(found: Proposal, log: LogTable, options: LogsConfig) -> dict[str, Path]:
    """Returns those columns of later files by which not every row there is a positive."""
    out = {}
    for name, path in found.added.items():
        if not _label_score(name):
            continue
        wanted = [one for one in (options.user, options.item, options.time, name) if one]
        table = log_tables.read([path], wanted, options, log.what, skip_unread=True)
        try:
            guess = guess_label(table, dataclasses.replace(options, negatives_per_positive=0))
        except UserError:
            out[name] = path
            continue
        if guess.key != "negatives_per_positive":
            out[name] = path
    return out


def _label_score(name: str) -> int:
    """Says how surely a column is the label by its name, or one that a label is made from."""
    return names.label_score(name) or (50 if names.rating_of([name]) or names.action_of([name]) else 0)


def _refuse_gaps(log: LogTable, side: str, taken: str, candidates: Sequence[str]) -> None:
    """Asks where the column that is named best is mostly empty, and another could be meant."""
    gaps = {name: log.columns[name].null_count / log.num_rows for name in candidates}
    fuller = [name for name in candidates if gaps[name] < 0.5 * gaps[taken]]
    if gaps[taken] > _MOST_GAPS and fuller:
        raise UserError(
            f"{log.files[0]}: column {taken!r} looks like the {side}, but {gaps[taken]:.0%} of the rows have none, and "
            f"{', '.join(fuller)} could be it, too: --{side} {fuller[0]} takes that one, --{side} {taken} leaves the "
            "rows without it out"
        )


def _could_be_id(log: LogTable, name: str) -> bool:
    column = log.columns[name]
    if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type) or pa.types.is_timestamp(column.type):
        return False
    values = codes(column)[1]
    if pa.types.is_floating(values.type) and np.mod(values.drop_null().to_numpy(zero_copy_only=False), 1).any():
        return False
    # One value in each row is the row's own ID: nobody comes back.
    is_of_rows = len(values) > 100 and len(values) > 0.98 * (log.num_rows - column.null_count)
    return len(values) > 1 and not is_of_rows


def _propose_incomplete(found: Proposal, log: LogTable) -> None:
    needed = (found.options.user, found.options.item, found.options.time, found.options.label, found.options.label_from)
    gaps = {name: log.columns[name].null_count for name in needed if name}
    read = times.read_times(log, found.options)
    said = [f"{num:,} x {name}" for name, num in gaps.items() if num]
    if read.bad.any():
        said.append(f"{int(read.bad.sum()):,} x {found.options.time} that is no time like the others")
    if said:
        found.options = dataclasses.replace(found.options, drop_incomplete=True)
        found.notes["drop_incomplete"] = "missing: " + ", ".join(said)


def _remark_shown_and_clicked(found: Proposal, rows: Rows) -> None:
    """Says that most positives follow a row of label 0 of the same user and item: what was shown, then clicked."""
    kept = rows.kept[:_ROWS_LOOKED_AT]  # to sort all of a large log takes longer than to read it
    if rows.form.time.kind != "date" and not rows.form.time.is_recent:
        return
    order = kept[np.lexsort((rows.label[kept], rows.time[kept], rows.item[kept], rows.user[kept]))]
    same = (np.diff(rows.user[order]) == 0) & (np.diff(rows.item[order]) == 0)
    soon = np.diff(rows.time[order]) <= _SHOWN_BEFORE_S * 10**6
    num = int((same & soon & (np.diff(rows.label[order]) == 1)).sum())
    if num > 0.5 * (of := int((rows.label[kept] == 1).sum())):
        first = f" among the first {len(kept):,} rows" if len(kept) < len(rows.kept) else ""
        found.remarks.append(
            f"{num:,} of {of:,} positive rows{first} come within {_SHOWN_BEFORE_S // 3600} hour after a row of label 0 "
            "of the same user and item: if that is what was shown and then clicked, leave it out, as it says the "
            "opposite"
        )


def _remark(found: Proposal, rows: Rows) -> None:
    _remark_shown_and_clicked(found, rows)
    counts = np.bincount(rows.user[rows.kept])
    most = int(np.argmax(counts))
    if len(counts) > 10 and counts[most] > _ONE_USER_SHARE * counts.sum():
        found.remarks.append(
            f"user {rows.user_ids[most].as_py()!r} has {counts[most] / counts.sum():.0%} of the rows: if it stands "
            "for nobody, add it to data.logs.missing (--missing)"
        )
