"""From prepared shards to batches, with the position in the data carried by each batch.

What a checkpoint records is the cursor of the last batch that was trained, so nothing that was only read ahead counts.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mwuf_dist.data.batches.histories import Histories, History
from mwuf_dist.data.batches.lanes import Leases, check_lanes
from mwuf_dist.data.batches.order import EpochOrder, Order, num_lanes
from mwuf_dist.data.schema import WEIGHT
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime

_DTYPES: dict[str, type[np.integer]] = {"user": np.int32, "item": np.int32, "label": np.int8}  # as stored
_COLUMNS = tuple(_DTYPES)
_WIDE = {"user": torch.int64, "item": torch.int64, "label": torch.float32, "before": torch.int64}  # as trained on
_WIDENED_STEPS = 16
# A split of at most this many rows is read once and kept: 9 bytes a row, 600 MB.
IN_MEMORY_ROWS = 1 << 26
# Fewer are read in a millisecond, which is what starting threads takes.
_SHARED_ROWS = 1 << 15

_T = TypeVar("_T")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one global batch; a row of weight 0 is padding.

    Attributes:
        user, item: indices into the entity tables, int64 [b].
        label, weight: float32 [b].
        num_rows: rows of the global batch that are not padding: what the loss is divided by.
        is_full: no rank's part has padding.
        epoch, step: the cursor: after this batch, training goes on at (epoch, step + 1).
        first_row: position of the first row in the global batch; the others follow, padding too.
        history: what the rows look back at, for a backbone that `uses_history`; padding has none.
        row_weight: what each row weighs in the loss, float32 [b]; None: all weigh 1.
        row_values: indices of the rows' own fields, int64 [b, Fr]; None where rows have none.
    """

    user: torch.Tensor
    item: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    num_rows: int
    is_full: bool
    epoch: int
    step: int
    first_row: int = 0
    history: History | None = None
    row_weight: torch.Tensor | None = None
    row_values: torch.Tensor | None = None

    @property
    def loss_weight(self) -> torch.Tensor | None:
        """Weighs each row in a sum of losses [b]: 0 for padding; None where all count 1."""
        padding = None if self.is_full else self.weight
        if self.row_weight is None or padding is None:
            return padding if self.row_weight is None else self.row_weight
        return self.row_weight * padding


class Batches(Protocol):
    """Gives global batches, epoch by epoch, from any step on."""

    @property
    def batch_size(self) -> int:
        """Rows of a global batch, on average."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        ...

    @property
    def num_steps(self) -> int:
        """Global batches of an epoch."""
        ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's part of each global batch from `start_step` on."""
        ...


class Loader:
    """Batches of one or several splits read as one.

    Args:
        prepared: the prepared data set.
        splits: names, concatenated in this order.
        batch_size: rows of a global batch.
        seed: decides the order together with the epoch.
        runtime: who we are; which lanes are ours says the coordinator of lanes.py.
        order: of the rows: see order.py.
        histories: gives each row its history.
    """

    def __init__(
        self,
        prepared: Prepared,
        splits: Sequence[str],
        batch_size: int,
        seed: int,
        runtime: Runtime,
        order: Order = "shuffled",
        histories: Histories | None = None,
    ) -> None:
        self._prepared = prepared
        self._splits = tuple(splits)
        self.batch_size = batch_size
        self._seed = seed
        self._runtime = runtime
        self._kind: Order = order
        self._histories = histories
        of_rows = {name: np.float32 if name == WEIGHT else np.int32 for name in prepared.row_columns}
        self._columns = (*_COLUMNS, *of_rows)
        self._dtypes = _DTYPES | of_rows | ({"before": histories.moment_type} if histories else {})
        self._sizes = [prepared.num_rows(split) for split in self._splits]
        self._row_groups = tuple(rows for split in self._splits for rows in _row_groups(prepared, split))
        self._memory: dict[str, np.ndarray] | None = None
        self._group_bounds = [0, *itertools.accumulate(self._row_groups)]
        self._kept: dict[int, dict[str, np.ndarray]] = {}  # row groups that the last window of `blocks` read from
        if sum(self._sizes) <= IN_MEMORY_ROWS:
            parts = [self._with_before(prepared.columns(split, self._columns), split, 0) for split in self._splits]
            self._memory = {name: _concatenate([part[name] for part in parts]) for name in self._dtypes}
        check_lanes(num_lanes(batch_size), batch_size, runtime.world_size)
        self._leases = Leases(runtime)
        self._num_steps = self._order(0).num_steps

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        return sum(self._sizes)

    @property
    def num_steps(self) -> int:
        """Global batches of an epoch."""
        return self._num_steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's part of each global batch from `start_step` on."""
        order = self._order(epoch)
        lanes = self._leases.lanes(order.lanes)
        window = order.window_steps
        for index in range(start_step // window, -(-order.num_steps // window)):
            first = index * window
            steps = min(window, order.num_steps - first)
            rows, weight = (
                self._rows(order, lanes, first, steps)
                if order.kind == "time"
                else self._shuffled_rows(order, lanes, index, steps)
            )
            yield from self._batches(order, lanes, rows, weight, first, max(first, start_step))

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self._row_groups, self.batch_size, self._seed, epoch, self._kind)

    def _batches(
        self,
        order: EpochOrder,
        lanes: range,
        rows: dict[str, np.ndarray],
        weight: np.ndarray | None,
        first: int,
        start: int,
    ) -> Iterator[Batch]:
        # A window goes to the device as it is stored; few batches at a time are widened, to stay in the cache.
        device = self._runtime.device
        columns = {name: torch.from_numpy(values).to(device) for name, values in rows.items()}
        weights = None if weight is None else torch.from_numpy(weight).to(device)
        steps, size = rows["user"].shape
        ones = torch.ones(size, device=device)
        even = order.lanes % self._runtime.world_size == 0
        last = order.num_steps - 1
        for begin in range(start - first, steps, _WIDENED_STEPS):
            part = slice(begin, min(begin + _WIDENED_STEPS, steps))
            wide = {name: column[part].to(_WIDE.get(name, column.dtype)).unbind() for name, column in columns.items()}
            for index, user in enumerate(wide["user"]):
                step = first + begin + index
                num_rows = self.batch_size if step < last else order.num_rows - last * self.batch_size
                history = None
                if self._histories is not None:
                    history = self._histories.of(user, wide["before"][index], self._splits == ("pretrain",))
                yield Batch(
                    user,
                    wide["item"][index],
                    wide["label"][index],
                    ones if weights is None else weights[begin + index],
                    num_rows,
                    even and num_rows == self.batch_size,
                    order.epoch,
                    step,
                    lanes.start * order.rows_per_lane,
                    history,
                    **beside({name: wide[name][index] for name in self._prepared.row_columns}),
                )

    def _shuffled_rows(
        self, order: EpochOrder, lanes: range, index: int, steps: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Returns [steps, b] arrays: the rows of a window, lane beside lane; weights only where some are 0."""
        shape = steps, self._slots(order), order.rows_per_lane
        orders = self._at_once(partial(order.window, index=index), lanes, math.prod(shape))
        has_padding = len(lanes) < shape[1] or any(len(shuffle) < shape[0] * shape[2] for _, shuffle in orders)
        if order.kind == "blocks" and not has_padding and steps == order.window_steps:
            return self._full_blocks([ranges for ranges, _ in orders], order), None
        make = np.zeros if has_padding else np.empty
        rows = {name: make(shape, dtype) for name, dtype in self._dtypes.items()}
        weight = np.zeros(shape, np.float32) if has_padding else None

        def fill(slot: int) -> None:
            ranges, shuffle = orders[slot]
            for name, values in self._read(ranges).items():
                _put(rows[name][:, slot], values[shuffle])
            if weight is not None:
                _put(weight[:, slot], np.ones(len(shuffle), np.float32))

        self._at_once(fill, range(len(orders)), math.prod(shape))
        flat = {name: array.reshape(steps, -1) for name, array in rows.items()}
        return flat, None if weight is None else weight.reshape(steps, -1)

    def _full_blocks(self, lanes: list[list[tuple[int, int]]], order: EpochOrder) -> dict[str, np.ndarray]:
        """Returns [steps, b] arrays, as `_shuffled_rows` does, by one gather of all lanes.

        Arrow's takes half the time of NumPy's or torch's.
        """
        before, self._kept = self._kept, {}
        read = [part for ranges in lanes for part in self._from_groups(ranges, before)]
        index = pa.array(order.side_by_side(len(lanes)))
        rows = {}
        for name, dtype in self._dtypes.items():
            values = pa.array(_concatenate([part[name] for part in read]))
            taken = pc.take(values, index, boundscheck=False).buffers()[1]
            rows[name] = np.frombuffer(taken, dtype, len(index)).reshape(order.window_steps, -1)
        return rows

    def _from_groups(
        self, ranges: list[tuple[int, int]], before: dict[int, dict[str, np.ndarray]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows of ranges, of row groups that are decoded once for all windows that a lane has in them."""
        if self._memory is not None:
            yield from ({name: column[a:b] for name, column in self._memory.items()} for a, b in ranges)
            return
        bounds = self._group_bounds
        for start, stop in ranges:
            for group in range(bisect.bisect_right(bounds, start) - 1, bisect.bisect_left(bounds, stop)):
                begin, end = bounds[group : group + 2]
                if group not in self._kept:
                    self._kept[group] = before[group] if group in before else self._read([(begin, end)])
                part = slice(max(start, begin) - begin, min(stop, end) - begin)
                yield {name: column[part] for name, column in self._kept[group].items()}

    def _at_once(self, body: Callable[[_T], _Made], of: Iterable[_T], num_rows: int) -> list[_Made]:
        """Calls a function of each, on the rank's threads where so many rows take longer than starting these."""
        if self._runtime.threads == 1 or num_rows < _SHARED_ROWS:
            return [*map(body, of)]
        return [*self._pool.map(body, of)]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._runtime.threads)

    def _rows(
        self, order: EpochOrder, lanes: range, first: int, steps: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Reads rows in time order, where a lane is a range of columns of the global batches."""
        begin, end = first * self.batch_size, min((first + steps) * self.batch_size, order.num_rows)
        read = self._read(order.ranges(begin, end))
        width, slots = order.rows_per_lane, self._slots(order)
        if len(lanes) == order.lanes and end - begin == steps * self.batch_size:
            return {name: values.reshape(steps, -1) for name, values in read.items()}, None

        def ours(array: np.ndarray) -> np.ndarray:
            padded = np.zeros((steps, order.lanes * width), array.dtype)
            padded.reshape(-1)[: len(array)] = array
            out = np.zeros((steps, slots * width), array.dtype)
            out[:, : len(lanes) * width] = padded[:, lanes.start * width : lanes.stop * width]
            return out

        return {name: ours(values) for name, values in read.items()}, ours(np.ones(end - begin, np.float32))

    def _slots(self, order: EpochOrder) -> int:
        """Returns lanes of the rank that has most: where a rank has fewer, padding fills its part up."""
        return -(-order.lanes // self._runtime.world_size)

    def _read(self, ranges: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        if self._memory is not None:
            return {name: _concatenate([self._memory[name][a:b] for a, b in ranges]) for name in self._dtypes}
        pieces = [piece for a, b in ranges for piece in self._pieces(a, b)]
        return {name: _concatenate([piece[name] for piece in pieces]) for name in self._dtypes}

    def _pieces(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        offset = 0
        for split, size in zip(self._splits, self._sizes, strict=True):
            a, b = max(start - offset, 0), min(stop - offset, size)
            if a < b:
                yield self._with_before(self._prepared.read_rows(split, a, b, self._columns), split, a)
            offset += size

    def _with_before(self, rows: dict[str, np.ndarray], split: str, start: int) -> dict[str, np.ndarray]:
        """Returns rows of a split from `start` on, with the column that their histories need."""
        if self._histories is None:
            return rows
        return rows | {"before": self._histories.before(split, start, start + len(rows["user"]))}


def beside(columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes `row_weight` and `row_values` of a batch of the `row_columns` of its rows [b] each, where there are any."""
    fields = [values for name, values in columns.items() if name != WEIGHT]
    made = {"row_values": torch.stack(fields, dim=1).long()} if fields else {}
    return made | ({"row_weight": columns[WEIGHT]} if WEIGHT in columns else {})


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


def _put(lane: np.ndarray, values: np.ndarray) -> None:
    """Writes values [n] step by step to the front of a lane [steps, width], which lies beside others."""
    steps, rest = divmod(len(values), lane.shape[1])
    lane[:steps] = values[: len(values) - rest].reshape(steps, lane.shape[1])
    if rest:
        lane[steps, :rest] = values[len(values) - rest :]


def _row_groups(prepared: Prepared, split: str) -> Iterator[int]:
    rows, size = prepared.num_rows(split), prepared.row_group_rows(split)
    return (min(size, rows - start) for start in range(0, rows, size))
