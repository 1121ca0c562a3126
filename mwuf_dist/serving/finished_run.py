"""A finished run, opened to be used: `with open_run(folder) as run: run.warm_embeddings(items)`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import PHASES, WARM_SETS, Config, UserError
from mwuf_dist.data.batches.histories import Histories, History
from mwuf_dist.data.schema import Side
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.user_means import ItemUsers, is_range, mean_users
from mwuf_dist.methods import Method, build_method
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.runtime.uncaught import tell_user_errors
from mwuf_dist.serving import served_state
from mwuf_dist.serving.deltas import hashes
from mwuf_dist.serving.deltas.pending import load_state
from mwuf_dist.serving.indices import WHY_ABSENT, Indices, RowValues, checked_indices, place_of, row_indices
from mwuf_dist.serving.run_files import chain_of, load_with_state, open_prepared, read_run
from mwuf_dist.serving.served_state import SERVED, Grown, WarmState
from mwuf_dist.training.checkpoint.files import load_tensors
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.model import Model, pretrained_items
from mwuf_dist.training.stages.meta_train import meta_trained_tensors
from mwuf_dist.training.stages.pretrain import pretrained_tensors

# What an item's phase code counts in: the phases of new items, then the word for old ones.
PHASE_NAMES = (*PHASES, "old")
OLD = len(PHASES)
_ROWS = 1 << 16  # scored at once


@dataclass
class FinishedRun:
    """A run whose last phase is done, restored in this process.

    Items and users are named by their index: old items are 0 to num_old_items - 1, new ones follow. `index_of` finds
    the index of a raw ID. Nothing here changes the run's folder.

    Wherever items or users are asked for, any integers do: a tensor, an array or a list of one dimension. An index
    that does not exist is an IndexError, what is no integer a TypeError; both are UserErrors, as another shape is.

    Attributes:
        folder: of the run.
        config: of the run.
        results: what `results.json` holds.
        prepared: its data.
        model: theta and the tables, as the run left them, in eval mode.
        method: with the meta networks as the run left them.
        state: what `mwuf warm` has added since; None where it has never been called.
        run_rows: rows of phi_new as the run left them [num_run_items, D], where `state` has changed some.
    """

    folder: Path
    config: Config
    results: dict[str, Any]
    prepared: Prepared
    model: Model
    method: Method
    state: WarmState | None = None
    run_rows: torch.Tensor | None = None

    @property
    def num_items(self) -> int:
        """Old and new items."""
        return self.prepared.num_items

    @property
    def num_old_items(self) -> int:
        """Items with a smaller index than this are old."""
        return self.prepared.num_old_items

    @property
    def phase(self) -> str:
        """The phase in which the run's own new items are: its last one."""
        return PHASES[-1]

    @cached_property
    def item_ids(self) -> pa.Array:
        """Raw IDs of all items [I], in the order of the index; null of one that has been retired."""
        ids = self.prepared.raw_ids("item")
        return ids if self.state is None else pa.concat_arrays([self.state.run_ids(ids), self.state.ids])

    def served_items(self, old_items: bool) -> np.ndarray | range:
        """Returns indices of the items that are served, the new ones or all: those that have not been retired."""
        items = range(0 if old_items else self.num_old_items, self.num_items)
        if not self.item_ids.null_count:
            return items
        return items.start + np.flatnonzero(self.item_ids[items.start :].is_valid().to_numpy(zero_copy_only=False))

    @property
    def version(self) -> dict[str, Any]:
        """Names the state for deltas, as `export.json` has it: chain, number of the last delta, hash."""
        chain = chain_of(self.folder)
        if self.state is None:
            return {"chain": chain, "number": 0, "hash": hashes.text_of(hashes.EMPTY)}
        text = self.state.hash or hashes.text_of(hashes.hash_of(self.state, self.prepared.raw_ids("item")))
        return {"chain": chain, "number": self.state.number, "hash": text}

    @cached_property
    def user_ids(self) -> pa.Array:
        """Raw IDs of the users [U], in the order of the index: those of the run, then those who came later."""
        ids = self.prepared.raw_ids("user")
        later = None if self.state is None else self.state.users
        return ids if later is None else pa.concat_arrays([ids, later.ids])

    @property
    def old_item_ids(self) -> list[Any]:
        """Raw IDs of the old items."""
        return self.item_ids[: self.num_old_items].to_pylist()

    @property
    def new_item_ids(self) -> list[Any]:
        """Raw IDs of the new items."""
        return self.item_ids[self.num_old_items :].to_pylist()

    def index_of(self, raw_id: object, side: Side = "item") -> int:
        """Returns index of the item, or user, with this raw ID (in any form in which logs may write it).

        Raises:
            UserError: the run has none, or there is no such side.
        """
        ids = {"item": self.item_ids, "user": self.user_ids}.get(side)
        if ids is None:
            raise UserError(f"side {str(side)[:80]!r}: it is 'item' or 'user'")
        found = place_of(raw_id, ids)
        if found < 0:
            like = repr(ids[0].as_py()) if len(ids) else "nothing: there are none"
            raise UserError(f"{self.folder}: no {side} {str(raw_id)[:80]!r}. {WHY_ABSENT[side]}; IDs look like {like}")
        return found

    @cached_property
    def num_interactions(self) -> np.ndarray:
        """Rows of each item that the model has seen [I], int64: `pretrain` for old items, the warm sets for new.

        Drawn negatives do not count.
        """
        counts = np.zeros(self.num_items, dtype=np.int64)
        for split in ("pretrain", *WARM_SETS, *self.served_splits):
            for part in self.prepared.in_parts(split, ["item", "label"]):
                counted = part["item"][self.prepared.is_counted(part["label"])]
                counts += np.bincount(counted, minlength=self.num_items)
        return counts

    def phase_codes(self, items: Indices) -> np.ndarray:
        """Returns codes [n] uint8 in `PHASE_NAMES` of the phases of items [n]."""
        index = self._items(items).cpu().numpy()
        codes = np.where(index < self.num_old_items, OLD, PHASES.index(self.phase)).astype(np.uint8)
        if self.state is not None:
            later = index >= self.state.num_run_items
            codes[later] = served_state.phases_of(self.num_interactions[index[later]], self.config.data.warm_rows)
        return codes

    @property
    def served_splits(self) -> tuple[str, ...]:
        """The log of `mwuf warm` as one more split."""
        return () if self.state is None else (SERVED,)

    @cached_property
    def mean_user(self) -> torch.Tensor:
        """Embedding of the mean user [D]."""
        return self.model.mean_user()

    @cached_property
    def _users(self) -> ItemUsers:
        return ItemUsers(self.prepared, (*WARM_SETS, *self.served_splits), events=self.config.data.events)

    @torch.no_grad()
    def meta_inputs(self, items: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (item fields [n, Fi*D], mean users [n, D]) of new items [n]: what the meta networks read."""
        items = self._items(items)
        users = mean_users(self._users, items, self.model.user_tables, self.mean_user, self.model.runtime)
        return self.model.item_fields(items), users

    @torch.no_grad()
    def warm_embeddings(self, items: Indices) -> torch.Tensor:
        """Returns warm embeddings [n, D] of new items [n]: what the run scored them with in its last phase.

        Raises:
            UserError: an item is old.
        """
        items = self._items(items)
        if len(items) and int(items.min()) < self.num_old_items:
            raise UserError(f"item {int(items.min())} is old and has no warm embedding: see `embeddings`")
        table = self.model.new_ids.whole("new")
        if table is None:
            rows = self.model.new_ids.rows(items)
        else:  # neighbours need not be copied
            rows = table[int(items[0]) : int(items[0]) + len(items)] if is_range(items.cpu()) else table[items]
        return self.method.warm_rows(rows, *self.meta_inputs(items))

    @torch.no_grad()
    def embeddings(self, items: Indices) -> torch.Tensor:
        """Looks up what the backbone reads of items [n]: warm embeddings of new ones, rows of phi_old of old ones.

        An old item that `mwuf warm --old-items` has moved has the row that it has moved to.
        """
        items = self._items(items)
        is_old = items < self.num_old_items
        if not bool(is_old.any()):
            return self.warm_embeddings(items)
        out = torch.empty(len(items), self.model.dim, device=items.device)
        out[is_old] = self._old_rows(items[is_old])
        if not bool(is_old.all()):
            out[~is_old] = self.warm_embeddings(items[~is_old])
        return out

    def _old_rows(self, items: torch.Tensor) -> torch.Tensor:
        rows = self.model.old_ids.rows(items)
        moved = items[:0] if self.state is None else torch.from_numpy(self.state.rows.item).to(items.device)
        if not bool((has_moved := torch.isin(items, moved)).any()):
            return rows
        rows[has_moved] = self.model.new_ids.rows(items[has_moved])
        return rows

    @torch.no_grad()
    def context(self, users: Indices, items: Indices, rows: RowValues | None = None) -> torch.Tensor:
        """Gives the other fields' embeddings [n, F*D] of pairs: what an exported model reads beside the item embedding.

        For `rows` see `scores`. Behind, for a backbone that looks at histories, what it makes of them as of now [n, W].
        """
        users, items = self._pairs(users, items)
        person = self.model.person(users, self._row_values(rows, users))
        fields = torch.cat([self.model.item_fields(items), person], dim=1)
        if self.histories is None:
            return fields
        return torch.cat([fields, self.model.encoded_history(self.histories.whole(users), fields)], dim=1)

    @torch.no_grad()
    def item_context(self, items: Indices) -> torch.Tensor:
        """Returns the items' part of `context` [n, Fi*D]: its first columns."""
        return self.model.item_fields(self._items(items))

    @torch.no_grad()
    def user_context(self, users: Indices) -> torch.Tensor:
        """Returns the users' part of `context` [n, Fu*D + W]: its last columns.

        Raises:
            UserError: the backbone makes something else of a history for each item.
        """
        users = self._of_side(users, "user")
        history = None if self.histories is None else self.histories.whole(users)
        return self._user_part(self.model.user_fields(users), history)

    @torch.no_grad()
    def unknown_user_context(self) -> torch.Tensor:
        """Makes the context of a user whom the run has never seen [Fu*D + W]: the mean user's row, and no history."""
        device = self.model.runtime.device
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        fields = torch.cat([self.model.user_tables.rows_of(name, zero) for name in self.model.users.tables], dim=1)
        history = None
        if self.histories is not None:
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            history = History(nothing, nothing.float(), torch.zeros(2, dtype=torch.int64, device=device), zero, zero)
        return self._user_part(fields, history)[0]

    def _user_part(self, fields: torch.Tensor, history: History | None) -> torch.Tensor:
        if history is None:
            return fields
        # Whatever is made of a history with these is made of it without knowing the item.
        num_others = self.model.shape.num_item_fields + self.model.shape.num_row_fields
        unknown = fields.new_full((len(fields), num_others * self.model.dim), torch.nan)
        encoded = self.model.encoded_history(history, torch.cat([unknown, fields], dim=1))
        if not bool(encoded.isfinite().all()):
            raise UserError(
                f"backbone {self.config.backbone.name!r} reads a user's history differently for each item, so a user "
                "has no context of its own: score with the run itself (`FinishedRun.scores`), or export without context"
            )
        return torch.cat([fields, encoded], dim=1)

    @cached_property
    def histories(self) -> Histories | None:
        """The users' histories once all phases of the run are finished; None for a backbone that looks at none.

        They stay as they were at the end of the run, whatever `mwuf warm` brings later.
        """
        return self.model.histories(self.prepared, len(WARM_SETS))

    @cached_property
    def _frozen(self) -> Frozen:
        return Frozen(self.model, self.config.embedding)

    @torch.no_grad()
    def scores(self, users: Indices, items: Indices, rows: RowValues | None = None) -> torch.Tensor:
        """Gives logits [n], float32, of the pairs (users [n], items [n]), old items and new, with histories as of now.

        `rows` has raw values [n] of fields of the interactions, by their names; fields that it lacks are unknown.

        Raises:
            UserError: the run has no such field.
        """
        users, items = self._pairs(users, items)
        values = self._row_values(rows, users)
        parts = []
        for first in range(0, len(users), _ROWS):
            user, item = users[first : first + _ROWS], items[first : first + _ROWS]
            distinct, inverse = torch.unique(item, return_inverse=True)
            history = self.histories.whole(user) if self.histories is not None else None
            own = None if values is None else values[first : first + _ROWS]
            part = self._frozen.part(user, item, history, own)
            parts.append(self._frozen.logit(self.embeddings(distinct)[inverse], part))
        return torch.cat(parts) if parts else torch.empty(0, device=users.device)

    def _row_values(self, rows: RowValues | None, users: torch.Tensor) -> torch.Tensor | None:
        found = row_indices(rows, len(users), self.config, self.prepared)
        return None if found is None else torch.from_numpy(found).to(users.device)

    def _items(self, items: Indices) -> torch.Tensor:
        return self._of_side(items, "item")

    def _pairs(self, users: Indices, items: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        users, items = self._of_side(users, "user"), self._items(items)
        if len(users) != len(items):
            raise UserError(f"{len(users)} users and {len(items)} items are no pairs: give as many of both")
        return users, items

    def _of_side(self, indices: Indices, side: Side) -> torch.Tensor:
        """Returns indices [n] as int64 on the device of the model: native code reads wherever they point."""
        # What `warm` has written has one more row of users, which is nobody's: who is unknown, and has no history.
        num_users = self.prepared.num_users + (self.state is not None)
        num = self.num_items if side == "item" else num_users
        return checked_indices(indices, num, side, self.model.runtime.device)

    def load_state(self) -> None:
        """Reads IDs, users and numbers of interactions of all items now; else they are read when first needed."""
        _ = self.item_ids, self.num_interactions, self._users, self.mean_user

    def ids_of(self, items: np.ndarray | range) -> pa.Array:
        """Returns raw IDs [n] of the items with these indices."""
        if isinstance(items, np.ndarray):
            return self.item_ids.take(pa.array(self._items(items).cpu().numpy()))
        return self.item_ids[items.start : items.stop]


@contextlib.contextmanager
def open_run(
    folder: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto", prepared: Path | str | None = None
) -> Iterator[FinishedRun]:
    """Opens a finished run in this process.

    Args:
        folder: of the run.
        device: where its tensors are to lie; need not be the device of the training.
        prepared: see `load_run`.

    Raises:
        UserError: as `load_run`.
    """
    tell_user_errors()
    config = read_run(Path(folder))[0]
    with start(dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, device=device))) as runtime:
        yield load_run(folder, runtime, prepared=prepared)


def load_run(
    folder: Path | str, runtime: Runtime, several_ranks: bool = False, prepared: Path | str | None = None
) -> FinishedRun:
    """Restores a finished run, on as many ranks as it may have had, in one process.

    Args:
        folder: of the run.
        runtime: of this process.
        several_ranks: the caller makes the same calls with the same arguments on every rank.
        prepared: its prepared data, or the folder that holds them, where they have been moved since.

    Raises:
        UserError: the folder holds no finished run, or one of other data or of another version.
    """
    folder = Path(folder)
    config, results, checkpoint = read_run(folder)
    if runtime.world_size > 1 and not several_ranks:
        raise UserError("a finished run is opened by one process: start it without torchrun")
    data = open_prepared(folder, config, results, prepared, runtime.show_progress)
    state = load_state(folder, data.raw_ids("item"))
    if state is not None:
        data = Grown(data, state)
    model = Model(config, data, runtime)
    method = build_method(config.method, model.dim, model.shape.num_item_fields * model.dim).to(runtime.device)
    method.attach(pretrained_items(model, data))
    run_rows = None
    if state is None:
        load_tensors(checkpoint, pretrained_tensors(model) | meta_trained_tensors(model.new_ids, method))
    else:
        run_rows = load_with_state(checkpoint, model, method, state, config)
    model.backbone.eval()
    method.eval()
    for parameter in (*model.dense_parameters(), *method.parameters()):
        parameter.requires_grad_(False)
    return FinishedRun(folder, config, results, data, model, method, state, run_rows)
