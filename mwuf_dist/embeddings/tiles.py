"""Products of rows whose bits do not depend on how many rows are multiplied at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# A processor multiplies rows in tiles, and what is left over in another way, with other last bits.
TILE_ROWS = 64


def in_whole_tiles(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Computes rows [n] in whole tiles, for `Tables.fill`.

    Else items that are alike have rows with other last bits where some are left over of the tiles: what should be a tie
    is none, and the AUC of items without clicks is a matter of luck.
    """

    def padded(rows: torch.Tensor) -> torch.Tensor:
        if not len(rows):
            return compute(rows)
        filled = F.pad(rows, (0, -len(rows) % TILE_ROWS), value=int(rows[-1]))
        return compute(filled)[: len(rows)]

    return padded
