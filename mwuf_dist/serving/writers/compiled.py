"""The dense model compiled ahead of time (AOTInductor): a package that PyTorch runs without Python, checked at once."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.export.dense_model import program_of
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.writers.parquet import ParquetWriter

# Largest difference of a logit from the run's own, per unit of the largest logit (at least 1).
MOST_DIFFERENCE = 1e-5
_CHECKED_PAIRS = 1024


class CompiledWriter(ParquetWriter):
    """Writes what Parquet has, and the compiled model.

    Attributes:
        package: where the model goes, in the export's folder.
    """

    package: ClassVar[str]

    def __init__(self, to: str = "") -> None:
        super().__init__(to)
        self._about: dict[str, Any] = {}

    def check(self) -> None:
        """See `Writer.check`."""
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise UserError(
                "this format compiles the model, and no C++ compiler is here: install g++, or name another format"
            )

    def model(self, run: FinishedRun, folder: Path) -> None:
        """See `Writer.model`."""
        super().model(run, folder)
        path = folder / self.package
        path.parent.mkdir(parents=True, exist_ok=True)
        self._about = {"package": self.package, "package_difference": write_package(run, path)}

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """See `Writer.finish`."""
        return self._about


def write_package(run: FinishedRun, path: Path) -> float:
    """Compiles the backbone in float32 for batches of any size, and compares it with the run's own scores.

    Args:
        run: to be exported.
        path: of the package, which ends in `.pt2`. It runs on the device of the run and, of processors, on those that
            have the instructions of this one.

    Returns:
        The largest difference of a logit, per unit of the largest logit.

    Raises:
        UserError: it cannot be compiled, or differs by more than `MOST_DIFFERENCE`.
    """
    compile_program(run, path)
    difference = difference_of(run, path)
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"{path.name}: the compiled model differs from the run by {difference:.1e} of the largest logit, more than "
            f"{MOST_DIFFERENCE:.0e}: this compiler cannot be trusted; export as parquet, whose model is not compiled"
        )
    return difference


def compile_program(run: FinishedRun, path: Path) -> None:
    """Writes the package; see `write_package`."""
    program = program_of(run)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except RuntimeError as error:  # of the compiler too
        raise UserError(f"the model cannot be compiled: {str(error)[:300]}") from error


@torch.no_grad()
def difference_of(run: FinishedRun, path: Path) -> float:
    """Gives largest difference of logits of a package from the run's own over random pairs, per unit of the largest."""
    draw = torch.Generator().manual_seed(0)
    users = torch.randint(run.prepared.num_users, (_CHECKED_PAIRS,), generator=draw)
    served = torch.as_tensor(list(run.served_items(old_items=True)))
    items = served[torch.randint(len(served), (_CHECKED_PAIRS,), generator=draw)]
    model = torch._inductor.aoti_load_package(str(path))
    item, context = run.embeddings(items), run.context(users, items)
    expected = run.scores(users, items).double().cpu()
    largest = 0.0
    for num in (1, 3, _CHECKED_PAIRS):  # a batch of one, an odd one, all
        found = model(item[:num].contiguous(), context[:num].contiguous()).double().cpu()
        largest = max(largest, float((found - expected[:num]).abs().max()))
    return largest / max(1.0, float(expected.abs().max()))
