"""What the rows of a batch look up: their IDs alone say it, so that one exchange can fetch all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from mwuf_dist.data.batches.histories import History
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.embeddings.sharded_lookups import Want, ask_ahead, fetch_ahead

Ids = TypeVar("Ids")


@dataclass(frozen=True)
class HistoryIds:
    """Holds the distinct items of some histories, and maybe some more.

    Attributes:
        history: whose events they are of.
        index: of each event, which of the n items is its own [h].
        is_new: which items are new ones, bool [n].
        is_known: which items are not the unknown one, bool [n].
        old: their rows of phi_old, 0 for a new item [n].
        new: their rows of phi_new, 0 for all but new items [n].
        fields: whose fields are theirs, 0 for the unknown one [n].
    """

    history: History
    index: torch.Tensor
    is_new: torch.Tensor
    is_known: torch.Tensor
    old: torch.Tensor
    new: torch.Tensor
    fields: torch.Tensor


@dataclass(frozen=True)
class BatchIds:
    """Lists what `pretrain` looks up for the b rows of a batch.

    Attributes:
        old: rows of phi_old [n].
        item: which of them each row has [b].
        fields: items whose fields are looked up [m].
        item_fields: which of them each row has [b].
        user: [b].
        values: of each field of the rows themselves [b].
        history: for a backbone that looks at histories: `old` and maybe `fields` are its too.
    """

    old: torch.Tensor
    item: torch.Tensor
    fields: torch.Tensor
    item_fields: torch.Tensor
    user: torch.Tensor
    values: tuple[torch.Tensor, ...]
    history: HistoryIds | None = None


@dataclass(frozen=True)
class FrozenIds:
    """Lists what later stages look up for b rows.

    Attributes:
        items: distinct items [n].
        index: which of them each row has [b].
        parts: rows of the table of frozen parts, whose sum is a row's [b] each.
        values: of each field of the rows themselves [b].
        history: for a backbone that looks at histories.
        inputs: what h and g read of the n items, where it has been looked up: item fields [n, Fi*D], mean users [n, D].
    """

    items: torch.Tensor
    index: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...] = ()
    history: HistoryIds | None = None
    inputs: tuple[torch.Tensor, torch.Tensor] | None = None


class Fetches(Generic[Ids]):
    """Fetches what steps look up, each in one exchange, and has that of the next asked for with the present gradients.

    Args:
        find: what a batch looks up.
        wants: of that, in which tables.
    """

    def __init__(self, find: Callable[[Batch], Ids], wants: Callable[[Ids], Sequence[Want]]) -> None:
        self._find, self._wants = find, wants
        self._following: tuple[torch.Tensor, Ids] | None = None  # with the batch's items, by which it is known again

    def fetched(self, batch: Batch, following: Batch | None = None) -> Ids:
        """Finds what a batch looks up, and fetches it. A collective.

        Args:
            batch: of this step.
            following: of the next one, if that is known.
        """
        known, self._following = self._following, None
        ids = known[1] if known is not None and known[0] is batch.item else self._find(batch)
        fetch_ahead(self._wants(ids))
        if following is not None:
            self._following = following.item, self._find(following)
            ask_ahead(self._wants(self._following[1]))
        return ids
