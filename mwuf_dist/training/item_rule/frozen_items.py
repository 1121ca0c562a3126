"""The frozen model in float64 as the rule reads it, and the rule applied to some of its items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.training.item_rule.first_rows import Trained, frozen_method, regenerated_rows
from mwuf_dist.training.item_rule.rule import (
    FEWEST_ROWS,
    WarmedRows,
    WarmRule,
    fitted_rows,
    fitted_variances,
    frozen_double,
    module_slope,
    places_of,
    warm_rows,
)

# Interactions whose histories are encoded at once.
_ENCODED_ROWS = 1 << 13


class FrozenModel:
    """A run's model with everything frozen but the item embedding, in float64.

    Args:
        run: whose model and method.
        users, items: fields of all users and items that there are by now; the last user is the unknown one.
        histories: what the users look back at, as of the end of the run; None for a backbone that looks at none.
    """

    def __init__(self, run: Trained, users: FeatureStore, items: FeatureStore, histories: Histories | None) -> None:
        self._run, self._users, self._items, self._histories = run, users, items, histories
        self.backbone = frozen_double(run.model.backbone)
        self.method = frozen_method(run, items, self.item_fields)
        head = None if self.method.fits_items else self.backbone.fold()  # pyright: ignore[reportCallIssue]
        self._head = head if isinstance(head, FoldedHead) else None
        self._slope = module_slope(self.backbone) if self._head is None else self._head.gradient

    def item_fields(self, items: torch.Tensor) -> torch.Tensor:
        """Returns field embeddings [n, Fi*D] of items [n], float64."""
        with torch.no_grad():
            model = self._run.model
            return model.vector_fields(
                model.item_tables(self._items.features(items)), self._items.vectors, items
            ).double()

    def rows(
        self,
        rule: WarmRule,
        frozen: FrozenItems,
        ours: np.ndarray,
        start: np.ndarray,
        boundary: np.ndarray,
        counts: np.ndarray,
        missing: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> WarmedRows:
        """Applies the rule to some items of a group: no lookup, so that ranks need not keep step.

        Args:
            rule: the numbers.
            frozen: of the group.
            ours: which of its items [S].
            start: of all items of the group, see `rule.warm_rows`.
            boundary: likewise.
            counts: likewise.
            missing: likewise.
            labels: of all its interactions [n].
            weights: what they count in the loss [n]; None: 1.
        """
        place, device = places_of(counts, ours), self._run.model.runtime.device
        rows = torch.from_numpy(start[ours]).to(device)
        counted = None if weights is None else weights[place]

        def parts(needed: np.ndarray) -> torch.Tensor:
            return frozen.parts(place[needed])

        if self.method.fits_items:
            return fitted_rows(self.method, self.backbone, rows, counts[ours], parts, labels[place], counted)
        fields = frozen.item_fields[torch.from_numpy(ours).to(device)]

        def finish(index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return regenerated_rows(self.method, rows, fields[index])

        regenerate = finish if self.method.regenerates else None
        sizes = boundary[ours], counts[ours]
        return warm_rows(rule, self._slope, rows, *sizes, parts, labels[place], regenerate, missing[ours], counted)

    def variances(
        self, frozen: FrozenItems, rows: np.ndarray, counts: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Gives the posterior's variances [g, D], float32, of the rows [g, D] of a group with so many interactions [g].

        `weights` are what the interactions count in the loss, one item's after another's; None: 1.
        """
        there = torch.from_numpy(rows).to(self._run.model.runtime.device)
        return fitted_variances(self.method, self.backbone, there, counts, frozen.parts, weights).cpu().numpy()

    def of(
        self,
        rule: WarmRule,
        items: np.ndarray,
        counts: np.ndarray,
        boundary: np.ndarray,
        users: np.ndarray,
        values: np.ndarray | None = None,
    ) -> FrozenItems:
        """Looks up what is frozen of a group of items [g] and their interactions [n], on every rank alike.

        Args:
            rule: the numbers.
            items: the group.
            counts: number of interactions of each [g]; they stand one after another.
            boundary: how many of them are not needed [g].
            users: of the interactions [n], -1 of one never seen.
            values: fields of the interactions themselves [n, Fr]; None where they have none.
        """
        model = self._run.model
        place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        needed = np.flatnonzero((place >= np.repeat(boundary, counts)) | rule.carry_over | self.method.fits_items)
        unknown, device = self._users.num_rows - 1, model.runtime.device
        user = np.where(users < 0, unknown, users).astype(np.int64)
        distinct, inverse = np.unique(user[needed], return_inverse=True)
        of_row = np.zeros(len(user), dtype=np.int64)
        of_row[needed] = inverse
        # Never so few rows that a product of them would add in another order.
        distinct = np.append(distinct, np.full(FEWEST_ROWS, unknown))
        item = torch.from_numpy(np.append(items, np.repeat(items[:1], FEWEST_ROWS))).to(device)
        item_of, user_of = (
            torch.from_numpy(array).to(device) for array in (np.repeat(np.arange(len(items)), counts), of_row)
        )
        with torch.no_grad():
            user_side = model.user_tables(self._users.features(torch.from_numpy(distinct).to(device))).double()
            item_side = self.item_fields(item)
        if self._head is not None:
            sides = self._head.item_part(item_side), self._head.user_part(user_side)
            return FrozenItems(item_side, sides, True, item_of, user_of, None)
        own = None
        if model.rows:
            own = self.own_fields(values, needed, len(user))
        encoded = None
        if self._histories is not None:
            encoded = user_side.new_zeros(len(user), model.backbone.history_width)
            by_user = needed[np.argsort(user[needed], kind="stable")]  # so that what is made of a history is made once
            for part in np.split(by_user, range(_ENCODED_ROWS, len(by_user), _ENCODED_ROWS)):
                index = torch.from_numpy(part).to(device)
                between = [] if own is None else [own[index]]
                context = torch.cat([item_side[item_of[index]], *between, user_side[user_of[index]]], dim=1)
                encoded[index] = self._encoded(torch.from_numpy(user[part]).to(device), context)
        return FrozenItems(item_side, (item_side, user_side), False, item_of, user_of, encoded, own)

    @torch.no_grad()
    def unknown_user(self) -> torch.Tensor:
        """Looks up field embeddings [Fu*D], float64, of a user of whom nothing is known. A collective."""
        # Never so few rows that a product of them would add in another order.
        nobody = torch.full((FEWEST_ROWS,), self._users.num_rows - 1, device=self._run.model.runtime.device)
        return self._run.model.user_tables(self._users.features(nobody)).double()[0]

    @torch.no_grad()
    def own_fields(self, values: np.ndarray | None, needed: np.ndarray, num_rows: int) -> torch.Tensor:
        """Looks up embeddings of the interactions' own fields [n, Fr*D], float64; zeros where not needed."""
        model = self._run.model
        own = np.zeros((num_rows, len(model.rows)), np.int64) if values is None else values.astype(np.int64)
        distinct, inverse = np.unique(own[needed], axis=0, return_inverse=True)
        padded = np.concatenate([distinct, np.zeros((FEWEST_ROWS, own.shape[1]), np.int64)])
        device = model.runtime.device
        found = model.row_fields(torch.from_numpy(padded).to(device), len(padded)).double()
        out = found.new_zeros(num_rows, found.shape[1])
        out[torch.from_numpy(needed).to(device)] = found[torch.from_numpy(inverse.reshape(-1)).to(device)]
        return out

    @torch.no_grad()
    def _encoded(self, users: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Encodes users' histories [b, W] as they were at the end of the run, for fields [b, F*D].

        In float64, rounded to float32: the company of a row, by which padding differs, changes last bits of the former.
        """
        assert self._histories is not None
        company = torch.arange(FEWEST_ROWS, device=users.device) % self._run.prepared.num_users
        padded = F.pad(context, (0, 0, 0, FEWEST_ROWS))
        with self._run.model.item_tables.as_if_shared():  # or a row would depend on the number of ranks
            history = self._run.model.embedded_history(self._histories.whole(torch.cat([users, company])))
        fields = None if history.fields is None else history.fields.double()
        doubled = replace(history, labels=history.labels.double(), rows=history.rows.double(), fields=fields)
        return self.backbone.encode(doubled, padded)[: len(users)].float().double()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class FrozenItems:
    """Holds what is frozen of a group of items and their n interactions, in float64.

    Attributes:
        item_fields: of each item (and some more) [g, Fi*D].
        sides: (of the items [g, P], of the users [u, P]).
        is_folded: they are to be summed, for a folded head; else they stand side by side.
        item_of, user_of: place of each interaction's item and user in them [n].
        encoded: what the backbone makes of its history [n, W]; None for one that looks at none.
        own: field embeddings of each interaction itself [n, Fr*D]; None where interactions have no fields.
    """

    item_fields: torch.Tensor
    sides: tuple[torch.Tensor, torch.Tensor]
    is_folded: bool
    item_of: torch.Tensor
    user_of: torch.Tensor
    encoded: torch.Tensor | None
    own: torch.Tensor | None = None

    def parts(self, places: np.ndarray) -> torch.Tensor:
        """Returns frozen parts of some interactions [m, P]."""
        index = torch.from_numpy(places).to(self.item_of.device)
        of_item, of_user = self.sides[0][self.item_of[index]], self.sides[1][self.user_of[index]]
        if self.is_folded:
            return of_item.add_(of_user)
        encoded = [] if self.encoded is None else [self.encoded[index]]
        own = [] if self.own is None else [self.own[index]]
        return torch.cat([of_item, *own, of_user, *encoded], dim=1)
