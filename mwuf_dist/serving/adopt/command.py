"""`mwuf adopt`: reads weights, model and logs, sees whether they fit each other, and only then learns something."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import torch
from torch import nn

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, Written
from mwuf_dist.data.readers import arrow_types, gate, ids, log_files, log_tables
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.readers.repeated import repeated
from mwuf_dist.serving.adopt.adopt import Adopted, AdoptSettings, adopt, is_known
from mwuf_dist.serving.adopt.files import find_table, has_remapped_ids, import_factory, load_weights

_METHODS = ("forward", "context", "item_fields", "users")
_ROWS_TRIED = 256
_TABLES_NAMED = 20
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class AdoptInput:
    """Holds what the command is given.

    Attributes:
        weights: checkpoint folder or file.
        table: name of the item table.
        model: `package.module:factory`.
        logs: file or folder.
        item_ids: table of the IDs of the item table's rows; None: an ID is a row.
        settings: columns and numbers.
        written: how text files are written.
        label_is: values of the label's column that are positive.
        label_at_least: numbers of it from which on they are; with neither it holds 0 and 1.
    """

    weights: Path
    table: str
    model: str
    logs: Path
    item_ids: Path | None = None
    settings: AdoptSettings = field(default_factory=AdoptSettings)
    written: Written = field(default_factory=Written)
    label_is: tuple[str, ...] = ()
    label_at_least: float | None = None

    def options(self) -> LogsConfig:
        """Says how the logs are read.

        Raises:
            UserError: there are two rules for labels.
        """
        settings = self.settings
        found = LogsConfig(user=settings.user, item=settings.item, label=settings.label, time=settings.time)
        if self.label_is and self.label_at_least is not None:
            raise UserError("--label-is and --label-at-least: name one of them")
        if self.label_is or self.label_at_least is not None:
            least = LogsConfig.label_at_least if self.label_at_least is None else self.label_at_least
            rule = {"label_from": settings.label, "label": "", "label_is": self.label_is, "label_at_least": least}
            found = replace(found, **rule)
        return self.written.on(found)


@dataclass
class Fit:
    """Whether weights, model and logs fit each other.

    Attributes:
        faults: what does not, a sentence each.
        told: what was found.
    """

    faults: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Returns a line for each sentence, the faults last."""
        end = "they do not fit: nothing was learned or written" if self.faults else "they fit: nothing was written"
        return "\n".join([*self.told, *(f"FAULT. {one}" for one in self.faults), end])


@dataclass
class _Read:
    """The parts as far as they could be read."""

    table: torch.Tensor
    model: nn.Module
    rows: Rows
    logs: pa.Table
    listed: pa.ChunkedArray | None


def adopt_files(given: AdoptInput, output: Path) -> tuple[Adopted, list[str]]:
    """Reads, adopts, writes `output`; returns what was found of the input, too, a sentence each.

    Raises:
        UserError: something of the input is wrong.
    """
    if output.exists():
        raise UserError(f"{output}: exists; name another --output")
    fit = Fit()
    read = _read(given, fit)
    _try_model(fit, read)
    if fit.faults:
        raise UserError(f"--model {given.model!r}: {fit.faults[0]}")
    _count_items(fit, read, given.settings)
    adopted = adopt(read.model, read.table, read.logs, given.settings, read.listed)
    about: dict[str, object] = {
        "weights": str(given.weights),
        "item_table": given.table,
        "model": given.model,
        "item_ids": str(given.item_ids or ""),
    }
    about |= {"label_is": list(given.label_is), "label_at_least": given.label_at_least}
    adopted.save(output, about | asdict(given.settings))
    return adopted, fit.told


def check_fit(given: AdoptInput) -> Fit:
    """Says which tables, shapes and logs fit, without learning or writing anything."""
    fit = Fit()
    try:
        read = _read(given, fit)
        _count_items(fit, read, given.settings)
    except UserError as error:
        fit.faults.append(str(error))
        return fit
    _try_model(fit, read)
    return fit


def _read(given: AdoptInput, fit: Fit) -> _Read:
    settings = given.settings
    found = load_weights(given.weights)
    matrices = [f"{name} {_shape(value)}" for name, value in found.items() if value.dim() == 2]
    more = len(matrices) - _TABLES_NAMED
    fit.told.append(
        f"weights: {len(found):,} tensors; tables: {', '.join(matrices[:_TABLES_NAMED])}"
        + (f" and {more} more" if more > 0 else "")
    )
    item_table = find_table(found, given.table)
    if given.item_ids is None and has_remapped_ids(found, given.table):
        raise UserError(
            f"--item-table {given.table!r}: its rows are given out to IDs as they come, so that no ID is its row: say "
            "which ID each row has with --item-ids"
        )
    fit.told.append(f"item table {given.table!r}: {len(item_table):,} items in {item_table.shape[1]} dimensions")
    ranking = _made(given.model, found)
    if missing := [name for name in _METHODS if not hasattr(ranking, name)]:
        raise UserError(
            f"--model {given.model!r}: what it makes has no {', '.join(missing)}: see adopt in docs/serving.md"
        )
    there = log_files.find(str(given.logs), "--logs")
    options = given.options()
    # All columns, of which the model knows what to make; user, item, time and label by the gate of all commands.
    names = log_tables.column_names(there.files[0], options)
    rows = gate.read_rows(there.files, options, "logs", more=names, skip_unread=True)
    alike = repeated(rows, "drop")
    fit.told += [f"logs: {rows.table.num_rows:,} rows read", *there.notes(), *rows.notes(), *alike.notes(rows)]
    unread = (rows.table.unread or {}).items()
    fit.told += [f"column {name!r} is left out: its type is {kind}, which is not read" for name, kind in unread]
    rows = replace(rows, kept=rows.kept[~alike.again])
    listed = None
    if given.item_ids is not None:
        found_files = log_files.find_files(str(given.item_ids), "--item-ids")
        listed = log_tables.read(found_files, [settings.item], LogsConfig(), "items").columns[settings.item]
    return _Read(item_table, ranking, rows, _in_normal_form(rows, settings), listed)


def _made(name: str, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Builds the model by a person's factory."""
    factory = import_factory(name)
    try:
        return factory(weights)
    except Exception as error:  # of a user's code anything may come
        raise UserError(
            f"--model {name!r} failed on the weights: {type(error).__name__}: {str(error)[:500]}: does it build the "
            "model that they are of?"
        ) from error


def _count_items(fit: Fit, read: _Read, settings: AdoptSettings) -> None:
    """Counts rows of known items and of new ones, of which there have to be both."""
    item, item_ids, _ = ids.encode_ids(read.logs[settings.item])
    known = is_known(item_ids, len(read.table), read.listed)
    label = read.logs[settings.label].to_numpy()
    for of_known, words in ((True, "in the item table"), (False, "new")):
        mask = known[item] == of_known
        num, num_items = int(mask.sum()), int((known == of_known).sum())
        said = f"logs: {num:,} rows of {num_items:,} items that are {words}"
        fit.told.append(said + (f", {label[mask].mean():.1%} of them positive" if num else ""))
        if not num:
            fit.faults.append(f"{said}: both kinds are needed, the known ones to learn how items warm up")
    if read.listed is not None and (num_listed := len(read.listed.drop_null().unique())) < len(read.table):
        fit.told.append(
            f"--item-ids: {num_listed:,} IDs for {len(read.table):,} rows of the item table ({len(read.listed):,} rows "
            "are listed, and some may have no ID or that of another): items without a row count as new"
        )
    num_known, is_number = int(known.sum()), pa.types.is_integer(item_ids.type)
    if is_number and read.listed is None and (num_below := int((item_ids.to_numpy() < 0).sum())):
        fit.told.append(f"{num_below:,} IDs are below 0, which is no row, and count as new items (--item-ids)")
    if read.listed is None and num_known and num_known < 0.5 * len(known) and num_known < 0.5 * len(read.table):
        fit.told.append(
            f"only {num_known:,} of {len(known):,} IDs are rows of the item table: if IDs are no rows, say which ID "
            "each row has (--item-ids)"
        )


def _try_model(fit: Fit, read: _Read) -> None:
    """Tries the model on the first rows of the logs."""
    rows = read.logs.slice(0, _ROWS_TRIED)
    read.model.eval()
    made: dict[str, torch.Tensor] = {}
    for name in ("context", "item_fields", "users"):
        found = _called(fit, read.model, name, rows)
        if found is not None:
            made[name] = found
            if found.dim() != 2 or len(found) != rows.num_rows:
                fit.faults.append(f"{name}(rows) gives {_shape(found)} for {rows.num_rows} rows, not [n, width]")
            elif not bool(found.float().isfinite().all()):
                fit.faults.append(f"{name}(rows) gives NaN or infinity for the first {rows.num_rows} rows")
    if "context" not in made or fit.faults:
        return
    item = read.table[:1].repeat(rows.num_rows, 1).requires_grad_()
    logits = _called(fit, read.model, "forward", item, made["context"].float())
    if logits is None:
        return
    if logits.shape != (rows.num_rows,):
        fit.faults.append(f"forward(item, context) gives {_shape(logits)} for {rows.num_rows} rows, not [n]: logits")
        return
    if not bool(logits.isfinite().all()):
        fit.faults.append(
            f"forward(item, context) gives NaN or infinity for the first {rows.num_rows} rows: a weight is not finite"
        )
        return
    gradient = torch.autograd.grad(logits.sum(), item, allow_unused=True)[0] if logits.requires_grad else None
    if gradient is None or not bool(gradient.any()):
        fit.faults.append("the logit of forward(item, context) does not depend on the item's embedding")
    shapes = ", ".join(f"{name} {_shape(value)}" for name, value in made.items())
    fit.told.append(f"model, for the first {rows.num_rows} rows: {shapes}, logits {_shape(logits)}")


def _called(fit: Fit, model: nn.Module, name: str, *arguments: object) -> torch.Tensor | None:
    try:
        found = getattr(model, name)(*arguments)
    except Exception as error:  # of a user's code anything may come
        fit.faults.append(f"{name} failed on the first rows: {type(error).__name__}: {str(error)[:300]}")
        return None
    if not isinstance(found, torch.Tensor):
        fit.faults.append(f"{name} gives a {type(found).__name__}, not a tensor")
        return None
    return found


def _shape(tensor: torch.Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _in_normal_form(rows: Rows, settings: AdoptSettings) -> pa.Table:
    """Returns the rows that count, with IDs in one form, labels 0 and 1, and times in microseconds."""
    columns = rows.table.columns.take(pa.array(rows.kept))
    made = {
        settings.user: rows.user_ids.take(pa.array(rows.user[rows.kept])),
        settings.item: rows.item_ids.take(pa.array(rows.item[rows.kept])),
        settings.label: pa.array(rows.label[rows.kept]),
        settings.time: pa.array(rows.time[rows.kept]),
    }
    for name, values in made.items():
        columns = columns.set_column(columns.schema.get_field_index(name), name, values)
    return _plain(columns)


def _plain(columns: pa.Table) -> pa.Table:
    """Removes dictionaries; text that is numbers throughout, as CSV has them, as numbers: whole ones as integers."""
    out = {}
    for name in columns.column_names:
        column = columns[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) and pc.all(pc.match_substring_regex(column, _NUMBER)).as_py():
            column = _as_numbers(column)
        out[name] = column
    return pa.table(out)


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    with contextlib.suppress(pa.ArrowInvalid):  # fractions, or beyond 64 bits
        return column.cast(pa.int64())
    numbers = column.cast(pa.float64())
    if arrow_types.all_integral(numbers.combine_chunks()):
        return numbers.cast(pa.int64())
    # Many digits are an ID, which a number of 53 bits would make another's.
    return column if pc.all(pc.match_substring_regex(column, "^-?[0-9]+$")).as_py() else numbers
