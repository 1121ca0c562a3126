"""Old items played as new: batches of episodes, each K support rows and K query rows of one item.

Like every order of data, that of an epoch is a function of (rows, seed, epoch), whatever the number of ranks: each
item's rows are shuffled and cut into episodes, then the episodes of all items are shuffled together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.batches.loader import Batch, beside
from mwuf_dist.data.batches.order import stable_order
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime


class EpisodeLoader:
    """Global batches of episodes of some items' rows in `pretrain`.

    A batch holds its episodes one after the other, 2K rows each, support rows first; padding is whole episodes. The
    last rows of an item, fewer than 2K, are left out of an epoch: in every epoch others.

    Args:
        prepared: the data set.
        half: K, rows of each half of an episode.
        batch_size: rows of a global batch, rounded down to whole episodes.
        seed: decides the order together with the epoch.
        runtime: which episodes of a batch are ours.
        items: play these items only [num_items] bool; None plays all that have enough rows.
        histories: gives each row its history.

    Raises:
        UserError: no item has 2K rows, or a batch holds less than one episode per rank.
    """

    def __init__(
        self,
        prepared: Prepared,
        half: int,
        batch_size: int,
        seed: int,
        runtime: Runtime,
        items: np.ndarray | None = None,
        histories: Histories | None = None,
    ) -> None:
        self._beside = prepared.row_columns
        self._columns = prepared.columns("pretrain", ("user", "item", "label", *self._beside))
        self._histories = histories
        if histories is not None:
            self._columns["before"] = histories.before("pretrain", 0, len(self._columns["item"]))
        self._rows = 2 * half
        self._seed = seed
        self._runtime = runtime
        ours = np.arange(len(self._columns["item"]))
        if items is not None:
            ours = ours[items[self._columns["item"]]]
        self._by_item = ours[stable_order(self._columns["item"][ours])]
        counts = np.bincount(self._columns["item"][ours], minlength=1)
        per_item = counts // self._rows
        starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        # First position of each episode among the rows grouped by item.
        place = np.arange(per_item.sum()) - np.repeat(np.cumsum(per_item) - per_item, per_item)
        self._first = np.repeat(starts, per_item) + place * self._rows
        self._per_batch = batch_size // self._rows
        self._ours = episodes_of(runtime, self._per_batch)
        if not len(self._first):
            raise UserError(f"no old item has {self._rows} rows, 2 x data.warm_rows: lower data.warm_rows")
        if self._per_batch < runtime.world_size:
            raise UserError(
                f"meta_train.batch_size = {batch_size}: an episode has {self._rows} rows (2 x data.warm_rows), so "
                f"{runtime.world_size} ranks need at least {self._rows * runtime.world_size}"
            )

    @property
    def batch_size(self) -> int:
        """Rows of a full global batch."""
        return self._per_batch * self._rows

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        return len(self._first) * self._rows

    @property
    def num_steps(self) -> int:
        """Global batches of an epoch; only the last is not full."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's part of each global batch from `start_step` on."""
        generator = np.random.default_rng([self._seed, epoch, 4])
        # A stable sort by item of a random order: each item's rows in random order.
        shuffled = self._by_item[generator.permutation(len(self._by_item))]
        rows = shuffled[stable_order(self._columns["item"][shuffled])]
        first = self._first[generator.permutation(len(self._first))]
        for step in range(start_step, self.num_steps):
            yield self._batch(rows, first, epoch, step)

    def _batch(self, rows: np.ndarray, first: np.ndarray, epoch: int, step: int) -> Batch:
        device, size = self._runtime.device, self._per_batch
        ours = first[step * size :][:size][self._ours.start : self._ours.stop]
        num = -(-size // self._runtime.world_size)  # equally many on every rank
        weight = np.zeros((num, self._rows), np.float32)
        weight[: len(ours)] = 1
        # The first episode of the epoch stands in for padding.
        ours = np.concatenate([ours, np.repeat(first[:1], num - len(ours))])
        chosen = rows[ours[:, None] + np.arange(self._rows)].reshape(-1)
        user, item, label = (torch.from_numpy(self._columns[name][chosen]) for name in ("user", "item", "label"))
        num_rows = min(size, len(first) - step * size) * self._rows
        user, history = user.long().to(device), None
        if self._histories is not None:
            before = torch.from_numpy(self._columns["before"][chosen]).long().to(device)
            history = self._histories.of(user, before, in_pretrain=True)
        return Batch(
            user,
            item.long().to(device),
            label.float().to(device),
            torch.from_numpy(weight.reshape(-1)).to(device),
            num_rows,
            num_rows == size * self._rows and size % self._runtime.world_size == 0,
            epoch,
            step,
            self._ours.start * self._rows,
            history,
            **beside({name: torch.from_numpy(self._columns[name][chosen]).to(device) for name in self._beside}),
        )


def episodes_of(runtime: Runtime, num_episodes: int) -> range:
    """Says which episodes of a global batch of so many are this rank's."""
    rank, world_size = runtime.rank, runtime.world_size
    return range(rank * num_episodes // world_size, (rank + 1) * num_episodes // world_size)
