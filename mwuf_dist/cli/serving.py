"""`mwuf export`, `warm`, `apply`, `serve-check`, `explain` and `adopt`: their options and what they print."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro
from annotated_types import Ge, Gt, Le

from mwuf_dist.cli import explain
from mwuf_dist.cli.options import parse_run_options
from mwuf_dist.config import UserError
from mwuf_dist.config.logs import Written
from mwuf_dist.escape import printable
from mwuf_dist.serving.writers import Format, TableFormat

T = TypeVar("T")

EXAMPLES = {
    "export": """\
Writes the warm embeddings of a finished run's new items, and its dense model, into a folder for a server.

examples:
  mwuf export runs/ml-1
  mwuf export runs/ml-1 --catch-up runs/ml-1-all --old-items --context
  mwuf export runs/encoder --uncertainty --output serving/unsure
  mwuf export runs/ml-1 --format safetensors --old-items --context --output serving/today
  mwuf export runs/ml-1 --format triton --old-items --context
  mwuf export runs/ml-1 --format redis --to redis://127.0.0.1:6379/0#ml-1 --old-items --context""",
    "warm": """\
The daily job: new interactions move the rows of new items, by a rule that looks at each item alone, and nothing else.
RUN stays as it is; the output is a run too, with an export of the items that changed, and the next day's job reads it.

Interactions are rows of a user, an item, a label and a time; their columns are named as in the run's own logs,
elsewhere user_id, item_id, label and timestamp. Rows that agree in all four are the same interaction, in any file.

examples:
  mwuf warm runs/ml-1 --interactions today.parquet --output runs/ml-1-tuesday
  mwuf warm runs/ml-1 --interactions logs/ --items new_items.csv --output runs/ml-1-tuesday --format npy
  mwuf warm runs/ml-1 --interactions today.parquet --old-items --output runs/ml-1-tuesday
  mwuf warm runs/ml-1 --interactions today.parquet --users --output runs/ml-1-tuesday
  mwuf warm runs/ml-1 --interactions today.parquet --users --user-fields new_users.csv --output runs/ml-1-tuesday
  mwuf warm runs/ml-1 --follow clicks/ --output runs/ml-1-live
  mwuf warm runs/ml-1 --follow kafka://broker-1:9092,broker-2:9092/clicks --output runs/ml-1-live
  mwuf warm runs/ml-1 --interactions today.parquet --retire-after-days 30 --output runs/ml-1-tuesday
  torchrun --nproc-per-node=2 -m mwuf_dist warm runs/ml-1 --interactions today.parquet --output runs/ml-1-tuesday""",
    "apply": """\
Puts the deltas of jobs of `mwuf warm` into an export, or into a copy of the run that they went on from: all or none.
FOLDER is either; deltas are files or folders of them, in their order. One that is missing, there twice, out of order,
of another chain or damaged is refused. A server without this package copies mwuf_dist/serving/deltas/reader.py.

examples:
  mwuf apply serving/today runs/ml-1-tuesday/deltas runs/ml-1-wednesday/deltas
  mwuf apply runs/ml-1 runs/ml-1-tuesday/deltas --output copy/ml-1-tuesday""",
    "serve-check": """\
Scores rows with an export in a process that has PyTorch, NumPy and PyArrow and nothing of this package, puts deltas in
meanwhile, and compares each score with that of the run. EXPORT has its items in Parquet, and contexts (--context).
Without --deltas some are made up. Exit code 1 where a score is wrong or of two versions.

examples:
  mwuf serve-check runs/ml-1/export
  mwuf serve-check serving/today --run runs/ml-1 --deltas runs/ml-1-tuesday/deltas""",
    "adopt": """\
Warm embeddings for the new items of a model that was trained elsewhere; nothing of it is trained.

WEIGHTS is a folder of torch.distributed.checkpoint or a state dict file. The factory that --model names gets its
tensors by name and returns a module with four methods (docs/serving.md; examples/adopt_torchrec.py has one). The logs
hold interactions of items with a row in the item table, which teach how items warm up, and of new ones.

examples:
  mwuf adopt dlrm.pt --item-table item_id --model company.ranking:make_model --logs clicks/ --check
  mwuf adopt dlrm.pt --item-table item_id --model company.ranking:make_model --logs clicks/ --output warm
  mwuf adopt dlrm.pt --item-table item_id --model company.ranking:make_model --logs clicks/ --item-ids vocabulary.csv \
      --output warm""",
}


@dataclass(kw_only=True)
class _HowWritten:
    header: str = ""  # Names of the columns, separated by commas, of text files without a header line.
    delimiter: str = ""  # Delimiter of text files (tab for a tab); empty: that of the run's logs.
    quote: str | None = None  # Character around values that contain the delimiter; none: there is none.
    encoding: str = ""  # Encoding of text files; empty: that of the run's logs.
    time_format: str = ""  # Format of dates, as in strptime.
    # Leave rows out that lack a user, an item, a time or a label, and count them; else they are an error.
    drop_incomplete: tyro.conf.FlagCreatePairsOff[bool] = False

    def written(self) -> Written:
        """Says how the text files are written."""
        text = self.header, self.delimiter, self.quote, self.encoding, self.time_format
        return Written(*text, drop_incomplete=self.drop_incomplete)


@dataclass
class ExportOptions:
    """Options of `mwuf export`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # Folder of a finished run.
    format: Format = "parquet"  # Format of the items; docs/serving.md describes each.
    to: str = ""  # With --format redis: the server to fill, redis://HOST:PORT/DATABASE#PREFIX.
    output: Path | None = None  # Folder, or URI (s3://bucket/export), to write; by default `export` in RUN.
    old_items: tyro.conf.FlagCreatePairsOff[bool] = False  # Export the old items, too.
    # First bring in the rest of the run's own data, also items with fewer than 3K rows, as `mwuf warm` does: write a
    # run into this folder and export that one. The next daily job starts from it.
    catch_up: Path | None = None
    context: tyro.conf.FlagCreatePairsOff[bool] = False  # Export all else that a score needs, of items and users.
    # For method map: also export the posterior's variance of each number of a new item's embedding.
    uncertainty: tyro.conf.FlagCreatePairsOff[bool] = False
    prepared: Path | None = None  # Folder of the run's prepared data, if they were moved.


@dataclass
class WarmOptions(_HowWritten):
    """Options of `mwuf warm`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # Folder of a finished run, or of a job.
    output: Path  # Folder to write: a run that has seen these interactions too.
    interactions: Path | None = None  # Parquet or CSV, a file, a folder or a URI of either.
    # Keep running until SIGTERM, and take the files of this folder as they appear, or the messages of a topic
    # (kafka://HOST:PORT/TOPIC); OUTPUT gets deltas.
    follow: Path | None = None
    kafka: Path | None = None  # With a topic: file with settings of librdkafka, a line NAME=VALUE each.
    # With a topic: continue although messages are gone that were not taken.
    skip_lost: tyro.conf.FlagCreatePairsOff[bool] = False
    until_idle: tyro.conf.FlagCreatePairsOff[bool] = False  # With --follow: end as soon as nothing more is there.
    items: Path | None = None  # Table with the fields of items that the run has never seen.
    retire: Path | None = None  # Table with the IDs of items that leave at the end of the job.
    # Also retire new items without an interaction in this many days before the newest interaction.
    retire_after_days: Annotated[float | None, Gt(0), Le(1e6)] = None
    format: TableFormat = "parquet"  # Format of the export.
    context: tyro.conf.FlagCreatePairsOff[bool] = False  # Export all else that a score needs, of the changed items.
    # Update old items, too, by the same rule, from where the run left them.
    old_items: tyro.conf.FlagCreatePairsOff[bool] = False
    # Give users who were never seen a row of their own, by the same rule; else they are the mean user.
    users: tyro.conf.FlagCreatePairsOff[bool] = False
    user_fields: Path | None = None  # With --users: table with the fields of users that the run has never seen.
    user: str = ""  # Column of the user; empty: that of the run's logs.
    item: str = ""  # Column of the item.
    time: str = ""  # Column of the time.
    label: str = ""  # Column of the label, 0 or 1.
    prepared: Path | None = None  # Folder of the run's prepared data, if they were moved.


@dataclass
class ApplyOptions:
    """Options of `mwuf apply`."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]  # Folder of an export or a run.
    deltas: tyro.conf.Positional[tuple[Path, ...]]  # Files of deltas, or folders of them.
    output: Path | None = None  # Folder to write; by default the export itself.
    to: str = ""  # For an export to Redis: its server, if the URL has changed or has a password.
    prepared: Path | None = None  # Folder of a run's prepared data, if they were moved.


@dataclass
class ServeCheckOptions:
    """Options of `mwuf serve-check`."""

    export: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="EXPORT")]  # Folder of an export.
    run: Path | None = None  # The run that it was made of; by default the folder that EXPORT stands in.
    deltas: tuple[Path, ...] = ()  # Files of deltas, or folders of them, to apply; by default some are made up.
    # Number of different requests, which are repeated until all deltas are applied.
    requests: Annotated[int, Ge(1), Le(10_000_000)] = 300
    rows: Annotated[int, Ge(1), Le(1_000_000)] = 64  # Rows of a request.
    prepared: Path | None = None  # Folder of the run's prepared data, if they were moved.


@dataclass
class AdoptOptions(_HowWritten):
    """Options of `mwuf adopt`."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]  # Checkpoint folder or file.
    item_table: str  # Name of the item ID table among the weights, or a part of the name.
    model: str  # "package.module:factory".
    logs: Path  # Parquet or CSV, a file or a folder.
    output: Path | None = None  # Folder to write.
    check: tyro.conf.FlagCreatePairsOff[bool] = False  # Only check whether tables, shapes and logs fit.
    user: str = "user_id"  # Column of the user.
    item: str = "item_id"  # Column of the item; without --item-ids, the number of its row.
    time: str = "timestamp"  # Column of the time.
    label: str = "label"  # Column of the label: 0 or 1, or what the next two options say.
    label_is: tuple[str, ...] = ()  # Values of the label's column that are positive.
    # Numbers of the label's column that are at least this are positive.
    label_at_least: Annotated[float | None, Ge(-1e300), Le(1e300)] = None
    item_ids: Path | None = None  # Table with the ID of each row of the item table, in their order.
    epochs: Annotated[int, Ge(1), Le(10_000)] = 1  # Passes over the known items' rows.
    warm_rows: Annotated[int, Ge(1), Le(1_000_000)] = 20  # K of the serving rule.


def run_command(command: str, arguments: list[str]) -> int:
    """Runs a command that takes a finished run; returns the exit code."""
    commands = {
        "export": _export,
        "warm": _warm,
        "apply": _apply,
        "serve-check": _serve_check,
        "adopt": _adopt,
        "explain": explain.command,
    }
    return commands[command](arguments)


def _export(arguments: list[str]) -> int:
    options = _parse("export", arguments, ExportOptions)
    from mwuf_dist.data import remote
    from mwuf_dist.serving.export.export import export
    from mwuf_dist.serving.finished_run import open_run
    from mwuf_dist.serving.warm.catch_up import what_is_left_out

    folder = options.run if options.catch_up is None else _catch_up(options, options.catch_up)
    with open_run(folder, prepared=options.prepared) as run:
        clock = time.perf_counter()
        named = options.output or folder / "export"
        left_out = what_is_left_out(run.config, run.prepared) if run.state is None else ""
        contents = options.context, options.to, options.uncertainty
        with remote.published(named, "--output") as output:
            export(run, options.format, output, options.old_items, os.isatty(2), *contents)
            files = {str(path.relative_to(output)): path.stat().st_size for path in output.rglob("*") if path.is_file()}
        seconds = time.perf_counter() - clock
        num_items = run.num_items if options.old_items else run.num_items - run.num_old_items
    print(f"{num_items} items in {seconds:.1f} s: {remote.shown(named)}")
    for name, size in sorted(files.items()):
        print(f"  {name:<28} {size:>14,} bytes")
    if left_out:
        print(left_out)
    return 0


def _catch_up(options: ExportOptions, output: Path) -> Path:
    from mwuf_dist.runtime import start
    from mwuf_dist.serving.run_files import read_run
    from mwuf_dist.serving.warm.catch_up import catch_up

    kind: Any = options.format if options.format in get_args(TableFormat) else "parquet"  # of the items that changed
    with start(read_run(options.run)[0]) as runtime:
        report = catch_up(options.run, output, runtime, kind, options.context, options.prepared)
    print(printable(report.text()))
    return report.folder


def _warm(arguments: list[str]) -> int:
    options = _parse("warm", arguments, WarmOptions)
    if options.follow is not None:
        return _follow(options)
    if options.user_fields and not options.users:
        raise UserError("--user-fields is for users who get rows of their own: add --users")
    some = options.interactions or options.items or options.retire or options.user_fields
    if not some and options.retire_after_days is None:
        raise UserError("name what comes with --interactions FILE or --items FILE, or what leaves with --retire FILE")
    from mwuf_dist.runtime import start
    from mwuf_dist.serving.run_files import read_run
    from mwuf_dist.serving.warm.interactions import Columns
    from mwuf_dist.serving.warm.job import warm
    from mwuf_dist.serving.warm.retire import Retiring

    columns = Columns(options.user, options.item, options.time, options.label, options.written())
    clock = time.perf_counter()
    with start(read_run(options.run)[0]) as runtime:
        report = warm(
            options.run,
            options.interactions,
            options.output,
            runtime,
            options.items,
            columns,
            options.format,
            options.context,
            options.prepared,
            options.old_items,
            Retiring(options.retire, options.retire_after_days),
            options.users,
            options.user_fields,
        )
        if runtime.is_main:
            print(printable(report.text()))
            print(f"{time.perf_counter() - clock:.1f} s")
    return 0


def _follow(options: WarmOptions) -> int:
    others = options.interactions, options.items, options.retire, options.retire_after_days
    others += options.old_items or None, options.users or None, options.user_fields
    if any(option is not None for option in others):
        raise UserError("--follow takes the files of its folder alone: leave other input, --old-items and --users out")
    from mwuf_dist.runtime import start
    from mwuf_dist.serving.run_files import read_run
    from mwuf_dist.serving.warm.follow import follow
    from mwuf_dist.serving.warm.interactions import Columns, log_options
    from mwuf_dist.serving.warm.side_tables import SideTables
    from mwuf_dist.serving.warm.sources import source_of

    columns = Columns(options.user, options.item, options.time, options.label, options.written())
    config = read_run(options.run)[0]
    source = source_of(str(options.follow), log_options(config, columns), options.kafka, options.skip_lost)
    with start(config) as runtime:

        def told(batch: Any) -> None:
            print(printable(batch.text()), flush=True)

        idle, beside = options.until_idle, SideTables(options.items, options.retire)
        last = follow(options.run, source, options.output, runtime, columns, options.prepared, idle, told, beside)
    print(f"{options.output}: the last delta is {last}")
    return 0


def _apply(arguments: list[str]) -> int:
    options = _parse("apply", arguments, ApplyOptions)
    from mwuf_dist.data.remote import is_remote, local_path, published
    from mwuf_dist.serving.deltas.apply import apply

    folder = local_path(options.folder, "FOLDER", whole=True)
    deltas = [local_path(path, "DELTAS") for path in options.deltas]
    output = options.output or (options.folder if is_remote(options.folder) else None)  # else in its place
    if output is None:
        report = apply(folder, deltas, None, options.prepared, options.to)
    else:
        with published(output, "--output") as made:
            report = apply(folder, deltas, made, options.prepared, options.to)
    print(printable(report.text(output or folder)))
    return 0


def _serve_check(arguments: list[str]) -> int:
    options = _parse("serve-check", arguments, ServeCheckOptions)
    from mwuf_dist.data.remote import local_path

    export = local_path(options.export, "EXPORT", whole=True)
    folder = options.run or export.resolve().parent
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder}: no run is here; name the one that the export was made of with --run RUN")
    from mwuf_dist.serving.check.check import serve_check
    from mwuf_dist.serving.finished_run import open_run

    deltas = [local_path(path, "--deltas") for path in options.deltas]
    with open_run(folder, prepared=options.prepared) as run:
        report = serve_check(export, run, deltas, options.requests, options.rows)
    print(printable(report.text()))
    return 0 if report.is_good else 1


def _adopt(arguments: list[str]) -> int:
    options = _parse("adopt", arguments, AdoptOptions)
    from mwuf_dist.serving.adopt.adopt import AdoptSettings
    from mwuf_dist.serving.adopt.command import AdoptInput, adopt_files, check_fit

    settings = AdoptSettings(
        user=options.user,
        item=options.item,
        time=options.time,
        label=options.label,
        epochs=options.epochs,
        warm_rows=options.warm_rows,
    )
    given = AdoptInput(
        options.weights,
        options.item_table,
        options.model,
        options.logs,
        options.item_ids,
        settings,
        options.written(),
        options.label_is,
        options.label_at_least,
    )
    if options.check:
        fit = check_fit(given)
        print(printable(fit.text()))
        return 2 if fit.faults else 0
    if options.output is None:
        raise UserError("name the folder to write with --output DIR (or --check, to see whether all fits)")
    found, told = adopt_files(given, options.output)
    print(printable("\n".join(told)))
    print(f"{len(found.item_ids):,} new items, {int(found.interactions.sum()):,} interactions: {options.output}")
    return 0


def _parse(command: str, arguments: list[str], cls: type[T]) -> T:
    return parse_run_options(command, arguments, cls, EXAMPLES[command])
