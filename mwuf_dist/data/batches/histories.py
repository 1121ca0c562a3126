"""Histories: the events of each user in (time, position) order, and which of them a row may look back at.

What the files hold says history_files.py. Jagged throughout: an event is stored once, whatever the length of a history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from mwuf_dist.config import Events, UserError
from mwuf_dist.data.prepare.history_files import FOLDER
from mwuf_dist.data.shards import Prepared

Scope = Literal["before", "all"]


@dataclass(frozen=True)
class History:
    """Holds what the b rows of a batch look back at, as g jagged histories, oldest event first.

    Several rows may share one history, so that what is made of it is made once; none need to (g = b).

    Attributes:
        items: item of each event, `num_items` for the unknown one (dropped items), int64 [h].
        labels: float32 [h].
        offsets: history j has the events offsets[j] to offsets[j + 1] - 1, int64 [g + 1].
        group: the history of each row, int64 [b].
        earlier: how many events of its history are earlier than each row, int64 [b]: the first ones.
    """

    items: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    group: torch.Tensor
    earlier: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Events of each history, int64 [g]."""
        return self.offsets[1:] - self.offsets[:-1]


class Histories:
    """The events that may be seen once some warm sets are finished, in memory on the rank's device.

    It holds 5 bytes per event that may be seen and 4 (8 from 2^31 events on) per event of the folder.

    Args:
        prepared: the data set.
        num_finished: how many of `warm_a`, `warm_b`, `warm_c` are finished: rows of the others are left out.
        length: L, a history is the last L such events; 0 takes all.
        device: where histories are gathered.
        scope: "before" looks at what is strictly earlier than a row; "all" at whatever may be seen but the row itself
            and rows of dropped items.
        events: "positives" leaves rows of label 0 out. A drawn negative is in no folder's events.
        gap_s: `History.earlier` counts events that are more than so many seconds older than a row; below 0, all that
            stand before it.
    """

    def __init__(
        self,
        prepared: Prepared,
        num_finished: int,
        length: int,
        device: torch.device,
        scope: Scope = "before",
        events: Events = "positives",
        gap_s: float = -1.0,
    ) -> None:
        self._prepared = prepared
        self._length = length
        self._scope = scope
        self._gap_s = gap_s
        self.moment_type = np.int64 if gap_s >= 0 else np.int32
        kept = self.load("phases") <= num_finished
        if scope == "all":
            kept &= self.load("items") < prepared.num_stored_items
        labels = self.load("labels")
        offsets, items = self.load("offsets"), self.load("items")
        is_whole = (
            (len(offsets), len(items), len(labels)) == (prepared.manifest["num_users"] + 1, *[len(kept)] * 2)
            and offsets[0] == 0
            and offsets[-1] == len(kept)
            and bool((offsets[1:] >= offsets[:-1]).all())
            and (not len(items) or (items.min() >= 0 and items.max() <= prepared.num_stored_items))
        )
        if not is_whole:
            raise UserError(f"{prepared.path / FOLDER}: contradicts itself: delete its folder to have it prepared anew")
        if events == "positives":
            kept &= labels != 0
        small = len(kept) < 2**31
        # Position of an event among those that may be seen.
        place = np.zeros(len(kept) + 1, np.int32 if small else np.int64)
        np.cumsum(kept, out=place[1:])
        self._place = torch.from_numpy(place).to(device)
        # Of users who came after the data was prepared, and of nobody: empty histories.
        others = np.full(1 + prepared.num_users - prepared.num_stored_users, len(kept))
        self._offsets = torch.from_numpy(np.append(offsets, others)).to(device)
        items = items[kept]
        items[items == prepared.num_stored_items] = prepared.num_items
        self._items = torch.from_numpy(items).to(device)
        self._labels = torch.from_numpy(labels[kept]).to(device)

    def load(self, name: str) -> np.ndarray:
        """Returns one of the arrays of the folder."""
        return np.load(self._prepared.whole(f"{FOLDER}/{name}.npy"), mmap_mode="r")

    def before(self, split: str, start: int, stop: int) -> np.ndarray:
        """Returns the moment of each of the rows [start, stop) of a split: how many events of its user stand before it.

        With a gap, 2^32 times the number of those that are older than it by more than the gap is added.
        """
        before = np.array(self.load(f"before-{split}")[start:stop])
        return before if self._gap_s < 0 else before + (self._settled(split, start, stop, before) << 32)

    def _settled(self, split: str, start: int, stop: int, before: np.ndarray) -> np.ndarray:
        """Says how many events of its user are older than each row by more than the gap [n], int64: by halving."""
        columns = self._prepared.read_rows(split, start, stop, ("user", "time"))
        limit = columns["time"] - round(self._gap_s * self._prepared.ticks_per_s)
        times, first = self.load("times"), self.load("offsets")[columns["user"]]
        low, high = np.zeros(len(before), dtype=np.int64), before.astype(np.int64)
        for _ in range(int(before.max(initial=0)).bit_length()):
            middle = (low + high) // 2
            is_open = low < high
            is_older = is_open & (times[np.where(is_open, first + middle, 0)] < limit)
            low, high = np.where(is_older, middle + 1, low), np.where(is_open & ~is_older, middle, high)
        return low

    def of(self, users: torch.Tensor, before: torch.Tensor, in_pretrain: bool) -> History:
        """Returns the histories of rows by users [b], each of which has `before` [b] earlier events.

        Args:
            users: of the rows.
            before: the moment of each row, see `before`.
            in_pretrain: the rows are of `pretrain`, so that each is an event itself (or the negative of one, which it
                does not see either).
        """
        first, settled = self._offsets[users], before >> 32
        before = before & 0xFFFFFFFF
        at = first + before
        own = self._place[at]
        group = torch.arange(len(users), device=users.device)
        if self._scope == "before":
            return self._cut(self._place[first], own, group)
        place = (own - self._place[first]).long()
        earlier = place if self._gap_s < 0 else (self._place[first + settled] - self._place[first]).long()
        if not in_pretrain:
            return replace(self.whole(users), earlier=earlier)
        # A row of label 0 is no event where only positives are.
        is_event = (self._place[(at + 1).clamp(max=len(self._place) - 1)] > own).to(own.dtype)
        # Two pieces of each history, before the row itself and after it: masks take thrice as long.
        first, stop = self._place[first], self._place[self._offsets[users + 1]]
        firsts, stops = torch.stack([first, own + is_event], 1), torch.stack([own, stop], 1)
        items, labels, offsets = self._events(firsts.flatten(), (stops - firsts).flatten().long())
        return History(items, labels, offsets[::2].contiguous(), group, earlier)

    def whole(self, users: torch.Tensor) -> History:
        """Gives the histories of users [b] as of now, all that may be seen, all earlier; rows of one user share one."""
        distinct, group = torch.unique(users, return_inverse=True)
        return self._cut(self._place[self._offsets[distinct]], self._place[self._offsets[distinct + 1]], group)

    def _cut(self, first: torch.Tensor, stop: torch.Tensor, group: torch.Tensor) -> History:
        """Returns histories of the events from `first` to `stop` - 1, the last L of them."""
        if self._length:
            first = torch.maximum(first, stop - self._length)
        lengths = (stop - first).long()
        return History(*self._events(first, lengths), group, lengths[group])

    def _events(self, first: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns items and labels of runs of events [h], run after run, and where each run begins, [runs + 1]."""
        offsets = F.pad(torch.cumsum(lengths, 0), (1, 0))
        events = torch.repeat_interleave(first - offsets[:-1], lengths)
        events += torch.arange(len(events), device=events.device)
        return self._items.index_select(0, events).long(), self._labels.index_select(0, events).float(), offsets
