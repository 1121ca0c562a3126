"""The order of an epoch: a pure function of (row groups, batch size, seed, epoch), whatever the number of ranks.

The row groups are put in a random order and the rows of that sequence are cut into V lanes of equal length. Global
batch t takes the t-th B/V rows of every lane; which lanes a rank reads is said in lanes.py. Within a lane, rows are
shuffled in windows, so that a rank holds one window of its own lanes and never the data set. Small data is a single
window: there the order is close to a full shuffle, and each batch is spread over the whole of it.

`blocks` is the same with windows that fit into the processor's cache and one permutation for all windows of an epoch:
a batch takes rows from V row groups that were drawn at random, from a stretch of some thousand rows of each. Drawing a
permutation of every row and reading by it take longer than decoding the rows does.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

MAX_LANES = 64
# Global rows of a window: 4M rows of 21 bytes are 84 MB over all ranks, and more than MovieLens-1M and the demo have.
WINDOW_ROWS = 1 << 22
# `blocks`: rows of a lane in a window, and the fewest steps that its rows are mixed over where batches are large.
BLOCK_ROWS, BLOCK_STEPS = 4096, 16

Order = Literal["shuffled", "blocks", "time"]


def stable_order(keys: np.ndarray) -> np.ndarray:
    """Returns `np.argsort(keys, kind="stable")` of whole numbers from 0 on [n], a digit of 16 bits after the other.

    Of 16 bits NumPy sorts by counting, which takes a seventh of the time that comparing takes.
    """
    assert keys.dtype in (np.int32, np.int64)
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(16, int(keys.max(initial=0)).bit_length(), 16):
        digit = (keys >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return order


@functools.cache
def num_lanes(batch_size: int) -> int:
    """Gives the largest number of lanes, at most 64, that divides the batch: not a function of the number of ranks."""
    return max(lanes for lanes in range(1, min(MAX_LANES, batch_size) + 1) if batch_size % lanes == 0)


@dataclass(frozen=True)
class EpochOrder:
    """Which rows each lane holds at each step of one epoch.

    Args:
        row_groups: rows of each row group, in stored order.
        batch_size: rows of a global batch, B.
        seed: seed of the run.
        epoch: counted from 0.
        kind: `time` keeps the stored order: batch t is rows [tB, (t+1)B).
    """

    row_groups: tuple[int, ...]
    batch_size: int
    seed: int
    epoch: int
    kind: Order = "shuffled"
    _starts: list[int] = field(init=False, repr=False)
    _bounds: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = np.asarray(self.row_groups, dtype=np.int64)
        permutation = np.arange(len(sizes))
        if self.kind != "time":
            permutation = np.random.default_rng([self.seed, self.epoch, 1]).permutation(len(sizes))
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        object.__setattr__(self, "_starts", starts[permutation].tolist())
        object.__setattr__(self, "_bounds", [0, *np.cumsum(sizes[permutation]).tolist()])

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return self._bounds[-1]

    @property
    def lanes(self) -> int:
        """Number of lanes, V."""
        return num_lanes(self.batch_size)

    @property
    def rows_per_lane(self) -> int:
        """Rows of one lane in a batch, B/V."""
        return self.batch_size // self.lanes

    @property
    def num_steps(self) -> int:
        """Global batches of the epoch; only the last is not full."""
        longest = -(-self.num_rows // self.lanes)
        return -(-longest // self.rows_per_lane)

    @property
    def window_steps(self) -> int:
        """Steps whose rows a lane shuffles together."""
        if self.kind == "blocks":
            return max(BLOCK_STEPS, BLOCK_ROWS // self.rows_per_lane)
        return max(1, WINDOW_ROWS // self.batch_size)

    def window(self, lane: int, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Returns the rows of one window of a lane.

        Returns:
            Stored row ranges [start, stop) that the window reads one after another, and the permutation [n] of them.
        """
        first = lane * self.num_rows // self.lanes
        last = (lane + 1) * self.num_rows // self.lanes
        width = self.window_steps * self.rows_per_lane
        begin, end = min(first + index * width, last), min(first + (index + 1) * width, last)
        return self.ranges(begin, end), self._permutation(lane, index, end - begin)

    def side_by_side(self, num_lanes: int) -> np.ndarray:
        """Returns the permuted positions of a full window of `blocks`, for lanes that lie one behind the other.

        Returns:
            Positions in [num_lanes, window_steps * rows_per_lane], step by step and lane beside lane, int32 [n].
        """
        assert self.kind == "blocks"
        return _side_by_side(self.seed, self.epoch, num_lanes, self.window_steps, self.rows_per_lane)

    def _permutation(self, lane: int, index: int, size: int) -> np.ndarray:
        if self.kind == "blocks":
            return _block_permutation(self.seed, self.epoch, size)
        return np.random.default_rng([self.seed, self.epoch, 2, lane, index]).permutation(size)

    def ranges(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Returns stored row ranges of positions [begin, end) of the permuted sequence of row groups."""
        out: list[tuple[int, int]] = []
        group = bisect.bisect_right(self._bounds, begin) - 1
        while begin < end:
            stop = min(end, self._bounds[group + 1])
            offset = self._starts[group] - self._bounds[group]
            if out and out[-1][1] == begin + offset:
                out[-1] = out[-1][0], stop + offset
            elif stop > begin:
                out.append((begin + offset, stop + offset))
            begin, group = stop, group + 1
        return out


@functools.lru_cache(8)  # a full window's, and those of the last windows of lanes
def _block_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 3, size]).permutation(size)


@functools.lru_cache(2)
def _side_by_side(seed: int, epoch: int, num_lanes: int, steps: int, width: int) -> np.ndarray:
    within = _block_permutation(seed, epoch, steps * width).reshape(steps, 1, width)
    before = np.arange(num_lanes).reshape(1, num_lanes, 1) * (steps * width)
    return (before + within).reshape(-1).astype(np.int32)
