"""The model for servers without TorchScript and without Python: a `torch.export` program and a compiled package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.writers import compiled
from mwuf_dist.serving.writers.parquet import ParquetWriter

PACKAGE = "model-aoti.pt2"


class TorchscriptFreeWriter(ParquetWriter):
    """Writes what Parquet has, and `model-aoti.pt2`, compiled by AOTInductor: see `compiled.py`."""

    def __init__(self, to: str = "") -> None:
        super().__init__(to)
        self._about: dict[str, Any] = {}

    def check(self) -> None:
        """See `Writer.check`."""
        compiled.check_compiler()

    def model(self, run: FinishedRun, folder: Path) -> None:
        """See `Writer.model`."""
        super().model(run, folder)
        difference = compiled.write_package(run, folder / PACKAGE)
        self._about = {"package": PACKAGE, "package_difference": difference}

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """See `Writer.finish`."""
        return self._about
