"""`mwuf export`: the embeddings of a finished run as files for a server, and the dense model beside them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mwuf_dist.config import UserError
from mwuf_dist.files import DamagedError, appearing, read_json, write_json
from mwuf_dist.locks import locked
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.deltas.reader import DeltaError, version_of
from mwuf_dist.serving.export.chunks import Chunk, item_chunks, item_columns, user_chunks, user_columns
from mwuf_dist.serving.export.dense_model import MODEL_FILE
from mwuf_dist.serving.export.field_tables import field_tables
from mwuf_dist.serving.finished_run import PHASE_NAMES, FinishedRun
from mwuf_dist.serving.writers import Format, TableFormat, writer_of
from mwuf_dist.serving.writers.interface import Table, Writer

SCHEMA = 1
MANIFEST = "export.json"


def export(
    run: FinishedRun,
    kind: Format,
    output: Path,
    old_items: bool = False,
    progress: bool = False,
    context: bool = False,
    to: str = "",
    uncertainty: bool = False,
) -> Path:
    """Writes an export folder: the items, `model.pt2` and `export.json`. It appears whole or not at all.

    Args:
        run: to be exported.
        kind: format of the items; the files are described at its writer in `mwuf_dist/serving/writers`.
        output: the folder. An earlier export there is replaced.
        old_items: the old items too, with their rows of phi_old.
        progress: show a progress bar.
        context: all that a server needs for a score: what the model reads beside an embedding, of the items and of
            all users.
        to: the server that a format fills, where it fills one.
        uncertainty: the posterior's variance of each number of the new items' embeddings.

    Returns:
        `output`.

    Raises:
        UserError: `output` holds something else, cannot be written, torch cannot export the backbone, a user has no
            context of its own (see `FinishedRun.user_context`), the method has no posterior, or what the format needs
            is missing.
    """
    writer = writer_of(kind, to)
    writer.check()
    with locked(output, "export"), appearing(output, "name another --output") as folder:
        if output.exists() and not (output / MANIFEST).exists() and not (output.is_dir() and not any(output.iterdir())):
            raise UserError(f"{output}: exists and is no export of ours; name another --output")
        users = _write_users(run, writer, folder) | _write_fields(run, writer, folder) if context else {}
        num_items = write_items(run, run.served_items(old_items), writer, folder, context, uncertainty, progress)
        writer.model(run, folder)
        manifest = _manifest(run, kind, num_items, old_items) | users
        manifest |= writer.finish(folder, manifest)
        write_json(folder / MANIFEST, manifest)
    return output


def write_export(
    run: FinishedRun,
    items: np.ndarray,
    kind: TableFormat,
    folder: Path,
    runtime: Runtime,
    context: bool,
    users: np.ndarray | None = None,
) -> None:
    """Writes an export of some items, without the model, which an earlier export has. Every rank calls it.

    Args:
        run: opened on these ranks.
        items: their indices, ascending.
        kind: format.
        folder: made here.
        runtime: the main rank writes; the others make the same lookups.
        context: as for `export`, of the items.
        users: indices of users whose contexts are written too; None: of none.
    """
    run.load_state()
    uncertainty = run.method.has_posterior
    if not runtime.is_main:
        for _ in item_chunks(run, items, context, uncertainty):
            pass
        if users is not None:
            _ = run.unknown_user_context(), list(user_chunks(run, users))
        return
    folder.mkdir()
    num_items = write_items(run, items, writer_of(kind), folder, context, uncertainty)
    manifest = _manifest(run, kind, num_items, False) | {"model": None, "changed_only": True}
    if users is not None:
        manifest |= _write_users(run, writer_of(kind), folder, users)
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> tuple[dict[str, Any], tuple[str, int, str]]:
    """Reads the content of `export.json`, and which state the export is of, see `version_of`.

    Raises:
        UserError: no export is here, or it does not say.
    """
    try:
        about = read_json(folder / MANIFEST)
        return about, version_of(about, folder)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no export is here ({MANIFEST}); make one with `mwuf export RUN --context`"
        ) from None
    except DamagedError as error:
        raise UserError(f"{folder}: {error}") from None
    except DeltaError as error:
        raise UserError(str(error)) from None


def write_items(
    run: FinishedRun,
    items: np.ndarray | range,
    writer: Writer,
    folder: Path,
    context: bool = False,
    uncertainty: bool = False,
    progress: bool = False,
) -> int:
    """Writes the items with these indices into an existing folder, some ten thousand at a time; returns how many."""
    ids = run.ids_of(items)
    table = writer.table(folder, "item", ids, item_columns(run, context, uncertainty))
    _write(table, item_chunks(run, items, context, uncertainty), len(ids), progress)
    return len(ids)


def _write_users(run: FinishedRun, writer: Writer, folder: Path, users: np.ndarray | None = None) -> dict[str, Any]:
    """Writes the users with these indices, or all; returns what the manifest says of them."""
    unknown, ids = run.unknown_user_context(), run.user_ids
    ids = ids if users is None else ids.take(pa.array(users))
    _write(writer.table(folder, "user", ids, user_columns(run)), user_chunks(run, users), len(ids))
    return {"num_users": len(ids), "unknown_user": unknown.tolist()}


def _write_fields(run: FinishedRun, writer: Writer, folder: Path) -> dict[str, Any]:
    """Writes the tables of the fields, one behind another; returns what the manifest says of them."""
    tables = field_tables(run)
    values = pa.concat_arrays([pa.array([], pa.string()), *(table.values for table in tables.values())])
    rows = np.concatenate([np.empty((0, run.model.dim), np.float32), *(table.rows for table in tables.values())])
    whole = writer.table(folder, "field", values, {"field_embedding": ("float32", run.model.dim)})
    _write(whole, iter([Chunk(values, {"field_embedding": rows})]), len(values))
    about, first = {}, 0
    for name, table in tables.items():
        about[name] = {"first": first, "size": len(table.values), **table.about}
        first += len(table.values)
    return {"fields": about}


def _write(table: Table, chunks: Iterator[Chunk], num_rows: int, progress: bool = False) -> None:
    try:
        # A chunk is written while the next one is computed.
        bar = tqdm(total=num_rows, desc="export", unit="item", unit_scale=True, disable=not progress)
        with bar, ThreadPoolExecutor(1) as pool:
            written = pool.submit(lambda: None)
            for chunk in chunks:
                written.result()
                written = pool.submit(table.write, chunk)
                bar.update(len(chunk.ids))
            written.result()
    finally:
        table.close()


def _manifest(run: FinishedRun, kind: Format, num_items: int, old_items: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": kind,
        "num_items": num_items,
        "old_items": old_items,
        "dim": run.model.dim,
        "phases": PHASE_NAMES,
        "model": MODEL_FILE,
        "context": [
            *run.model.shape.item_fields,
            *(field.name for field in run.prepared.row_fields),
            *run.model.users.names,
        ],
        "history_width": run.model.backbone.history_width,
        "state": run.version,
        "run": {key: run.results[key] for key in ("dataset", "backbone", "method", "variant", "seed", "config_hash")},
        "versions": run.results["versions"],
    }
