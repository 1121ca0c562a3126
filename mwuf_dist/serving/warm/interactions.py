"""What the daily job reads: new interactions in any order and any number of files."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import Config, UserError
from mwuf_dist.config.logs import LogsConfig, Written
from mwuf_dist.data import vocabulary
from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.init_config.actions import refuse_names_of_files
from mwuf_dist.data.readers import gate, ids, log_files, row_values, times
from mwuf_dist.data.readers.gate import DataForm, Rows
from mwuf_dist.data.readers.repeated import repeated
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.served_log import LOG_COLUMNS, NewRows


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the new interactions, and how they are written; an empty one is the config's."""

    user: str = ""
    item: str = ""
    time: str = ""
    label: str = ""
    written: Written = field(default_factory=Written)


def log_options(config: Config, columns: Columns) -> LogsConfig:
    """Says how the files are read: as the run's own logs where it has such, with columns that may be named anew.

    Raises:
        UserError: there is no column of times.
    """
    options = config.data.logs if config.data.name == "logs" else LogsConfig(label="label")
    named = {name: value for name, value in vars(columns).items() if value and name != "written"}
    if "label" in named:
        named |= {"label_from": "", "label_is": (), "negatives_per_positive": 0}
    options = columns.written.on(dataclasses.replace(options, **named))
    if not options.time:
        raise UserError("the run's data has no times; name the column of the times with --time")
    return options


def form_of_run(prepared: Prepared, is_logs: bool) -> DataForm | None:
    """Says how the run's data write IDs and times; None for own logs prepared before that was written down."""
    if is_logs:
        kept = prepared.manifest.get("form")
        return None if kept is None else DataForm.from_dict(kept)
    user, item = (ids.form_of(prepared.raw_ids(side)) for side in ("user", "item"))
    return DataForm(user, item, times.WHOLE)


def read_interactions(
    path: Path, options: LogsConfig, prepared: Prepared, is_logs: bool, beside: tuple[Path | None, ...] = ()
) -> NewRows:
    """Reads the interactions of a file or folder, by the form of the run's own data.

    Args:
        path: of Parquet or CSV.
        options: of `log_options`.
        prepared: of the run.
        is_logs: whether the run is of own logs, so that times are read as there; else they are whole numbers.
        beside: tables of items and users that may lie in the folder, as those of the config may.

    Raises:
        UserError: a column is absent, a value cannot be read (with its place), or a row is not complete.
    """
    there = log_files.find(str(path), "--interactions")
    named = [str(one) for one in beside if one is not None and one.is_file()]
    files = log_files.without_tables(there.files, options.users, options.items, *named)
    if options.negatives_per_positive:
        refuse_names_of_files(files, "or name the files of positives alone, as every row is one to this run")
    return read_files(files, tuple(there.notes()), options, prepared, is_logs)


def read_files(
    files: tuple[Path, ...], notes: tuple[str, ...], options: LogsConfig, prepared: Prepared, is_logs: bool
) -> NewRows:
    """Reads the interactions of some files; `notes` are what is known of them. For the rest see `read_interactions`."""
    form = form_of_run(prepared, is_logs)
    user_ids, item_ids = prepared.raw_ids("user"), prepared.raw_ids("item")
    more = row_values.columns(options) if prepared.row_columns else []
    if form is None:
        first = gate.read_rows(files, options, whole=False)
        scaled = times.as_first_prepared(first.form.time)
        form = DataForm(ids.form_of(user_ids), ids.form_of(item_ids), scaled)
        rows = gate.rows_of(first.table, options, form, whole=False)
    else:
        rows = gate.read_rows(files, options, more=more, form=form, whole=False)
    kept = rows.kept
    _refuse_words(rows, options, item_ids)
    known = ids.find(rows.user_ids, user_ids, form.user)
    user, item = rows.user[kept], rows.item[kept]
    log = {
        "item": item,
        "user": known[user],
        "user_key": id_keys(rows.user_ids)[user],
        "time": rows.time[kept],
        "label": rows.label[kept],
    }
    columns = {name: log[name].astype(kind, copy=False) for name, kind in LOG_COLUMNS.items()}
    of_fields: list[str] = []
    if prepared.row_columns:
        found, of_fields = row_values.by_words(rows, kept, options, vocabulary.read(prepared) or {})
        columns |= {name: found[name] for name in prepared.row_columns}
    return NewRows(
        item_ids=rows.item_ids,
        log=columns,
        num_unseen_users=int((known < 0).sum()),
        num_read=rows.table.num_rows,
        unseen_users=rows.user_ids.filter(pa.array(known < 0)),
        notes=(
            *notes,
            *rows.notes(),
            *repeated(rows, "drop").of_opposed(rows),
            *of_fields,
            *_unlike(rows.user_ids, user_ids),
        ),
    )


def _refuse_words(rows: Rows, options: LogsConfig, known: pa.Array) -> None:
    """Refuses item IDs that no item of the run could have: what is kept of new items has the type of the run's."""
    if not pa.types.is_integer(known.type) or pa.types.is_integer(rows.item_ids.type):
        return
    is_word = pc.invert(ids.is_whole_number(rows.item_ids)).to_numpy(zero_copy_only=False)
    if is_word.any():
        wrong = is_word[rows.item[rows.kept]]
        row = int(rows.kept[np.argmax(wrong)])
        raise UserError(
            f"{rows.table.place(row)}: {options.item} is {rows.item_ids[int(rows.item[row])].as_py()!r}, and all items "
            f"of the run have whole numbers of 64 bits, as {known[0].as_py()} ({int(wrong.sum()):,} of {len(wrong):,} "
            "rows are so); correct or remove them"
        )


def _unlike(found: pa.Array, known: pa.Array) -> list[str]:
    """Says how many IDs of users are written as none of the run's can be."""
    if found.type == known.type or not len(known):
        return []
    text = found.cast(pa.string())
    odd = text.filter(pc.invert(ids.is_whole_number(text))) if pa.types.is_integer(known.type) else text
    if not len(odd):
        return []
    return [
        f"{len(odd):,} of {len(found):,} user IDs are written as none of the run's is (like {odd[0].as_py()!r}, "
        f"where the run has {known[0].as_py()!r}): they are the mean user, and get no row (--users)"
    ]
