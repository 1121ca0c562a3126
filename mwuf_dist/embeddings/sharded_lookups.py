"""Looks rows up of which CPU ranks hold a part each: all that a step needs of all tables in one exchange."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from mwuf_kernels import BatchSide, backward_from, distinct_ids

from mwuf_dist.embeddings.lookups import KernelLookups, Lookup, LoopLookups, bag_sums, entity_rows
from mwuf_dist.embeddings.sharded import Fetched, Question, Shards
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.runtime import Runtime

if TYPE_CHECKING:
    from mwuf_dist.embeddings.features import FeatureStore


@dataclass(frozen=True)
class Want:
    """Says what a step will look up.

    Attributes:
        lookups: of the collection.
        ids: rows, or entities of a store, [n] each; the lookup is to name these very tensors.
        store: whose fields are wanted; None: rows.
        is_trained: whether these get gradients.
    """

    lookups: KernelLookups | LoopLookups | ShardedLookups
    ids: tuple[torch.Tensor, ...]
    store: FeatureStore | None = None
    is_trained: bool = True

    def is_of(self, store: FeatureStore | None, ids: Sequence[torch.Tensor]) -> bool:
        """Says whether it is for these very ids."""
        pairs = zip(self.ids, ids, strict=False)
        return self.store is store and len(self.ids) == len(ids) and all(one is other for one, other in pairs)

    def is_same(self, other: Want) -> bool:
        """Says whether the other wants the same, of the very same ids."""
        is_alike = self.lookups is other.lookups and self.is_trained == other.is_trained
        return is_alike and self.is_of(other.store, other.ids)


class ShardedLookups:
    """Looks rows up of which CPU ranks hold a part each; their gradients are kept until `Tables.gradients_to_send`.

    Args:
        shards: where the rows are.
        specs: the tables.
        num_segments: of each table.
    """

    implementation = "sharded"
    is_thread_safe = False

    def __init__(self, shards: Shards, specs: Sequence[TableSpec], num_segments: Sequence[int]) -> None:
        self.shards, self.num_segments = shards, num_segments
        self.firsts = [0, *itertools.accumulate(spec.rows for spec in specs)]
        self._ahead: list[_Lookup] = []
        self._trained: list[Fetched] = []
        self._asked: _Asked | None = None  # by the step before

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, sum of widths] of every table at the same ids [n]; several tables without gradients."""
        if len(self.num_segments) > 1:
            return torch.cat(list(self.rows_by_table(ids)), dim=1)
        (rows,) = self._found(None, ids).rows()
        return rows

    def rows_to_train(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, D] of the only table, for `set_gradient`."""
        return self.rows(ids)

    def set_gradient(self, ids: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor) -> None:
        """Gives the table the gradient [n, D] of `rows`, which are its rows ids [n]."""
        backward_from([rows], [d_rows])

    def rows_by_table(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        """Looks up rows [n, width] of each table at the same ids [n], without gradients."""
        assert not torch.is_grad_enabled()
        return self._found(None, ids).rows_by_table()

    def fields(self, store: FeatureStore, index: torch.Tensor) -> torch.Tensor:
        """Looks up field embeddings [n, F*D] of entities [n], of tables of one width."""
        sides = self._found(store, index).sides()
        parts = [one.embeddings if one.index is None else one.embeddings.index_select(0, one.index) for one in sides]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def sides(self, store: FeatureStore, index: torch.Tensor, runtime: Runtime) -> list[BatchSide]:
        """Looks up what `fields` gives, as sides of a batch: what many entities share stands there once."""
        return self._found(store, index).sides()

    def rows_once(self, *ids: torch.Tensor) -> list[torch.Tensor]:
        """Returns the only table's rows [u, D], each once, and which of them the `ids` [n] have, [n] each."""
        assert not torch.is_grad_enabled()
        return self._found(None, *ids).rows_once()

    def bag_sums(self, *ids: torch.Tensor) -> torch.Tensor:
        """Sums the only table's rows at each of the `ids` [n] to [n, D], without gradients."""
        rows, *places = self.rows_once(*ids)
        return bag_sums(rows, places)

    def gradients(self) -> list[Fetched]:
        """Returns what has gradients to send since the last time."""
        found, self._trained = self._trained, []
        return [one for one in found if one.has_gradients]

    def _found(self, store: FeatureStore | None, *ids: torch.Tensor) -> _Lookup:
        """Returns what has been fetched ahead for these ids; else fetches it."""
        for place, one in enumerate(self._ahead):
            if one.want.is_of(store, ids):
                return self._ahead.pop(place)
        ((found,),) = _Asked({self: [Want(self, ids, store, torch.is_grad_enabled())]}).fetched()
        return found


def fetch_ahead(wants: Sequence[Want]) -> None:
    """Fetches in one exchange what a step will look up.

    A collective of tables of which ranks hold a part each; does nothing for others.
    """
    by_collection = _by_collection(wants)
    if not by_collection:
        return
    first = next(iter(by_collection))
    asked, first._asked = first._asked, None
    if asked is None or not asked.is_for(by_collection):
        asked = _Asked(by_collection)
    for lookups, found in zip(by_collection, asked.fetched(), strict=True):
        lookups._ahead = found


def ask_ahead(wants: Sequence[Want]) -> None:
    """Has the gradients of the present step take along what the next one will fetch with the same `fetch_ahead`.

    Without gradients to come, that asks for it itself.
    """
    by_collection = _by_collection(wants)
    if by_collection:
        first = next(iter(by_collection))
        first._asked = _Asked(by_collection)
        if first._trained:
            first._trained[-1].following = first._asked.question


def _by_collection(wants: Sequence[Want]) -> dict[ShardedLookups, list[Want]]:
    found: dict[ShardedLookups, list[Want]] = {}
    for want in wants:
        if isinstance(want.lookups, ShardedLookups):
            found.setdefault(want.lookups, []).append(want)
    return found


class _Asked:
    """Asks for what is wanted of some collections."""

    def __init__(self, wants: dict[ShardedLookups, list[Want]]) -> None:
        self._wants = wants
        self._needed = [_Needed(lookups, of_it) for lookups, of_it in wants.items()]
        self._first, *others = wants
        self._shards = self._first.shards.joined(tuple(one.shards for one in others))
        self.question: Question = self._shards.question([one.distinct for one in self._needed])

    def is_for(self, wants: dict[ShardedLookups, list[Want]]) -> bool:
        """Says whether the same is wanted: of the very same ids."""
        theirs = [want for of_it in wants.values() for want in of_it]
        ours = [want for of_it in self._wants.values() for want in of_it]
        return len(ours) == len(theirs) and all(one.is_same(other) for one, other in zip(ours, theirs, strict=True))

    def fetched(self) -> list[list[_Lookup]]:
        """Returns the lookups of each collection. A collective."""
        found = self._shards.fetch(self.question, [one.is_trained for one in self._needed])
        for place, one in enumerate(self._needed):
            one.receive(found, place)
        if any(one.is_trained for one in self._needed):
            self._first._trained.append(found)
        return [one.lookups for one in self._needed]


class _Needed:
    """Holds the distinct rows of a collection that some lookups need.

    Attributes:
        lookups: in the order of what is wanted.
        distinct: rows [u] that they need, ascending, counted through all tables.
        matrix: these rows [u, D], once they are there.
        tables: these rows table by table [u / T, width], where the same are wanted of each of T tables.
    """

    def __init__(self, collection: ShardedLookups, wants: Sequence[Want]) -> None:
        self._num_segments, firsts = collection.num_segments, collection.firsts
        self.is_trained = any(want.is_trained for want in wants)
        self.matrix, self.tables = torch.empty(0), [torch.empty(0)]
        self.lookups = [_Lookup(self, want) for want in wants]
        self._by_table = len(firsts) > 2 and wants[0].store is None
        if self._by_table:
            assert len(wants) == 1 and not self.is_trained
            distinct = self.lookups[0].place_among(firsts[1])
            self.distinct = torch.cat([distinct + first for first in firsts[:-1]])
        elif len(wants) == 1:
            self.distinct = self.lookups[0].place_among(firsts[-1])
        else:
            ids = [one.ids for one in self.lookups]
            self.distinct, place = distinct_ids(torch.cat(ids), firsts[-1])
            for one, part in zip(self.lookups, place.split([len(one) for one in ids]), strict=True):
                one.place = part

    def receive(self, found: Fetched, number: int) -> None:
        """Takes the rows, which are of the collection of that number."""
        if self._by_table:
            pieces = iter(found.pieces[number])
            self.tables = [torch.cat(list(itertools.islice(pieces, num))) for num in self._num_segments]
        else:
            self.matrix = found.matrix(number)


class _Lookup:
    """One lookup, in the rows of its collection that are fetched.

    Attributes:
        want: what is looked up.
        ids: rows [m] that it needs, as often as it does.
        place: where each is among the fetched ones [m]; None where they are these.
    """

    def __init__(self, needed: _Needed, want: Want) -> None:
        self._needed, self.want = needed, want
        self._inverse: torch.Tensor | None = None  # which row of the second of two lookups each entity has
        lookups: list[Lookup]
        if want.store is None:
            lookups = [(None, want.ids[0] if len(want.ids) == 1 else torch.cat(want.ids))]
        elif (profiles := want.store.profiles) is None:
            lookups = [want.store.ids.alone(want.ids[0])]
        else:
            of_entity = profiles.of_entity.index_select(0, want.ids[0])
            distinct, self._inverse = distinct_ids(of_entity, profiles.number)
            lookups = [profiles.own.alone(want.ids[0]), profiles.shared.alone(distinct)]
        self._lookups = lookups
        ids = [entities if fields is None else fields.ids for fields, entities in lookups]
        self._sizes = [len(one) for one in ids]
        self.ids = ids[0] if len(ids) == 1 else torch.cat(ids)
        self.place: torch.Tensor | None = None

    def place_among(self, num_ids: int) -> torch.Tensor:
        """Returns the distinct ones of its ids [u], ascending, in which its rows are looked for."""
        if bool((self.ids[1:] > self.ids[:-1]).all()):
            return self.ids.contiguous()
        distinct, self.place = distinct_ids(self.ids, num_ids)
        return distinct

    def rows(self) -> tuple[torch.Tensor, ...]:
        """Returns rows, or fields: of the entities' combinations apart, where many share one."""
        matrix = self._needed.matrix if self.want.is_trained else self._needed.matrix.detach()
        if self.place is None and self.want.store is None:
            return (matrix,)  # as they come
        places = self._places().split(self._sizes)
        lookups: list[Lookup] = [
            (None, one) if fields is None else (replace(fields, ids=one), entities)
            for (fields, entities), one in zip(self._lookups, places, strict=True)
        ]
        return entity_rows(matrix, matrix.shape[1], lookups)

    def rows_by_table(self) -> list[torch.Tensor]:
        """Returns rows [n, width] of each table."""
        tables, place = self._needed.tables, self.place
        return tables if place is None else [rows.index_select(0, place) for rows in tables]

    def rows_once(self) -> list[torch.Tensor]:
        """Returns rows [u, D], and which of them each of the ids have [n]."""
        return [self._needed.matrix.detach(), *self._places().split([len(one) for one in self.want.ids])]

    def sides(self) -> list[BatchSide]:
        """Returns fields as sides of a batch."""
        own, *shared = self.rows()
        return [BatchSide(own, None, 0), *(BatchSide(one, self._inverse, own.shape[1]) for one in shared)]

    def _places(self) -> torch.Tensor:
        return torch.arange(len(self.ids)) if self.place is None else self.place
