"""The interface of the formats of an export; each format is one file beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.export.chunks import Chunk, Columns
from mwuf_dist.serving.export.dense_model import MODEL_FILE, export_model
from mwuf_dist.serving.finished_run import FinishedRun

# Raw IDs [n], and the columns [n] or [n, width], phases as text.
Entities = tuple[list[Any], dict[str, np.ndarray]]


class Table(Protocol):
    """Takes the chunks of a table one after another."""

    def write(self, chunk: Chunk) -> None:
        """Appends a chunk."""
        ...

    def close(self) -> None:
        """Finishes the files."""
        ...


class Writer:
    """Writes an export in one format into a folder that nobody else sees yet, and reads its items back.

    Called in this order: `check`, `table` for users, fields and items, `model`, `finish`. `mwuf apply` calls `read`,
    then `table` and `finish` in a new folder, into which it has put all but the `files` of the items; the same of
    users, where deltas have some.

    Args:
        to: a server that the format fills, where it fills one.

    Raises:
        UserError: `to` is missing, or is given to a format that fills none.
    """

    fills_a_server = False

    def __init__(self, to: str = "") -> None:
        if to and not self.fills_a_server:
            raise UserError(f"--to {to}: only a format that fills a server takes it (redis); leave it out")
        self.to = to

    def check(self) -> None:
        """Raises UserError where this machine lacks what the format needs; called before anything is computed."""

    def table(self, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> Table:
        """Opens a table.

        Args:
            folder: to write into.
            entity: "item", "user" or "field".
            ids: of all rows.
            columns: the others.
        """
        raise NotImplementedError

    def read(self, folder: Path, entity: str) -> Entities:
        """Reads the items of an export in this format, or the users of one that has contexts."""
        raise NotImplementedError

    def files(self, folder: Path, entity: str) -> set[str]:
        """Returns names, in the folder of an export, of what is made of the items alone, or of the users alone."""
        raise NotImplementedError

    def model(self, run: FinishedRun, folder: Path) -> None:
        """Writes the dense model."""
        export_model(run, folder / MODEL_FILE)

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """Makes what the format has beside its tables and the model; returns what `export.json` says of it.

        Args:
            folder: with all of the rest in it, but for `export.json`.
            about: what `export.json` will hold.
            deltas: those that have just been put in; empty for an export of a run.
        """
        return {}
