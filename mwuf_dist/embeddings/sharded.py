"""Rows of tables of which CPU ranks hold a part each: distinct ones are asked for, sent, and stepped on, once.

TorchRec's way to them exchanges how many IDs there will be, lengths of bags, IDs as often as they occur, and bags that
the rank which holds a table has pooled, all of it for every collection. Here a rank asks each other one for the rows
that it lacks, as one list of those of all tables of a step, and sends their gradients summed by row. TorchRec's kernels
look up and step on each rank's part, so weights, states of optimizers and checkpoints are theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mwuf_kernels import backward_from
from torch import nn

from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.collectives import exchange_over_ranks, give_over_ranks, sum_over_ranks_
from mwuf_dist.runtime.one_host import goes_with_rows, sum_in_order


@dataclass(frozen=True)
class Segment:
    """Rows of a table that one rank holds.

    Attributes:
        first: the first of them, where the rows of all tables are counted through.
        width: of a row.
        rank: that holds them.
        kernel: of TorchRec, that looks them up; None for those of another rank.
        place: of the table among those of the kernel.
    """

    first: int
    width: int
    rank: int
    kernel: nn.Module | None = None
    place: int = 0


@dataclass
class Question:
    """Asks the ranks for rows.

    Attributes:
        numbers: rows that are wanted of each segment.
        parts: for every rank, how many rows of each of its segments are wanted, and then which, int64 [n].
        theirs: what each rank asks us, in the same form, once that is exchanged.
    """

    numbers: list[int]
    parts: list[torch.Tensor]
    theirs: list[torch.Tensor] | None = None


class Shards:
    """Says where the rows of some collections are, and fetches them.

    Args:
        segments: of each collection, ascending.
        num_rows: of each collection.
        runtime: the ranks.
    """

    def __init__(self, segments: Sequence[list[Segment]], num_rows: Sequence[int], runtime: Runtime) -> None:
        self._by_collection, self._num_rows, self._runtime, self.rank = segments, num_rows, runtime, runtime.rank
        self._bases = [0, *itertools.accumulate(num_rows)][:-1]
        pairs = zip(segments, self._bases, strict=True)
        self.segments = [replace(one, first=one.first + base) for part, base in pairs for one in part]
        self._firsts = torch.tensor([one.first for one in self.segments])
        ranks = range(runtime.world_size)
        self.of_rank = [[place for place, one in enumerate(self.segments) if one.rank == rank] for rank in ranks]
        self.ours = [self.segments[place] for place in self.of_rank[self.rank]]
        self.kernels: list[tuple[nn.Module, list[int]]] = []  # with its segments, as places in `ours`
        for kernel in dict.fromkeys(one.kernel for one in self.ours):
            places = [place for place, one in enumerate(self.ours) if one.kernel is kernel]
            assert kernel is not None
            self.kernels.append((kernel, sorted(places, key=lambda place: self.ours[place].place)))
        self._joined: dict[tuple[Shards, ...], Shards] = {}

    def joined(self, others: tuple[Shards, ...]) -> Shards:
        """Returns these collections with others behind them."""
        if others not in self._joined:
            everyone = (self, *others)
            segments = [part for one in everyone for part in one._by_collection]
            self._joined[others] = Shards(segments, [n for one in everyone for n in one._num_rows], self._runtime)
        return self._joined[others]

    def question(self, rows: Sequence[torch.Tensor]) -> Question:
        """Asks for ascending rows [n] of each collection, counted through its tables."""
        numbered = torch.cat([one + base for one, base in zip(rows, self._bases, strict=True)])
        ends = torch.searchsorted(numbered, self._firsts[1:]).tolist()
        numbers = [end - begin for begin, end in itertools.pairwise([0, *ends, len(numbered)])]
        ids = (numbered - torch.repeat_interleave(self._firsts, torch.tensor(numbers))).split(numbers)
        lengths = [torch.tensor([numbers[place] for place in places], dtype=torch.int64) for places in self.of_rank]
        parts = [torch.cat([one, *(ids[p] for p in places)]) for one, places in zip(lengths, self.of_rank, strict=True)]
        return Question(numbers, parts)

    def fetch(self, question: Question, trained: Sequence[bool]) -> Fetched:
        """Fetches the rows that ranks ask for; those of collections that are `trained` get gradients. A collective."""
        theirs = question.theirs if question.theirs is not None else give_over_ranks(question.parts)
        num_asked = [one[: len(self.ours)].tolist() for one in theirs]
        asked = [one[len(self.ours) :].split(number) for one, number in zip(theirs, num_asked, strict=True)]
        sizes = [len(part) for part in self._by_collection]
        is_trained = [one for one, size in zip(trained, sizes, strict=True) for _ in range(size)]
        held = []
        for kernel, places in self.kernels:
            with torch.set_grad_enabled(is_trained[self.of_rank[self.rank][places[0]]]):
                held.append(_rows(kernel, [torch.cat([one[place] for one in asked]) for place in places]))
        return Fetched(self, sizes, is_trained, question.numbers, num_asked, held)


class Fetched:
    """Rows that this rank has asked the others for, and those that these have asked of it. Made by all ranks at once.

    Args:
        shards: where rows are.
        sizes: segments of each collection.
        is_trained: whether the rows of each segment get gradients.
        numbers: rows that this rank wants of each segment.
        num_asked: rows that each rank wants of each segment of ours.
        held: those rows from each of our kernels, all ranks' of a table one after another.

    Attributes:
        pieces: rows [n, width] of the segments of each collection.
        following: what the next step asks for, to be exchanged with the gradients.
    """

    def __init__(
        self,
        shards: Shards,
        sizes: list[int],
        is_trained: list[bool],
        numbers: list[int],
        num_asked: list[list[int]],
        held: list[torch.Tensor],
    ) -> None:
        self._shards, self._is_trained, self._held = shards, is_trained, held
        self._wanted = [number * one.width for number, one in zip(numbers, shards.segments, strict=True)]
        self._asked = [[n * one.width for n, one in zip(ns, shards.ours, strict=True)] for ns in num_asked]
        pieces = iter(self._fetched())
        self.pieces = [list(itertools.islice(pieces, size)) for size in sizes]
        self._first = [0, *itertools.accumulate(sizes)]
        self._matrices: dict[int, torch.Tensor] = {}  # of trained collections
        self.following: Question | None = None

    def _fetched(self) -> list[torch.Tensor]:
        """Exchanges the rows [n, width] of each segment."""
        shards = self._shards
        parts: list[Sequence[torch.Tensor]] = [()] * len(shards.ours)
        for (_, places), held in zip(shards.kernels, self._held, strict=True):
            widths = [shards.ours[place].width for place in places]
            for place, rows in zip(places, held.detach().split(widths, dim=1), strict=True):
                sizes = [one[place] for one in self._asked]
                parts[place] = rows.reshape(-1)[: sum(sizes)].split(sizes)
        answers = [_flat([one[rank] for one in parts]) for rank in range(len(self._asked))]
        pieces: list[torch.Tensor] = [torch.empty(0)] * len(shards.segments)
        sizes = [[self._wanted[place] for place in places] for places in shards.of_rank]
        for places, found in zip(shards.of_rank, _exchanged(answers, sizes, shards.rank), strict=True):
            for place, piece in zip(places, found, strict=True):
                pieces[place] = piece.view(-1, shards.segments[place].width)
        return pieces

    def matrix(self, number: int) -> torch.Tensor:
        """Returns the rows [n, D] of the collection of that number, of tables of one width; a leaf if it is trained."""
        rows = torch.cat(self.pieces[number])
        if not self._is_trained[self._first[number]]:
            return rows
        self._matrices[number] = rows.requires_grad_()
        return rows

    @property
    def has_gradients(self) -> bool:
        """Whether there is something to send."""
        return any(one.grad is not None for one in self._matrices.values())

    def send_gradients(self, dense: torch.Tensor) -> torch.Tensor:
        """Gives the ranks the gradients of their rows, on which fused kernels step. A collective.

        Returns the sum over the ranks of `dense` [n] float32, which goes in the same messages if it is short.
        """
        shards = self._shards
        pieces: dict[int, torch.Tensor] = {}  # of trained segments
        for number, rows in self._matrices.items():
            gradient = torch.zeros_like(rows) if rows.grad is None else rows.grad
            segments = range(self._first[number], self._first[number + 1])
            pieces |= zip(segments, gradient.view(-1).split([self._wanted[one] for one in segments]), strict=True)
        parts = [_flat([pieces[one] for one in places if one in pieces]) for places in shards.of_rank]
        ours = [place for place, one in enumerate(shards.of_rank[shards.rank]) if one in pieces]
        sizes = [[asked[place] for place in ours] for asked in self._asked]
        goes_along = goes_with_rows(dense.nbytes, len(parts))
        exchanged, summed = self._exchange(parts, sizes, dense if goes_along else dense[:0])
        theirs = [dict(zip(ours, one, strict=True)) for one in exchanged]
        for (_, places), held in zip(shards.kernels, self._held, strict=True):
            if places[0] not in ours:
                continue
            d_rows = [torch.cat([one[place] for one in theirs]).view(-1, shards.ours[place].width) for place in places]
            backward_from([held], [_side_by_side(d_rows, held)])
        return summed if goes_along else sum_over_ranks_(dense)

    def _exchange(
        self, parts: list[torch.Tensor], sizes: list[list[int]], dense: torch.Tensor
    ) -> tuple[list[Sequence[torch.Tensor]], torch.Tensor]:
        """Does what `_exchanged` does, and in the same messages exchanges the next step's question and sums `dense`."""
        if len(parts) == 1 or (self.following is None and not len(dense)):
            return _exchanged(parts, sizes, self._shards.rank), dense
        rank, num_ours = self._shards.rank, len(self._shards.ours)
        questions = [torch.empty(0, dtype=torch.int64)] * len(parts)
        if self.following is not None:
            questions = self.following.parts
            self.following.theirs = list(questions)
        messages = [torch.empty(0, dtype=torch.int32)] * len(parts)
        for other, content in enumerate(zip(questions, parts, [dense] * len(parts), strict=True)):
            if other != rank:
                messages[other] = torch.cat([one.view(torch.int32) for one in content])
        found, denses = list(parts), [dense] * len(parts)
        for other, message in enumerate(give_over_ranks(messages)):
            if other == rank:
                continue
            if self.following is not None and self.following.theirs is not None:
                num_ids = num_ours + int(message[: 2 * num_ours].view(torch.int64).sum())
                self.following.theirs[other] = message[: 2 * num_ids].view(torch.int64)
                message = message[2 * num_ids :]
            found[other], denses[other] = message.view(torch.float32).split([sum(sizes[other]), len(dense)])
        summed = sum_in_order(denses, torch.empty_like(dense))
        return [one.split(size) for one, size in zip(found, sizes, strict=True)], summed


def shards_of(collection: Any, specs: Sequence[TableSpec], runtime: Runtime) -> tuple[Shards, list[int]]:
    """Reads where the rows of TorchRec's sharded collection are, none of whose tables is cut into columns.

    Returns also how many segments each table has.
    """
    held = {
        table.name: (kernel._emb_module, place)
        for lookup in collection._lookups
        for kernel in lookup._emb_modules
        for place, table in enumerate(kernel.config.embedding_tables)
    }
    segments: list[Segment] = []
    sizes, first, state = [], 0, collection.state_dict()
    for spec in specs:
        parts = state[f"embedding_bags.{spec.name}.weight"].metadata().shards_metadata
        for start, rank in sorted((one.shard_offsets[0], one.placement.rank()) for one in parts):
            kernel, place = held[spec.name] if rank == runtime.rank else (None, 0)
            segments.append(Segment(first + start, spec.dim, rank, kernel, place))
        sizes.append(len(parts))
        first += spec.rows
    return Shards([segments], [first], runtime), sizes


def _rows(kernel: nn.Module, ids: list[torch.Tensor]) -> torch.Tensor:
    """Returns rows of each table of a kernel at its ids [n], side by side [largest n, sum of widths].

    At least one: a kernel without any ID gives its weights a gradient of zero all the same.
    """
    numbers = torch.tensor([len(one) for one in ids])
    is_there = torch.arange(max(1, int(numbers.max()))) < numbers[:, None]  # behind a table's last, bags are empty
    return kernel(torch.cat(ids), F.pad(is_there.view(-1).cumsum(0), (1, 0)))


def _side_by_side(rows: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Lays rows [n, width] of tables side by side, as `_rows` does."""
    if rows[0].shape == like.shape:
        return rows[0]
    out = torch.zeros_like(like)
    for one, columns in zip(rows, out.split([one.shape[1] for one in rows], dim=1), strict=True):
        columns[: len(one)] = one
    return out


def _exchanged(parts: list[torch.Tensor], sizes: list[list[int]], rank: int) -> list[Sequence[torch.Tensor]]:
    """Gives each rank its part [n]; returns what each has for us, `rank`, of so many sizes."""
    out = [parts[rank] if other == rank else torch.empty(sum(one)) for other, one in enumerate(sizes)]
    exchange_over_ranks(out, parts)
    return [one.split(size) for one, size in zip(out, sizes, strict=True)]


def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if parts else torch.empty(0)
