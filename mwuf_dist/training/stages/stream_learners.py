"""Who scores a day's rows of the stream and learns from them: a method by the rule, or the base trained anew."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow.compute as pc
import torch

from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.schema import USER_ID
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.files import remove
from mwuf_dist.training.item_rule.first_rows import first_rows
from mwuf_dist.training.item_rule.frozen_items import FrozenModel
from mwuf_dist.training.item_rule.rule import item_groups, rule_of

if TYPE_CHECKING:
    from mwuf_dist.training.run import Run

_LEARNED_ROWS = 1 << 15  # at once, unless one item has more
Log = dict[str, np.ndarray]


class Learner(Protocol):
    """Who scores a day's rows and learns from them."""

    def begin(self, day: int) -> None:
        """Begins a day: whatever is learned from has been seen before it."""
        ...

    def logits(self, rows: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns logits of items [n] for users [n] at the moment of some rows of `test` [n]."""
        ...

    def learn(self, rows: np.ndarray) -> None:
        """Learns from a day's rows, places in `test` [n]."""
        ...


class Warmed:
    """Learns by the rule of the daily job.

    Args:
        job: whose model.
        log: the rows of `test`.
    """

    def __init__(self, job: Run, log: Log) -> None:
        self._job, self._log, self._num_old = job, log, job.prepared.num_old_items
        model, prepared = job.model, job.prepared
        self._histories = model.histories(prepared, 0)
        self._before = None if self._histories is None else self._histories.before("test", 0, len(log["item"]))
        self._frozen = FrozenModel(job, model.users, model.items, self._histories)
        self._num_known = next(field.size for field in prepared.fields if field.name == USER_ID) - 1
        self._rule = rule_of(job.config, prepared)
        new = torch.arange(self._num_old, prepared.num_items, device=model.runtime.device)
        keys = id_keys(prepared.raw_ids("item").slice(self._num_old))
        self._first = first_rows(job, self._frozen.method, new, keys, self._frozen.item_fields).cpu().clone()
        self._rows, self._at_boundary = self._first.clone(), self._first.clone()
        num_new = prepared.num_items - self._num_old
        self._boundary, self._counts = np.zeros(num_new, dtype=np.int64), np.zeros(num_new, dtype=np.int64)
        # Places of each item's rows, one item after another, each in order.
        self._order = np.argsort(log["item"], kind="stable")
        self._starts = np.searchsorted(log["item"][self._order], np.arange(self._num_old, prepared.num_items))

    def begin(self, day: int) -> None:
        """See `Learner.begin`: takes U(v) from the rows of earlier days."""
        del day
        method, num_items = self._job.method, self._job.prepared.num_items
        if not method.meta_trained:
            return
        seen = self._places(np.arange(len(self._counts)))
        label = self._log["label"][seen]
        seen = seen[self._job.prepared.is_event(label, self._job.config.data.events)]
        # A user of a later day is the unknown one, whose row is the mean user's.
        user = self._log["user"][seen]
        users = ItemUsers.of_rows(np.where(user < self._num_known, user, -1), self._log["item"][seen], num_items)
        self._job.frozen.set_users(users, range(self._num_old, num_items))

    @torch.no_grad()
    def logits(self, rows: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `Learner.logits`."""
        job, device = self._job, self._job.runtime.device
        frozen = job.frozen
        user, item = (torch.from_numpy(one.astype(np.int64)).to(device) for one in (users, items))
        is_new = item >= self._num_old
        distinct, inverse = torch.unique(item, return_inverse=True)
        new = (distinct - self._num_old).clamp(min=0)
        moved = self._rows.to(device)[new]
        warm = job.method.warm_rows(moved, *frozen.inputs(distinct))
        old = job.model.old_ids.rows(distinct * (distinct < self._num_old))
        embedding = torch.where(is_new[:, None], warm[inverse], old[inverse])
        history = None
        if self._histories is not None and self._before is not None:
            before = torch.from_numpy(self._before[rows].astype(np.int64)).to(device)
            history = self._histories.of(user, before, in_pretrain=False)
        return frozen.logit(embedding, frozen.part(user, item, history)).double().cpu().numpy()

    def learn(self, rows: np.ndarray) -> None:
        """See `Learner.learn`: moves the rows of the items that were seen that day."""
        touched, num = np.unique(self._log["item"][rows] - self._num_old, return_counts=True)
        self._counts[touched] += num
        counts = self._counts[touched]
        for group in item_groups(counts, _LEARNED_ROWS):
            self._learn(touched[group], counts[group])

    def _learn(self, new: np.ndarray, counts: np.ndarray) -> None:
        places = self._places(new)
        is_fitted = self._frozen.method.fits_items
        index = torch.from_numpy(new)
        start = (self._first if is_fitted else self._at_boundary)[index].numpy()
        boundary = self._boundary[new]
        frozen = self._frozen.of(self._rule, new + self._num_old, counts, boundary, self._log["user"][places])
        everyone, labels = np.arange(len(new)), self._log["label"][places]
        made = self._frozen.rows(self._rule, frozen, everyone, start, boundary, counts, np.zeros_like(counts), labels)
        self._rows[index], self._at_boundary[index] = made.rows.cpu(), made.at_boundary.cpu()
        self._boundary[new] = made.boundary

    def _places(self, new: np.ndarray) -> np.ndarray:
        """Returns places of the rows of some new items [m] that have been learned from, item by item, each in order."""
        counts = self._counts[new]
        shift = np.repeat(self._starts[new] - (np.cumsum(counts) - counts), counts)
        return self._order[shift + np.arange(len(shift))]


class Retrained:
    """The base, trained from scratch on all rows before every n-th day."""

    def __init__(self, job: Run) -> None:
        self._job, self._block = job, -1
        self._open = contextlib.ExitStack()
        self._item = self._user = np.empty(0, dtype=np.int64)

    def begin(self, day: int) -> None:
        """See `Learner.begin`: trains anew where a block of n days begins."""
        block = day // self._job.config.data.stream.retrain_every_days
        if block == self._block:
            return
        self._block = block
        self._open.close()
        more = block * self._job.config.data.stream.retrain_every_days
        self._anew = self._open.enter_context(_trained_anew(self._job, more))
        own, anew = self._job.prepared, self._anew.prepared
        self._item, self._user = (
            pc.index_in(own.raw_ids(side), value_set=anew.raw_ids(side)).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
            for side in ("item", "user")
        )

    @torch.no_grad()
    def logits(self, rows: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `Learner.logits`."""
        del rows
        job = self._anew
        device, frozen = job.runtime.device, job.frozen
        user, item = (
            torch.from_numpy(one.astype(np.int64)).to(device) for one in (self._user[users], self._item[items])
        )
        is_old = (item < job.prepared.num_old_items)[:, None]
        row = torch.where(is_old, job.model.old_ids.rows(item * is_old[:, 0]), job.model.mean_old_row())
        history = None if (histories := job.model.histories(job.prepared, 0)) is None else histories.whole(user)
        return frozen.logit(row, frozen.part(user, item, history)).double().cpu().numpy()

    def learn(self, rows: np.ndarray) -> None:
        """See `Learner.learn`: nothing, before the next training."""


@contextlib.contextmanager
def _trained_anew(job: Run, num_days: int) -> Iterator[Run]:
    """Yields the base on the rows of so many more days, trained from scratch; what it leaves is removed behind it."""
    clock, folder, runtime = time.perf_counter(), job.folder / "retrained", job.runtime
    later = dataclasses.replace(job.config.data.stream, retrain_every_days=0)
    later = dataclasses.replace(later, pretrain_days=later.pretrain_days + num_days)
    config = dataclasses.replace(job.config, data=dataclasses.replace(job.config.data, stream=later))
    runtime.on_main(lambda: remove(folder))
    runtime.on_main(lambda: prepare(config.data))
    anew = type(job)(config, folder, runtime, prepare(config.data))
    with contextlib.closing(anew.session.recorder), anew.session.checkpointer:
        anew.pretrain(None)
        anew.meta_train()
    samples = anew.session.meta.stages["pretrain"]["samples"]
    job.session.count("pretrain", int(samples), time.perf_counter() - clock)
    yield anew
    runtime.barrier()
    runtime.on_main(lambda: remove(folder))
