"""What callers name items and users by, checked before any code reads at such a position."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import Config, UserError
from mwuf_dist.data.readers import row_values
from mwuf_dist.data.readers.arrow_types import simple
from mwuf_dist.data.readers.ids import find_rows
from mwuf_dist.data.shards import Prepared

# Indices of items or users.
Indices = torch.Tensor | np.ndarray | Sequence[int]
# Field of the interactions themselves -> its raw values, one for each pair.
RowValues = Mapping[str, Sequence[Any]]
WHY_ABSENT = {
    "item": "Items with too few rows for `data.warm_rows` are not part of a run",
    "user": "Users who had no row when the run was trained are the mean user to it (see mwuf warm --users)",
}


class IndexRangeError(UserError, IndexError):
    """An index does not exist."""


class IndexKindError(UserError, TypeError):
    """Something else than integers is given for indices."""


def checked_indices(indices: Indices, num: int, what: str, device: torch.device) -> torch.Tensor:
    """Returns indices [n] from 0 to `num` - 1 as int64 on a device.

    Raises:
        IndexKindError: they are no integers.
        IndexRangeError: one does not exist.
        UserError: they have not one dimension.
    """
    try:
        found = indices if isinstance(indices, torch.Tensor) else torch.as_tensor(np.array(indices, order="C"))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise IndexKindError(f"indices of {what}s are {type(indices).__name__}: integers are needed") from None
    if not found.numel() and not isinstance(indices, (torch.Tensor, np.ndarray)):
        found = found.long()  # an empty list has no type of its own
    if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
        raise IndexKindError(f"indices of {what}s are {found.dtype}: integers are needed")
    if found.dim() != 1:
        raise UserError(f"indices of {what}s have the shape {tuple(found.shape)}: one dimension is needed")
    found = found.detach().to(device, torch.int64)
    if len(found):
        for one in (int(found.min()), int(found.max())):
            if not 0 <= one < num:
                raise IndexRangeError(
                    f"{what} {one} is out of range: there are {num}; `index_of` finds those of raw IDs"
                )
    return found


def place_of(raw_id: object, ids: pa.Array) -> int:
    """Returns the position of a raw ID, in whatever form the gate of logs takes it, -1 where there is none."""
    if isinstance(raw_id, bool | np.bool_):
        return -1
    if isinstance(raw_id, float | np.floating) and float(raw_id).is_integer():
        raw_id = int(raw_id)
    with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        if (found := ids.index(pa.scalar(raw_id).cast(ids.type)).as_py()) >= 0:
            return found
    try:
        given = pa.chunked_array([pa.array([raw_id]).cast(pa.string())])
        return int(find_rows(simple(given, ()), ids)[0])
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return -1


def row_indices(rows: RowValues | None, num: int, config: Config, prepared: Prepared) -> np.ndarray | None:
    """Finds the indices [n, Fr] of the raw values of the interactions' own fields; None where none is given.

    Raises:
        UserError: the run has no such field, or there are not `num` values.
    """
    if not rows:
        return None
    found = row_values.indices(rows, config.data.logs, prepared)
    if len(found) != num:
        raise UserError(f"{len(found)} values and {num} pairs: give as many of both")
    return found
