"""The pretrained model with everything frozen but the item embedding: what meta_train, warm_up and evaluate run on.

All that is frozen is computed once and held in tables, which shard like any other: the part of each user and of each
item in the logit, and the inputs of the meta networks. A step then looks up one bag of two rows instead of every
field, and has no backward but that of the item embedding. Measured on MovieLens-1M with DeepFM, this alone made
meta_train 2.4 times faster (prototype).

`Frozen` does it by autograd, on any device and for any backbone; `CompiledFrozen` does the same in loops that are
compiled for this CPU. `implementations.py` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from mwuf_kernels import PartRows, warm_embedding, warm_embedding_backward

from mwuf_dist.backbones import EmbeddedHistory, FoldedHead
from mwuf_dist.config import EmbeddingConfig
from mwuf_dist.data.batches.histories import History
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.embeddings.sharded_lookups import Want, fetch_ahead
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.embeddings.tiles import in_whole_tiles
from mwuf_dist.embeddings.user_means import ItemUsers, mean_users
from mwuf_dist.methods.meta_warm_up import algorithm_1_losses
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.batch_ids import Fetches, FrozenIds
from mwuf_dist.training.model import Model, loss_sum

# From item indices [n] to the embeddings [n, D] that these are scored with.
Embeddings = Callable[[torch.Tensor], torch.Tensor]
ScaleAndShift = tuple[torch.Tensor, torch.Tensor]


class Frozen:
    """Frozen parts of one pretrained model, with losses and scores by autograd.

    Args:
        model: pretrained; put into eval mode here (a BatchNorm left in train mode drifts).
        config: how tables are sharded.
    """

    implementation = "autograd"

    def __init__(self, model: Model, config: EmbeddingConfig) -> None:
        self._model = model
        self._mean_user = model.mean_user()
        model.backbone.eval()
        for parameter in model.dense_parameters():
            parameter.requires_grad_(False)
        shape, runtime = model.shape, model.runtime
        self._context_width = shape.num_item_fields * shape.dim
        self.meta_inputs = Tables(
            "meta_inputs",
            [
                TableSpec("item_context", model.num_items, self._context_width),
                TableSpec("user_mean", model.num_items, shape.dim),
            ],
            config,
            runtime,
            trained=False,
        )
        self._head = model.backbone.fold()
        assert self._head is None or not model.backbone.uses_history, "a folded head has no column for histories"
        self._num_users = model.users.num_rows
        width, num_parts = shape.num_user_fields * shape.dim, self._num_users
        if self._head is not None:
            # One table for both sides, so that a row's part is one bag of two ids.
            width, num_parts = self._head.width, self._num_users + model.num_items + self._num_served_parts(model)
        self._parts = Tables("parts", [TableSpec("parts", num_parts, width)], config, runtime, trained=False)
        self._compute_parts()

    def _num_served_parts(self, model: Model) -> int:
        """Returns parts behind those of users and items, for what `serve` makes."""
        return 0

    @property
    def model(self) -> Model:
        """The pretrained model."""
        return self._model

    @property
    def runtime(self) -> Runtime:
        """Ranks and device."""
        return self._model.runtime

    @torch.no_grad()
    def _compute_parts(self) -> None:
        model, head = self._model, self._head
        items = range(self._num_users, self._num_users + model.num_items)
        self.meta_inputs.fill("item_context", model.item_fields)
        if head is None:
            self._parts.fill("parts", model.user_fields)
            return

        def user_part(user: torch.Tensor) -> torch.Tensor:
            return head.user_part(model.user_fields(user))

        def item_part(row: torch.Tensor) -> torch.Tensor:
            return head.item_part(model.item_fields(row - self._num_users))

        self._parts.fill("parts", in_whole_tiles(user_part), range(self._num_users))
        self._parts.fill("parts", in_whole_tiles(item_part), items)

    @torch.no_grad()
    def set_users(self, item_users: ItemUsers, items: range) -> None:
        """Computes G(U(v)) of some items from the users of finished sets. A collective."""
        model = self._model

        def compute(index: torch.Tensor) -> torch.Tensor:
            return mean_users(item_users, index, model.user_tables, self._mean_user, model.runtime)

        self.meta_inputs.fill("user_mean", compute, items)

    @torch.no_grad()
    def inputs(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Looks up the item fields [n, Fi*D] and mean users [n, D] of items [n], which h and g read. A collective."""
        context, mean = self.meta_inputs.rows_by_table(items)
        return context, mean

    def distinct(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Finds the distinct ones of items [b], and which of them each row has [b].

        They are as many on every rank as lookups of phi_new and of the meta networks' inputs need.
        """
        pads = not (self._model.new_ids.takes_any_number and self.meta_inputs.takes_any_number)
        return self._model.runtime.distinct(items, self._model.num_items, pads)

    def ids(
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        history: History | None = None,
        values: torch.Tensor | None = None,
    ) -> FrozenIds:
        """Finds what rows (user [b], item [b]) look up, with what they look back at and their own fields [b, Fr]."""
        items, index = self.distinct(item)
        if self._head is not None:
            return FrozenIds(items, index, (user, item + self._num_users))
        looked_at = None if history is None else self._model.history_ids(history)[0]
        return FrozenIds(items, index, (user,), self._model.value_ids(values, len(user)), looked_at)

    def fetches(self, with_inputs: bool = False, with_rows: bool = True) -> Fetches[FrozenIds]:
        """Fetches what steps look up: frozen parts, rows of phi_new, which get gradients, maybe what h and g read."""

        def find(batch: Batch) -> FrozenIds:
            return self.ids(batch.user, batch.item, batch.history, batch.row_values)

        def wants(ids: FrozenIds) -> list[Want]:
            new = Want(self._model.new_ids.lookups, (ids.items,), None, torch.is_grad_enabled())
            # Without a head they are wanted anyway.
            inputs = [self._want_inputs(ids)] if with_inputs and self._head is not None else []
            return [*([new] if with_rows else []), *inputs, *self._wants(ids)]

        return Fetches(find, wants)

    def with_inputs(self, ids: FrozenIds) -> FrozenIds:
        """Adds what h and g read of the items, so that it is looked up once. A collective."""
        return replace(ids, inputs=self.inputs(ids.items))

    def _want_inputs(self, ids: FrozenIds) -> Want:
        return Want(self.meta_inputs.lookups, (ids.items,), None, False)

    def _wants(self, ids: FrozenIds) -> list[Want]:
        """Says what `part_of` looks up."""
        model = self._model
        inputs = [self._want_inputs(ids)] if self._head is None else []
        wants = [*inputs, Want(self._parts.lookups, ids.parts, None, False), *model.wants_of_values(ids.values)]
        return wants if ids.history is None else [*wants, *model.wants_of_history(ids.history)]

    @torch.no_grad()
    def part(
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        history: History | None = None,
        values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Looks up the frozen part [b, P] of rows (user [b], item [b]) with what they look back at. A collective.

        `values` are the rows' own fields [b, Fr]; None: unknown ones.

        A history is encoded with the rows of phi_new as they are now, without a gradient to them.
        """
        ids = self.ids(user, item, history, values)
        fetch_ahead(self._wants(ids))
        return self.part_of(ids)

    @torch.no_grad()
    def part_of(self, ids: FrozenIds) -> torch.Tensor:
        """Looks up the frozen part [b, P] of rows, as `part` does. A collective."""
        part, events = self._part_and_events(ids)
        if events is None:
            return part
        backbone = self._model.backbone
        return torch.cat([part, backbone.in_precision(backbone.encode, events, part)], dim=1)

    def _part_and_events(self, ids: FrozenIds) -> tuple[torch.Tensor, EmbeddedHistory | None]:
        """Looks up the frozen part of rows without their histories, and these. A collective."""
        if self._head is not None:
            return self._parts.bag_sums(*ids.parts), None
        model, (context, _) = self._model, ids.inputs or self.inputs(ids.items)
        own = [model.fields_of_values(ids.values, len(ids.index))] if model.rows else []
        part = torch.cat([context[ids.index], *own, self._parts.rows(*ids.parts)], dim=1)
        return part, None if ids.history is None else model.embedded(ids.history)

    @torch.no_grad()
    def _logit_of(self, ids: FrozenIds) -> Callable[[torch.Tensor], torch.Tensor]:
        """Gives what computes logits [b] of rows from their item embeddings [b, D]. A collective."""
        backbone = self._model.backbone
        if not backbone.reads_events:
            return partial(self.logit, part=self.part_of(ids))
        part, events = self._part_and_events(ids)
        return lambda item: backbone.in_precision(backbone, item, part, None, events)

    def logit(self, item_embedding: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Computes logits [b] of item embeddings [b, D] with frozen parts [b, P].

        They can be differentiated twice, those of a backbone that does not fold only `without_library`.
        """
        logit = self._model.backbone if self._head is None else self._head.logit
        return self._model.backbone.in_precision(logit, item_embedding, part)

    def losses(
        self, batch: Batch, rows: torch.Tensor, ids: FrozenIds, scale_and_shift: ScaleAndShift | None = None
    ) -> torch.Tensor:
        """Computes L_cold [1] of this rank's rows, or with a scale and a shift (L_cold, L_warm) [2], by autograd.

        See `algorithm_1_losses` for what has a gradient in what.

        Args:
            batch: the rows.
            rows: of phi_new, of n items [n, D].
            ids: of the batch, from `fetches`.
            scale_and_shift: of the n items, both [n, D].
        """
        logit, index = self._logit_of(ids), ids.index

        def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
            return loss_sum(logit(embeddings), batch)

        if scale_and_shift is None:
            return loss_of(rows.index_select(0, index)).unsqueeze(0)
        return algorithm_1_losses(warm_embedding(rows, index, *scale_and_shift), loss_of)

    def losses_and_gradients(
        self, batch: Batch, rows: torch.Tensor, ids: FrozenIds, scale_and_shift: ScaleAndShift | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Computes `losses`, and the gradients of their sum in rows, scale and shift [n, D]. Arguments as there."""
        leaves = [values.detach().requires_grad_() for values in (rows, *(scale_and_shift or ()))]
        pair = (leaves[1], leaves[2]) if scale_and_shift is not None else None
        losses = self.losses(batch, leaves[0], ids, pair)
        return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves))

    def serve(self, embeddings: Embeddings) -> None:
        """Gets new items ready to be scored with these embeddings as they are now. A collective."""
        self._embeddings = embeddings

    @torch.no_grad()
    def served_logit(
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        history: History | None = None,
        values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores pairs of users [b] and new items [b], as `serve` left these: logits [b]. A collective."""
        ids = self.ids(user, item, history, values)
        embeddings = in_whole_tiles(self._embeddings)(ids.items)
        fetch_ahead(self._wants(ids))
        return self._logit_of(ids)(embeddings[ids.index])


class CompiledFrozen(Frozen):
    """Computes losses and scores of a folded head in float32 by loops over rows that a CPU runs.

    New items stand in the table of parts a second time, with the embedding that they are scored with: see `serve`.
    """

    implementation = "compiled"

    def __init__(self, model: Model, config: EmbeddingConfig) -> None:
        super().__init__(model, config)
        self._loops = self._folded.compiled()

    @property
    def _folded(self) -> FoldedHead:
        assert self._head is not None
        return self._head

    def _num_served_parts(self, model: Model) -> int:
        return model.num_items - model.num_old

    @property
    def _first_served(self) -> int:
        return self._num_users + self._model.num_items

    @torch.no_grad()
    def losses_and_gradients(
        self, batch: Batch, rows: torch.Tensor, ids: FrozenIds, scale_and_shift: ScaleAndShift | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `Frozen.losses_and_gradients`: the loop sums up the gradients of each item on its way over the rows."""
        parts = PartRows(*self._parts.rows_once(*ids.parts))
        items = rows.unsqueeze(0)
        if scale_and_shift is not None:
            items = torch.stack(warm_embedding(rows, None, *scale_and_shift))
        d_items = torch.zeros_like(items)
        weight = batch.loss_weight
        losses = self._loops.loss_and_gradient(
            parts, items, ids.index, batch.label, weight, 1 / batch.num_rows, d_items
        )
        d_warm = None if scale_and_shift is None else d_items[1]
        found = warm_embedding_backward(d_items[0], d_warm, rows, None)
        return losses, [gradient for gradient in found if gradient is not None]

    @torch.no_grad()
    def serve(self, embeddings: Embeddings) -> None:
        """See `Frozen.serve`: puts the embeddings into the items' parts."""
        model, head = self._model, self._folded
        first_item, shift = self._num_users, self._first_served - model.num_old

        def served(row: torch.Tensor) -> torch.Tensor:
            item = row - shift
            return head.served_part(embeddings(item), self._parts.rows(item + first_item))

        rows = range(self._first_served, self._parts.specs["parts"].rows)
        self._parts.fill("parts", in_whole_tiles(served), rows)

    @torch.no_grad()
    def served_logit(
        self,
        user: torch.Tensor,
        item: torch.Tensor,
        history: History | None = None,
        values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Frozen.served_logit`."""
        # Padding is item 0, which is old: any row will do for it, and there is one there.
        item = item + (self._first_served - self._model.num_old)
        return self._loops.logits(PartRows(*self._parts.rows_once(user, item)))
