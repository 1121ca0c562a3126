"""Warm-up by a fit per item, for a method that has one: what replaces the steps of stage `warm_up`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from mwuf_dist.config import WARM_SETS
from mwuf_dist.data.batches.loader import beside
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Method
from mwuf_dist.methods.lines import Lines, together
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.model import Model

# Rows whose part is computed at once, and items that are fitted at once (a matrix D x D each).
_PART_ROWS = 1 << 14
_FIT_ITEMS = 1 << 10


@dataclass
class ItemFit:
    """Fits the new items' rows of phi_new to their clicks. Every rank fits a part of the items."""

    model: Model
    frozen: Frozen
    method: Method
    # Of the warm sets so far, with their labels: with all else frozen, lines stay as they are.
    _lines: dict[str, tuple[Lines, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.model.backbone.linear_in_item
        runtime, num_new = self.model.runtime, self.model.num_items - self.model.num_old
        self._items = range(
            self.model.num_old + runtime.rank * num_new // runtime.world_size,
            self.model.num_old + (runtime.rank + 1) * num_new // runtime.world_size,
        )

    def run_phase(self, prepared: Prepared, phase: int, start: torch.Tensor) -> int:
        """Fits to the rows of all warm sets up to `phase`, from first rows `start` [num_new, D]. A collective.

        Returns:
            The number of rows, over all ranks.
        """
        model, splits = self.model, WARM_SETS[:phase]
        for split in splits:
            if split not in self._lines:
                self._lines[split] = self._read(prepared, split)
        parts, labels = zip(*(self._lines[split] for split in splits), strict=True)
        lines, label = together(parts), torch.cat(labels)
        order = torch.argsort(lines.item, stable=True)
        bounds = torch.cumsum(torch.bincount(lines.item, minlength=len(self._items)), 0).tolist()
        fitted = torch.zeros_like(start)
        first_new = self._items.start - model.num_old
        for first in range(0, len(self._items), _FIT_ITEMS):
            last = min(first + _FIT_ITEMS, len(self._items))
            rows = order[(bounds[first - 1] if first else 0) : bounds[last - 1]]
            own = slice(first_new + first, first_new + last)
            fitted[own] = self.method.fit(start[own], lines.taken(rows, first), label[rows])
        # Each row comes from one rank; the others add zero.
        fitted = model.runtime.sum(fitted)
        model.new_ids.fill("new", lambda rows: fitted[rows - model.num_old], range(model.num_old, model.num_items))
        return sum(prepared.num_rows(split) for split in splits)

    def _read(self, prepared: Prepared, split: str) -> tuple[Lines, torch.Tensor]:
        """Reads this rank's clicks of a set, items counted from its first one, and their labels."""
        columns = prepared.columns(split, ("user", "item", "label", *prepared.row_columns))
        ours = np.flatnonzero((columns["item"] >= self._items.start) & (columns["item"] < self._items.stop))
        # By user, so that what is made of a user's history is made once.
        ours = ours[np.argsort(columns["user"][ours], kind="stable")]
        device, runtime = self.model.runtime.device, self.model.runtime
        user, item = (torch.from_numpy(columns[name][ours]).long().to(device) for name in ("user", "item"))
        of_rows = beside({name: torch.from_numpy(columns[name][ours]).to(device) for name in prepared.row_columns})
        histories = self.model.histories(prepared, 0)
        before = torch.zeros_like(user)
        if histories is not None:
            before = torch.from_numpy(histories.before(split, 0, len(columns["user"]))[ours]).to(user)
        offsets, slopes = [], []
        for index in range(runtime.max(-(-len(ours) // _PART_ROWS))):
            rows = slice(index * _PART_ROWS, min((index + 1) * _PART_ROWS, len(ours)))
            users, items = runtime.pad(user[rows]), runtime.pad(item[rows])
            history = None
            if histories is not None:
                history = histories.of(users, runtime.pad(before[rows]), in_pretrain=False)
            values = runtime.pad(of_rows["row_values"][rows]) if "row_values" in of_rows else None
            part = self.frozen.part(users, items, history, values)
            offset, slope = line_of(self.frozen.logit, part, self.model.dim)
            offsets.append(offset[: len(user[rows])])
            slopes.append(slope[: len(user[rows])])
        label = torch.from_numpy(columns["label"][ours]).float().to(device)
        offset, slope = torch.cat(offsets), torch.cat(slopes)
        return Lines(item - self._items.start, offset, slope, of_rows.get("row_weight")), label


def line_of(
    logit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], part: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the line (offset [b], slope [b, D]) that a logit is in the item embedding, for rows of parts [b, P].

    Args:
        logit: from item embeddings [b, D] and parts to logits [b], linear in the former.
        part: frozen parts.
        dim: D.
    """
    with torch.enable_grad():
        zero = torch.zeros(len(part), dim, dtype=part.dtype, device=part.device, requires_grad=True)
        offset = logit(zero, part)
        (slope,) = torch.autograd.grad(offset.sum(), zero)
    return offset.detach(), slope
