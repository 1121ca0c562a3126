"""The model of a run: the sharded tables, the backbone on top of them, and its frozen form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.backbones import EmbeddedHistory, Shape, build_backbone
from mwuf_dist.config import Config, EmbeddingConfig, Events, MetaTrainConfig, PretrainConfig, UserError
from mwuf_dist.data.batches.histories import Histories, History
from mwuf_dist.data.batches.loader import Batch, Batches, Loader
from mwuf_dist.data.batches.order import Order
from mwuf_dist.data.batches.user_batches import UserLoader
from mwuf_dist.data.schema import SIDES, USER_ID, Field, Side
from mwuf_dist.data.shards import EntityTable, FieldColumn, Prepared
from mwuf_dist.embeddings.features import FeatureStore, without_rare_values
from mwuf_dist.embeddings.sharded_lookups import Want, fetch_ahead
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.embeddings.vector_fields import VectorFields
from mwuf_dist.methods import PretrainedItems
from mwuf_dist.runtime import Runtime, generator_seed
from mwuf_dist.training.batch_ids import BatchIds, Fetches, HistoryIds


class Model:
    """theta, the feature tables, phi_old and phi_new.

    `phi_old` has rows for old items, `phi_new` one row for every old and new item. Old items come first in the item
    index, so one index serves both. For a backbone that looks at histories, `phi_old` has one more row behind: the
    unknown item, which stands for every dropped item there and is learned in `pretrain` like the others.

    Args:
        config: sections `embedding` and `backbone`, and the seed.
        prepared: sizes and side tables.
        runtime: ranks and device.
    """

    def __init__(self, config: Config, prepared: Prepared, runtime: Runtime) -> None:
        self.runtime = runtime
        self.num_old = prepared.num_old_items
        self.num_items = prepared.num_items
        self.dim = config.embedding.dim
        self.users, self.items = (feature_store(config.embedding, prepared, side, runtime) for side in SIDES)
        self.rows = tuple(_values_of(field, runtime) for field in prepared.row_fields)
        user_id = len(self.rows) + self.users.names.index(USER_ID)
        names = (*self.items.names, *self.items.vectors)
        is_numeric = [field.ordinal for field in self.items.fields] + [True] * len(self.items.vectors)
        is_numeric += [field.ordinal for field in (*prepared.row_fields, *self.users.fields)]
        numeric = tuple(index for index, found in enumerate(is_numeric) if found)
        self.shape = Shape(self.dim, len(names), len(self.users.fields), user_id, names, len(self.rows), numeric)
        torch.manual_seed(generator_seed(config.seed, 1))  # the same dense weights on every rank
        self.backbone = build_backbone(config.backbone, self.shape).to(runtime.device)
        self.vector_fields = VectorFields(self.items.vectors, self.dim, config).to(runtime.device)
        self._history_length = self.backbone.history_length
        self._events: Events = config.data.events
        self._gap_s = self.backbone.recent_gap_s
        old_rows = self.num_old + self.backbone.uses_history

        def collection(name: str, specs: list[TableSpec], stage: PretrainConfig | MetaTrainConfig) -> Tables:
            rows_per_step = stage.batch_size // runtime.world_size
            return Tables(name, specs, config.embedding, runtime, rows_per_step=rows_per_step)

        self.user_tables = collection("user", self.users.specs(self.dim), config.pretrain)
        self.item_tables = collection("item", self.items.specs(self.dim), config.pretrain)
        self.row_tables = tuple(
            collection(f"row {store.names[0]}", store.specs(self.dim), config.pretrain) for store in self.rows
        )
        self.old_ids = collection("old", [TableSpec("old", old_rows, self.dim)], config.pretrain)
        self.new_ids = collection("new", [TableSpec("new", self.num_items, self.dim)], config.meta_train)
        # Where a new item's row in a history comes from; `mwuf warm` moves rows, and histories stay as they were.
        self.new_in_histories = self.new_ids
        for tables in self.pretrained_tables:
            tables.draw(config.embedding.init_std, config.seed)
        self.fetches = Fetches(self._ids, self._wants)

    @property
    def pretrained_tables(self) -> tuple[Tables, ...]:
        """The tables that `pretrain` trains and everything later leaves alone."""
        return self.user_tables, self.item_tables, self.old_ids, *self.row_tables

    def logit(
        self,
        batch: Batch,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
        following: Batch | None = None,
    ) -> torch.Tensor:
        """Returns logits [b] of old items' rows, with gradients to every table and weight. A collective.

        Args:
            batch: the rows.
            change: what a method does to the rows' item embeddings [b, D] (`Method.pretrain_item`); None is nothing.
            following: the batch of the next step, if that is known.
        """
        ids = self.fetches.fetched(batch, following)
        rows, fields = self.old_ids.rows(ids.old), self.item_fields(ids.fields)
        if ids.history is not None and self.backbone.uses_history_fields:
            fields = fields * ids.history.is_known[:, None]
        item, own = rows.index_select(0, ids.item), fields.index_select(0, ids.item_fields)
        context = torch.cat([own, self._person(ids.user, ids.values)], dim=1)
        item = item if change is None else change(item)
        weight = None if batch.is_full else batch.weight
        if ids.history is not None:
            embedded = self._embedded(ids.history, rows, fields)
            if self.backbone.reads_events:
                return self.backbone.in_precision(self.backbone, item, context, weight, embedded)
            encoded = self.backbone.in_precision(self.backbone.encode, embedded, context)
            context = torch.cat([context, encoded], dim=1)
        return self.backbone.in_precision(self.backbone, item, context, weight)

    def _wants(self, ids: BatchIds) -> list[Want]:
        """Says what `pretrain` looks up: once in each table, because a fused one takes a step for each lookup."""
        trains = torch.is_grad_enabled()
        return [
            Want(self.old_ids.lookups, (ids.old,), None, trains),
            Want(self.item_tables.lookups, (ids.fields,), self.items, trains),
            Want(self.user_tables.lookups, (ids.user,), self.users, trains),
            *self.wants_of_values(ids.values, trains),
        ]

    def _ids(self, batch: Batch) -> BatchIds:
        values = self.value_ids(batch.row_values, len(batch.user))
        pads = not (self.old_ids.takes_any_number and self.item_tables.takes_any_number)
        if batch.history is None:
            items, index = self.runtime.distinct(batch.item, self.num_old, pads)
            return BatchIds(items, index, items, index, batch.user, values)
        history, item = self.history_ids(batch.history, batch.item)
        fields, index = history.fields, item
        if not self.backbone.uses_history_fields:
            fields, index = self.runtime.distinct(batch.item, self.num_old, pads)
        return BatchIds(history.old, item, fields, index, batch.user, values, history)

    def histories(self, prepared: Prepared, num_finished: int) -> Histories | None:
        """Returns the histories once so many warm sets are finished; None for a backbone that looks at none."""
        if not self.backbone.uses_history:
            return None
        if self.backbone.history_scope == "all":
            # Of pretrain alone: nothing of a warm set comes in, so it does not matter what is finished.
            return Histories(prepared, 0, 0, self.runtime.device, "all", self._events, self._gap_s)
        return Histories(prepared, num_finished, self._history_length, self.runtime.device, "before", self._events)

    def pretrain_rows(self, prepared: Prepared, order: Order | Literal["users"], batch_size: int, seed: int) -> Batches:
        """Returns batches of the rows of `pretrain` in an order that the config names.

        Raises:
            UserError: the order does not go with the backbone.
        """
        if order != "users":
            histories = self.histories(prepared, 0)
            return Loader(prepared, ["pretrain"], batch_size, seed, self.runtime, order, histories)
        if self.backbone.history_scope != "all":
            raise UserError(
                "order = 'users' goes with a backbone that reads whole histories (backbone.name = 'encoder'): "
                "take 'shuffled', 'blocks' or 'time'"
            )
        return UserLoader(prepared, batch_size, seed, self.runtime, self._events, self._gap_s)

    @torch.no_grad()
    def encoded_history(self, history: History, context: torch.Tensor) -> torch.Tensor:
        """Encodes rows' histories [b, W], for rows of fields [b, F*D], all frozen. A collective."""
        return self.backbone.in_precision(self.backbone.encode, self.embedded_history(history), context)

    @torch.no_grad()
    def embedded_history(self, history: History) -> EmbeddedHistory:
        """Returns a history with its items' embeddings, all frozen. A collective.

        An old item stands in it by its row of phi_old, a new one by its row of phi_new as it is now.
        """
        ids, _ = self.history_ids(history)
        fetch_ahead(self.wants_of_history(ids))
        return self.embedded(ids)

    @torch.no_grad()
    def embedded(self, ids: HistoryIds) -> EmbeddedHistory:
        """Returns a history with its items' embeddings, as `embedded_history` does. A collective."""
        old, new = self.old_ids.rows(ids.old), self.new_in_histories.rows(ids.new)
        fields = None
        if self.backbone.uses_history_fields:
            fields = self.item_fields(ids.fields) * ids.is_known[:, None]
        return self._embedded(ids, torch.where(ids.is_new[:, None], new, old), fields)

    def _embedded(self, ids: HistoryIds, rows: torch.Tensor, fields: torch.Tensor | None) -> EmbeddedHistory:
        fields = fields if self.backbone.uses_history_fields else None
        return EmbeddedHistory(**vars(ids.history), index=ids.index, rows=rows, fields=fields)

    def history_ids(self, history: History, beside: torch.Tensor | None = None) -> tuple[HistoryIds, torch.Tensor]:
        """Finds the distinct items of histories, and of some rows `beside` them [b].

        Returns them, and which of them each of these rows has [b]. A collective where tables take only as many rows on
        every rank.
        """
        # Item 0 where there is no other, so that no lookup is empty.
        beside = history.items.new_zeros(1) if beside is None else beside
        items, inverse = self.runtime.distinct(torch.cat([beside, history.items]), self.num_items + 1)
        tables = (self.old_ids, self.new_in_histories, self.item_tables)
        if not all(one.takes_any_number for one in tables):
            items = self.runtime.pad(items)
        is_known = items < self.num_items
        is_new = is_known & (items >= self.num_old)
        old = items.masked_fill(~is_known, self.num_old) * ~is_new
        index = inverse[len(beside) :]
        ids = HistoryIds(history, index, is_new, is_known, old, items * is_new, items * is_known)
        return ids, inverse[: len(beside)]

    def wants_of_history(self, ids: HistoryIds) -> list[Want]:
        """Says what `embedded` looks up."""
        wants = [Want(self.old_ids.lookups, (ids.old,), None, False)]
        wants.append(Want(self.new_in_histories.lookups, (ids.new,), None, False))
        if self.backbone.uses_history_fields:
            wants.append(Want(self.item_tables.lookups, (ids.fields,), self.items, False))
        return wants

    def mean_old_row(self) -> torch.Tensor:
        """Returns the mean row [D] of phi_old over the old items: the common initialisation."""
        num_rows = self.old_ids.specs["old"].rows
        used = None if num_rows == self.num_old else torch.arange(num_rows) < self.num_old
        return self.old_ids.mean_row("old", used)

    @torch.no_grad()
    def mean_user(self) -> torch.Tensor:
        """Looks up the embedding of the mean user [D], for an item that nobody has interacted with. A collective.

        The unknown user's row is no one's in pretraining, so `pretrain` has left the mean user there.
        """
        unknown = torch.zeros(1, dtype=torch.int64, device=self.runtime.device)
        return self.user_tables.rows_of("user_id", unknown)[0].clone()

    def user_fields(self, users: torch.Tensor) -> torch.Tensor:
        """Returns field embeddings [n, Fu*D] of users [n]. A collective."""
        return self.users.lookup(self.user_tables, users)

    def value_ids(self, values: torch.Tensor | None, num_rows: int) -> tuple[torch.Tensor, ...]:
        """Returns what is looked up for each field of rows themselves [n], of values [n, Fr]; None: unknown ones."""
        if values is None:
            values = torch.zeros(num_rows, len(self.rows), dtype=torch.int64, device=self.runtime.device)
        return tuple(values[:, place].contiguous() for place in range(len(self.rows)))

    def wants_of_values(self, values: tuple[torch.Tensor, ...], is_trained: bool = False) -> list[Want]:
        """Says what is looked up for fields of the rows themselves."""
        stores = zip(self.rows, self.row_tables, values, strict=True)
        return [Want(tables.lookups, (ids,), store, is_trained) for store, tables, ids in stores]

    def fields_of_values(self, values: tuple[torch.Tensor, ...], num_rows: int) -> torch.Tensor:
        """Returns field embeddings [n, Fr*D] of rows with fields of their own, by `value_ids`. A collective."""
        stores = zip(self.rows, self.row_tables, values, strict=True)
        found = [store.lookup(tables, ids) for store, tables, ids in stores]
        return torch.cat(found, dim=1) if found else torch.empty(num_rows, 0, device=self.runtime.device)

    def row_fields(self, values: torch.Tensor | None, num_rows: int) -> torch.Tensor:
        """Gives field embeddings [n, Fr*D] of rows with fields of their own [n, Fr].

        None: unknown ones. A collective.
        """
        return self.fields_of_values(self.value_ids(values, num_rows), num_rows)

    def person(self, users: torch.Tensor, values: torch.Tensor | None) -> torch.Tensor:
        """Looks up what stands behind the item's fields [n, (Fr + Fu)*D]: the rows' own, the users'. A collective."""
        return self._person(users, self.value_ids(values, len(users)))

    def _person(self, users: torch.Tensor, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
        users_side = self.user_fields(users)
        return torch.cat([self.fields_of_values(values, len(users)), users_side], dim=1) if self.rows else users_side

    def item_fields(self, items: torch.Tensor) -> torch.Tensor:
        """Returns field embeddings [n, Fi*D] of items [n], without the ID. A collective."""
        return self.vector_fields(self.items.lookup(self.item_tables, items), self.items.vectors, items)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Returns weights of the backbone, and of what makes field embeddings of vectors."""
        return [*self.backbone.parameters(), *self.vector_fields.parameters()]


def feature_store(config: EmbeddingConfig, prepared: Prepared, side: Side, runtime: Runtime) -> FeatureStore:
    """Returns the fields of all users or items, as the model reads them."""
    entities = prepared.entity(side)
    if side == "item":
        entities = without_rare_values(entities, prepared.num_old_items, config.min_old_items)
    return FeatureStore(entities, runtime.device, config.smooth_ordinal)


def _values_of(field: Field, runtime: Runtime) -> FeatureStore:
    """Returns the values of a field of the rows, each an entity of its own: an index is looked up as itself."""
    own = Field(field.name, "categorical", "user", field.size)
    column = FieldColumn(own, None, np.arange(field.size, dtype=np.int32))
    return FeatureStore(EntityTable(field.size, np.arange(field.size), {field.name: column}), runtime.device)


def pretrained_items(model: Model, prepared: Prepared) -> PretrainedItems:
    """Returns the item side of a pretrained model, for `Method.attach`."""

    def num_pretrain_rows() -> torch.Tensor:
        item = prepared.columns("pretrain", ("item",))["item"]
        return torch.from_numpy(np.bincount(item, minlength=model.num_old)).float().to(model.runtime.device)

    without_gradients = torch.no_grad()
    return PretrainedItems(
        num_old=model.num_old,
        runtime=model.runtime,
        features=model.items,
        old_rows=without_gradients(model.old_ids.rows),
        context=without_gradients(model.item_fields),
        mean_old_row=model.mean_old_row,
        num_pretrain_rows=num_pretrain_rows,
    )


def loss_sum(logit: torch.Tensor, batch: Batch, row_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Sums this rank's binary cross entropies over the rows of the global batch: the ranks' sum is the mean loss.

    Args:
        logit: [b].
        batch: the rows.
        row_weight: what each weighs beside `batch.row_weight` [b]; None is 1.
    """
    weight = batch.loss_weight
    if row_weight is not None:
        weight = row_weight * (batch.weight if weight is None else weight)
    return F.binary_cross_entropy_with_logits(logit, batch.label, weight, reduction="sum") / batch.num_rows
