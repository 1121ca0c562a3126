"""Batches of whole users: a part of a user's rows is learned from, the user's other rows are the history behind them.

For a backbone that reads all of a user's history (`Backbone.history_scope` "all"): what is made of a history is made
once for all rows of a batch that share it, and no row sees itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from mwuf_dist.config import Events
from mwuf_dist.data.batches.histories import History
from mwuf_dist.data.batches.loader import Batch, beside
from mwuf_dist.data.batches.order import stable_order
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime

# A user's rows are cut into at least so many parts: the other four fifths are the history of each.
_FEWEST_PARTS = 5
_MOST_ROWS = 64  # of a part
_MOST_EVENTS = 256  # of a history in training


class UserLoader:
    """Global batches of users' parts; every row of `pretrain` is in one part of an epoch.

    In each epoch a user's rows are shuffled and cut into parts anew, and the parts of all users are shuffled together:
    a function of (rows, seed, epoch), whatever the number of ranks. A part's history is at most 256 of its user's other
    rows, those that come after the part in the shuffled order, oldest first.

    Args:
        prepared: the data set.
        batch_size: rows of a global batch on average. Parts differ in size and are not torn, so batches differ too.
        seed: decides the order together with the epoch.
        runtime: which parts of a batch are ours.
        events: see `Histories`; rows that are no events are learned from, and in no history.
        gap_s: see `Histories`.
    """

    def __init__(
        self,
        prepared: Prepared,
        batch_size: int,
        seed: int,
        runtime: Runtime,
        events: Events = "positives",
        gap_s: float = -1.0,
    ) -> None:
        self.batch_size = batch_size
        self._seed = seed
        self._runtime = runtime
        columns = prepared.columns("pretrain", ("user", "item", "label", *prepared.row_columns))
        self._beside = {name: columns[name] for name in prepared.row_columns}
        self._user, self._item, self._label = (columns[name] for name in ("user", "item", "label"))
        # The first row of `pretrain` that is not older than each row by more than the gap.
        self._settled = np.arange(self.num_rows)
        if gap_s >= 0:
            time = prepared.columns("pretrain", ("time",))["time"]
            self._settled = np.searchsorted(time, time - round(gap_s * prepared.ticks_per_s))
        self._is_event = prepared.is_event(self._label, events)
        # Of the rows that are looked at for a history, so many are events in it.
        self._most_seen = round(_MOST_EVENTS / max(self._is_event.mean() if len(self._label) else 1, 0.01))
        self._counts = np.bincount(self._user, minlength=prepared.num_users)
        self._starts = np.cumsum(self._counts) - self._counts
        parts = np.maximum(np.minimum(self._counts, _FEWEST_PARTS), -(-self._counts // _MOST_ROWS))
        self._part_user = np.repeat(np.arange(len(parts)), parts)
        index = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        # A part is rows [begin, end) of its user's.
        self._begin, self._end = (
            (index + side) * self._counts[self._part_user] // parts[self._part_user] for side in (0, 1)
        )
        self._parts_per_batch = max(1, round(batch_size * len(index) / max(1, self.num_rows)))

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        return len(self._user)

    @property
    def num_steps(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self._part_user) // self._parts_per_batch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's part of each global batch from `start_step` on."""
        generator = np.random.default_rng([self._seed, epoch, 5])
        # A stable sort by user of a random order: each user's rows in random order.
        shuffled = generator.permutation(self.num_rows)
        rows = shuffled[stable_order(self._user[shuffled])]
        parts = generator.permutation(len(self._part_user))
        for step in range(start_step, self.num_steps):
            yield self._batch(rows, parts[step * self._parts_per_batch :][: self._parts_per_batch], epoch, step)

    def _batch(self, rows: np.ndarray, parts: np.ndarray, epoch: int, step: int) -> Batch:
        rank, world_size = self._runtime.rank, self._runtime.world_size
        bounds = [index * len(parts) // world_size for index in range(world_size + 1)]
        sizes = self._end[parts] - self._begin[parts]
        # Every rank has as many rows as the one that has most.
        most = max(int(sizes[low:high].sum()) for low, high in itertools.pairwise(bounds))
        ours = parts[bounds[rank] : bounds[rank + 1]]
        first, num = self._starts[self._part_user[ours]], self._counts[self._part_user[ours]]
        begin, end = self._begin[ours], self._end[ours]
        chosen = rows[np.repeat(first, end - begin) + _ranges(begin, end - begin)]
        # The history goes on where the part ends, and from the user's last row to the first.
        looked_at = np.minimum(num - (end - begin), self._most_seen)
        place = _ranges(end, looked_at) % np.repeat(num, looked_at)
        seen = rows[np.repeat(first, looked_at) + place]
        part, is_event = np.repeat(np.arange(len(ours)), looked_at), self._is_event[seen]
        seen, part = seen[is_event], part[is_event]
        # Rows are stored in order of time, so (part, row) as one number is sorted by part and time.
        moment = np.sort(part * self.num_rows + seen)
        seen = moment % self.num_rows
        offsets = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=len(ours)))])
        group = np.repeat(np.arange(len(ours)), end - begin)
        earlier = np.searchsorted(moment, group * self.num_rows + self._settled[chosen]) - offsets[group]
        device, padding = self._runtime.device, most - len(chosen)

        def padded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(np.pad(values, (0, padding))).to(device, dtype)

        history = History(
            torch.from_numpy(self._item[seen]).to(device, torch.int64),
            torch.from_numpy(self._label[seen]).to(device, torch.float32),
            torch.from_numpy(offsets).to(device),
            padded(group, torch.int64),
            padded(earlier, torch.int64),
        )
        return Batch(
            padded(self._user[chosen], torch.int64),
            padded(self._item[chosen], torch.int64),
            padded(self._label[chosen], torch.float32),
            padded(np.ones(len(chosen)), torch.float32),
            int(sizes.sum()),
            int(sizes.sum()) == most * world_size,
            epoch,
            step,
            int(sizes[: bounds[rank]].sum()),
            history,
            **beside(
                {name: padded(one[chosen], torch.from_numpy(one[:0]).dtype) for name, one in self._beside.items()}
            ),
        )


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Returns start[0], start[0] + 1, ... (length[0] of them), start[1], ... one after another."""
    total = np.cumsum(length)
    return np.arange(total[-1] if len(total) else 0) + np.repeat(start - (total - length), length)
