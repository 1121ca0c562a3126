"""G(U(v)): the mean embedding of the users who interacted with an item, once per item and phase.

The two known faults of public code are that U(v) is built with user and item swapped, and that it holds the users of
rows that are about to be scored. Here it is built from named columns of finished sets only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from mwuf_kernels import user_mean

from mwuf_dist.config import Events
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime


class ItemUsers:
    """The users of each item over some finished sets, as one jagged array.

    Args:
        prepared: the data set.
        splits: names of finished sets.
        users_per_item: keep at most this many users of an item, a random choice; 0 keeps all.
        seed: of that choice.
        events: "positives" leaves users of rows of label 0 out. A drawn negative never counts.
    """

    def __init__(
        self,
        prepared: Prepared,
        splits: Iterable[str],
        users_per_item: int = 0,
        seed: int = 0,
        events: Events = "positives",
    ) -> None:
        parts = [_events(prepared, split, events) for split in splits]
        user = np.concatenate([np.empty(0, np.int32), *(part["user"] for part in parts)])
        item = np.concatenate([np.empty(0, np.int32), *(part["item"] for part in parts)])
        self._hold(user, item, prepared.num_items, users_per_item, seed)

    @classmethod
    def of_rows(cls, user: np.ndarray, item: np.ndarray, num_items: int) -> ItemUsers:
        """Returns the users [n] of items [n], whatever set they are from."""
        made = cls.__new__(cls)
        made._hold(user, item, num_items)
        return made

    def _hold(self, user: np.ndarray, item: np.ndarray, num_items: int, users_per_item: int = 0, seed: int = 0) -> None:
        if users_per_item:
            shuffled = np.random.default_rng([seed, 3]).permutation(len(user))
            user, item = user[shuffled], item[shuffled]
        user, offsets = _by_item(user, item, num_items)
        if users_per_item:
            counts = np.diff(offsets)
            place = np.arange(len(user)) - np.repeat(offsets[:-1], counts)
            user = user[place < users_per_item]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, users_per_item))])
        self._users = torch.from_numpy(user)
        self._offsets = torch.from_numpy(offsets)

    def counts(self) -> np.ndarray:
        """Returns the number of users of each item [I], repeats included, int64."""
        return np.diff(self._offsets.numpy())

    def of(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives (users [n], offsets [m + 1]) of the items [m]: item i's users are users[offsets[i]:offsets[i + 1]]."""
        items = items.cpu()
        start = self._offsets[items]
        lengths = self._offsets[items + 1] - start
        offsets = torch.nn.functional.pad(torch.cumsum(lengths, 0), (1, 0))
        if is_range(items):  # of neighbours nothing need be gathered
            return self._users[int(start[0]) : int(start[0] + offsets[-1])].long(), offsets
        shift = torch.repeat_interleave(start - offsets[:-1], lengths)
        return self._users[shift + torch.arange(len(shift))].long(), offsets


def _events(prepared: Prepared, split: str, events: Events) -> dict[str, np.ndarray]:
    """Returns the user and item of the rows of a split that are events."""
    columns = prepared.columns(split, ("user", "item", "label"))
    kept = prepared.is_event(columns.pop("label"), events)
    return columns if kept.all() else {name: values[kept] for name, values in columns.items()}


def _by_item(user: np.ndarray, item: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (users [n] item by item, each item's in their order; offsets [I + 1] int64) of interactions [n]."""
    assert len(item) < 1 << 32
    # NumPy sorts plain int64 with vector instructions: with key and position in one number that is faster than a
    # counting sort (scipy's tocsc), and than a stable argsort.
    key = np.left_shift(item, 32, dtype=np.int64)
    np.bitwise_or(key, np.arange(len(item), dtype=np.uint32), out=key)
    key.sort()
    user = user[key & 0xFFFFFFFF]
    key >>= 32
    return user, np.concatenate([[0], np.cumsum(np.bincount(key, minlength=num_items))])


def is_range(items: torch.Tensor) -> bool:
    """Says whether items [n] are neighbours in ascending order."""
    return len(items) > 0 and bool((items == torch.arange(int(items[0]), int(items[0]) + len(items))).all())


def mean_users(
    item_users: ItemUsers, items: torch.Tensor, user_tables: Tables, fallback: torch.Tensor, runtime: Runtime
) -> torch.Tensor:
    """Gives G(U(v)) [m, D] of items [m].

    An item without users gets `fallback` [D], the global mean user. A collective.
    """
    users, offsets = item_users.of(items)
    table = user_tables.whole("user_id")
    if table is not None:
        return user_mean(table, users.to(table.device) + 1, offsets.to(table.device), fallback)
    distinct, inverse = torch.unique(users, return_inverse=True)
    # Row 0 of the user table is the unknown user.
    device = runtime.device
    rows = user_tables.rows_of("user_id", runtime.pad(distinct.to(device) + 1))
    return user_mean(rows, inverse.to(device), offsets.to(device), fallback)
