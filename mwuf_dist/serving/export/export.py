"""`mwuf export`: the embeddings of a finished run as files for a server, and the dense model beside them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from tqdm import tqdm

from mwuf_dist.backbones import Shape
from mwuf_dist.config import UserError
from mwuf_dist.files import appearing, write_json
from mwuf_dist.locks import locked
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.export.chunks import Chunk, Columns, item_chunks, item_columns, user_chunks, user_columns
from mwuf_dist.serving.export.formats import NpyWriter, ParquetWriter, SafetensorsWriter, Writer
from mwuf_dist.serving.finished_run import PHASE_NAMES, FinishedRun

Format = Literal["parquet", "safetensors", "npy"]

SCHEMA = 1
MODEL_FILE = "model.pt2"
MANIFEST = "export.json"


class DenseModel(nn.Module):
    """Computes logits [B] from item embeddings [B, D] and the other fields' embeddings [B, F*D], for a server.

    A backbone that looks at histories reads what it made of them [B, W] behind the fields.

    Args:
        backbone: of a finished run, in eval mode.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, item_embedding: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Logits [B]; a probability is their sigmoid."""
        return self.backbone(item_embedding, context)


def export(
    run: FinishedRun,
    kind: Format,
    output: Path,
    old_items: bool = False,
    progress: bool = False,
    context: bool = False,
) -> Path:
    """Writes an export folder: the items, `model.pt2` and `export.json`. It appears whole or not at all.

    Args:
        run: to be exported.
        kind: format of the items; the files are described at its writer in `formats.py`.
        output: the folder. An earlier export there is replaced.
        old_items: the old items too, with their rows of phi_old.
        progress: show a progress bar.
        context: all that a server needs for a score: what the model reads beside an embedding, of the items and of
            all users.

    Returns:
        `output`.

    Raises:
        UserError: `output` holds something else, cannot be written, torch cannot export the backbone, or a user has no
            context of its own (see `FinishedRun.user_context`).
    """
    with locked(output, "export"), appearing(output, "name another --output") as folder:
        if output.exists() and not (output / MANIFEST).exists() and not (output.is_dir() and not any(output.iterdir())):
            raise UserError(f"{output}: exists and is no export of ours; name another --output")
        users = _write_users(run, kind, folder) if context else {}
        num_items = write_items(run, kind, folder, old_items, progress, context)
        export_model(run, folder / MODEL_FILE)
        manifest = _manifest(run, kind, num_items, old_items) | users
        write_json(folder / MANIFEST, manifest)
    return output


def write_export(
    run: FinishedRun, items: np.ndarray, kind: Format, folder: Path, runtime: Runtime, context: bool
) -> None:
    """Writes an export of some items, without the model, which an earlier export has. Every rank calls it.

    Args:
        run: opened on these ranks.
        items: their indices, ascending.
        kind: format.
        folder: made here.
        runtime: the main rank writes; the others make the same lookups.
        context: as for `export`, of the items.
    """
    run.load_state()
    if not runtime.is_main:
        for _ in item_chunks(run, items, context):
            pass
        return
    folder.mkdir()
    num_items = _write_some(run, items, kind, folder, context)
    manifest = _manifest(run, kind, num_items, False) | {"model": None, "changed_only": True}
    write_json(folder / MANIFEST, manifest)


def write_items(
    run: FinishedRun, kind: Format, folder: Path, old_items: bool, progress: bool = False, context: bool = False
) -> int:
    """Writes the items into an existing folder, some ten thousand at a time; returns how many."""
    items = run.served_items(old_items)
    return _write_some(run, items, kind, folder, context, progress)


def _write_some(
    run: FinishedRun, items: np.ndarray | range, kind: Format, folder: Path, context: bool, progress: bool = False
) -> int:
    """Writes the items with these indices."""
    ids = run.ids_of(items)
    writer = writer_of(kind, folder, "item", ids, item_columns(run, context))
    _write(writer, item_chunks(run, items, context), len(ids), progress)
    return len(ids)


def _write_users(run: FinishedRun, kind: Format, folder: Path) -> dict[str, Any]:
    """Writes the users; returns what the manifest says of them."""
    unknown, ids = run.unknown_user_context(), run.user_ids
    _write(writer_of(kind, folder, "user", ids, user_columns(run)), user_chunks(run), len(ids))
    return {"num_users": len(ids), "unknown_user": unknown.tolist()}


def _write(writer: Writer, chunks: Iterator[Chunk], num_rows: int, progress: bool = False) -> None:
    try:
        # A chunk is written while the next one is computed.
        bar = tqdm(total=num_rows, desc="export", unit="item", unit_scale=True, disable=not progress)
        with bar, ThreadPoolExecutor(1) as pool:
            written = pool.submit(lambda: None)
            for chunk in chunks:
                written.result()
                written = pool.submit(writer.write, chunk)
                bar.update(len(chunk.ids))
            written.result()
    finally:
        writer.close()


def export_model(run: FinishedRun, path: Path) -> None:
    """Writes the backbone by `torch.export`, for batches of any size, on the device of the run.

    Raises:
        UserError: torch cannot export it.
    """
    model = run.model
    export_backbone(model.backbone, model.shape, model.runtime.device, run.config.backbone.name, path)


def export_backbone(backbone: nn.Module, shape: Shape, device: torch.device, name: str, path: Path) -> None:
    """Writes any backbone in eval mode by `torch.export`; `name` is for the message."""
    width = (shape.num_fields - 1) * shape.dim + getattr(backbone, "history_width", 0)
    example = (torch.zeros(2, shape.dim, device=device), torch.zeros(2, width, device=device))
    batch = {0: torch.export.Dim("batch", min=1)}
    module = DenseModel(backbone).eval()
    try:
        # Strict, because the other mode takes `len(tensor)` for a constant.
        program = torch.export.export(module, example, dynamic_shapes=(batch, batch), strict=True)
    except (TorchDynamoException, RuntimeError) as error:
        raise UserError(
            f"backbone {name!r}: torch.export cannot take its forward ({str(error)[:300]}); "
            "write it without branches on tensor values"
        ) from error
    # Into memory first: torch's own writer of files ends the process where the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def writer_of(kind: Format, folder: Path, entity: str, ids: pa.Array, columns: Columns) -> Writer:
    """The writer of a format; see the classes for the arguments."""
    if kind == "parquet":
        return ParquetWriter(folder, entity, ids, columns)
    return (NpyWriter if kind == "npy" else SafetensorsWriter)(folder, entity, ids, columns)


def _manifest(run: FinishedRun, kind: Format, num_items: int, old_items: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": kind,
        "num_items": num_items,
        "old_items": old_items,
        "dim": run.model.dim,
        "phases": PHASE_NAMES,
        "model": MODEL_FILE,
        "context": [*run.model.shape.item_fields, *run.model.users.names],
        "history_width": run.model.backbone.history_width,
        "state": run.version,
        "run": {key: run.results[key] for key in ("dataset", "backbone", "method", "variant", "seed", "config_hash")},
        "versions": run.results["versions"],
    }
