"""The dense model of a run as a file for a server: all of it that is no table."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import ExportedProgram

from mwuf_dist.backbones import Shape
from mwuf_dist.config import UserError
from mwuf_dist.serving.finished_run import FinishedRun

MODEL_FILE = "model.pt2"


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
        """Returns logits [B]; a probability is their sigmoid."""
        return self.backbone(item_embedding, context)


def export_model(run: FinishedRun, path: Path) -> None:
    """Writes the backbone by `torch.export`, for batches of any size, on the device of the run.

    Raises:
        UserError: torch cannot export it.
    """
    # Into memory first: torch's own writer of files ends the process where the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program_of(run), buffer)
    path.write_bytes(buffer.getbuffer())


def program_of(run: FinishedRun) -> ExportedProgram:
    """Returns the backbone as `torch.export` takes it; see `export_model`."""
    model = run.model
    return exported(model.backbone, model.shape, model.runtime.device, run.config.backbone.name)


def exported(backbone: nn.Module, shape: Shape, device: torch.device, name: str) -> ExportedProgram:
    """Exports any backbone in eval mode; `name` is for the message."""
    width = (shape.num_fields - 1) * shape.dim + getattr(backbone, "history_width", 0)
    example = (torch.zeros(2, shape.dim, device=device), torch.zeros(2, width, device=device))
    batch = {0: torch.export.Dim("batch", min=1)}
    module = DenseModel(backbone).eval()
    try:
        # Strict, because the other mode takes `len(tensor)` for a constant.
        return torch.export.export(module, example, dynamic_shapes=(batch, batch), strict=True)
    except (TorchDynamoException, RuntimeError) as error:
        raise UserError(
            f"backbone {name!r}: torch.export cannot take its forward ({str(error)[:300]}); "
            "write it without branches on tensor values"
        ) from error
