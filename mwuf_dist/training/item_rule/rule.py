"""The serving rule: an item's row from the item's own interactions, in order, and the frozen model; nothing else.

The interactions of an item are cut into blocks that end after K, 2K, 3K, 6K, 12K, ... of them (K is `data.warm_rows`,
with the negatives drawn for so many positives: the first three are the phases warm-a, warm-b and warm-c). A block
starts where the block before it has ended, with a fresh Adam, and makes `warm_up.epochs` passes over its interactions
in their order, in minibatches of 1, 1, 1, 3, 6, ...: K steps a pass whatever the size of the block, so that an item
with many clicks is no long chain of steps. With `warm_up.carry_over` a pass starts at the item's first interaction.
The last block may be incomplete: its row is served, and is made again from the beginning of the block when more has
come. That is all the state that there is, so going on is the same as doing everything anew. A method that
`regenerates` rows (cvar) does so at the end of a block.

A method that `fits_items` (map) has no blocks: a row is fitted to all of the item's interactions, from its first row.

All items go side by side, each with its own moments and step count. So that the company of an item does not change its
bits, the arithmetic is float64 in products of at least `FEWEST_ROWS` rows, and rows are rounded to float32 at the end
of each block. (Of products [n, 16] x [16, 64] and [n, 64] x [64, 64] on a CPU with AVX-512, the bits of a row depend on
nothing but the row from n = 7 on, and not below.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mwuf_kernels import AdamSettings, adam_step_by_row_
from torch import nn

from mwuf_dist.config import Config, UserError
from mwuf_dist.config.registry import find_class
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Lines, Method
from mwuf_dist.training.stages.item_fit import line_of

FEWEST_ROWS = 16  # of a matrix product
# The phases of the protocol are the first blocks; every later block doubles what has been seen.
_NUM_PHASES = 3

# Rows whose lines are made at once, and items that are fitted at once (a matrix D x D each).
_LINE_ROWS = 1 << 14
_FIT_ITEMS = 1 << 10

# From item embeddings [b, D], frozen parts [b, P], labels [b] and weights [b] to the gradient [b, D] of the loss.
Slope = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WarmRule:
    """The numbers of the rule.

    Attributes:
        block_rows: K.
        epochs: passes over a block.
        learning_rate: Adam's.
        carry_over: whether a pass starts at the item's first interaction.
    """

    block_rows: int
    epochs: int
    learning_rate: float
    carry_over: bool = False

    def block_end(self, block: int) -> int:
        """Returns the number of interactions after which a block ends; 0 for block -1."""
        if block < _NUM_PHASES:
            return self.block_rows * (block + 1)
        return self.block_rows * _NUM_PHASES << (block - _NUM_PHASES + 1)

    def last_end(self, counts: np.ndarray) -> np.ndarray:
        """Returns the end of the last complete block of so many interactions [n], 0 where there is none."""
        phases = self.block_end(_NUM_PHASES - 1)
        ends = np.minimum(counts // self.block_rows, _NUM_PHASES) * self.block_rows
        for _ in range(int(counts.max(initial=0)).bit_length()):
            ends = np.where((ends >= phases) & (2 * ends <= counts), 2 * ends, ends)
        return ends

    def minibatch(self, block: int) -> int:
        """Returns interactions of one step of a block."""
        return 1 if block < _NUM_PHASES else _NUM_PHASES << (block - _NUM_PHASES)


def rule_of(config: Config, prepared: Prepared) -> WarmRule:
    """Returns the rule with the settings of a run's `warm_up`."""
    settings, block_rows = config.warm_up, prepared.rows_of(config.data.warm_rows)
    return WarmRule(block_rows, settings.epochs, settings.learning_rate, settings.carry_over)


@dataclass(frozen=True)
class WarmedRows:
    """Holds what the rule has made of S items.

    Attributes:
        rows: to be served [S, D], float32.
        at_boundary: where the last complete block has ended [S, D], float32: going on starts here.
        boundary: number of interactions up to there [S], int64.
    """

    rows: torch.Tensor
    at_boundary: torch.Tensor
    boundary: np.ndarray


@torch.no_grad()
def warm_rows(
    rule: WarmRule,
    slope: Slope,
    start: torch.Tensor,
    boundary: np.ndarray,
    counts: np.ndarray,
    parts: Callable[[np.ndarray], torch.Tensor],
    labels: np.ndarray,
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    missing: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> WarmedRows:
    """Applies the rule to S items, from a boundary of each to the last of its interactions.

    Args:
        rule: the numbers.
        slope: of the frozen model, in float64.
        start: rows at the boundary [S, D], float32.
        boundary: number of interactions of each item before it [S]: the end of a block, or 0.
        counts: number of interactions of each item [S]; its interactions are counts[i] consecutive ones of the n.
        parts: frozen parts [m, P] in float64 of the interactions with these positions [m] among the n.
        labels: of the interactions [n].
        finish: what the method makes of the rows [m, D] of some of the items [m] at the end of a block.
        missing: interactions that an item's blocks count and that are not there [S]; below 0: there are more than they
            count. Of a run's own items, where more or fewer negatives could be drawn than asked for.
        weights: what each of the interactions counts in the loss [n]; None: 1.
    """
    first, missing = np.cumsum(counts) - counts, np.zeros_like(counts) if missing is None else missing
    counts = counts + missing
    label = torch.from_numpy(labels.astype(np.float64)).to(start.device)
    counted = None if weights is None else torch.from_numpy(weights.astype(np.float64)).to(start.device)
    served, at_boundary, boundary = start.clone(), start.clone(), boundary.copy()
    block = 0
    while (counts > rule.block_end(block - 1)).any():
        begin, end = rule.block_end(block - 1), rule.block_end(block)
        tasks = np.flatnonzero((counts > begin) & (boundary <= begin))
        if len(tasks):
            begins = first[tasks] + (0 if rule.carry_over else begin - missing[tasks])
            ends = first[tasks] + np.minimum(counts[tasks], end) - missing[tasks]
            index = torch.from_numpy(tasks).to(start.device)
            rows = _fit(rule, slope, at_boundary[index], begins, ends, rule.minibatch(block), parts, label, counted)
            if finish is not None:
                rows = finish(index, rows)
            served[index] = rows
            complete = counts[tasks] >= end
            at_boundary[index[torch.from_numpy(complete).to(start.device)]] = rows[torch.from_numpy(complete)]
            boundary[tasks[complete]] = end
        block += 1
    return WarmedRows(served, at_boundary, boundary)


def _fit(
    rule: WarmRule,
    slope: Slope,
    start: torch.Tensor,
    begins: np.ndarray,
    ends: np.ndarray,
    size: int,
    parts: Callable[[np.ndarray], torch.Tensor],
    label: torch.Tensor,
    counted: torch.Tensor | None,
) -> torch.Tensor:
    """Gives one block of several items.

    Rows [S, D] at its end, from those at its beginning; step j of all items at once.
    """
    device, num_steps = start.device, -(-(ends - begins) // size)
    order = np.argsort(-num_steps, kind="stable")  # items that still have a j-th step come first
    begins, ends, num_steps = begins[order], ends[order], num_steps[order]
    active = np.searchsorted(-num_steps, -np.arange(num_steps[0]), side="left")  # of each step
    place, is_there = _step_by_step(begins, ends, active, size)
    # In the order in which steps read them, so that a step of any pass reads a slice.
    frozen, target = parts(place.reshape(-1)), label[torch.from_numpy(place.reshape(-1)).to(device)]
    weight = torch.from_numpy((is_there / is_there.sum(1, keepdims=True).clip(min=1)).reshape(-1)).to(device)
    if counted is not None:
        weight *= counted[torch.from_numpy(place.reshape(-1)).to(device)]
    stops = np.cumsum(np.maximum(active, -(-FEWEST_ROWS // size)))
    padded = FEWEST_ROWS + len(order)
    v, moment_1, moment_2 = (torch.zeros(padded, start.shape[1], dtype=torch.float64, device=device) for _ in range(3))
    v[: len(order)] = start[torch.from_numpy(order).to(device)]
    steps_of = torch.from_numpy(num_steps).to(device)
    settings = AdamSettings(rule.learning_rate)
    for epoch in range(rule.epochs):
        first = 0
        for step, (num, stop) in enumerate(zip(active.tolist(), stops.tolist(), strict=True)):
            rows, read = stop - first, slice(first * size, stop * size)
            item = v[:rows] if size == 1 else v[:rows].repeat_interleave(size, dim=0)
            gradient = slope(item, frozen[read], target[read], weight[read]).view(rows, size, -1).sum(1)[:num]
            first = stop
            taken = epoch * steps_of[:num] + step + 1
            adam_step_by_row_(v[:num], gradient, (moment_1[:num], moment_2[:num]), taken, settings)
    out = torch.empty_like(start)
    out[torch.from_numpy(order).to(device)] = v[: len(order)].float()
    return out


@torch.no_grad()
def fitted_rows(
    method: Method,
    module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    counts: np.ndarray,
    parts: Callable[[np.ndarray], torch.Tensor],
    labels: np.ndarray,
    weights: np.ndarray | None = None,
) -> WarmedRows:
    """Returns the rule of a method that `fits_items`: each of S rows by all of its item's interactions.

    Args:
        method: that fits.
        module: frozen model in float64, (item [b, D], part [b, P]) -> logits [b], linear in the item embedding.
        start: first rows [S, D], float32.
        counts: as for `warm_rows`.
        parts: as for `warm_rows`.
        labels: as for `warm_rows`.
        weights: as for `warm_rows`.
    """
    served = start.clone()
    for own, places, lines in _lines_of_items(module, start, counts, parts, weights):
        label = torch.from_numpy(labels[places].astype(np.float64)).to(start.device)
        has_any = torch.from_numpy(counts[own] > 0).to(start.device)[:, None]
        fitted = method.fit(start[own].double(), lines, label).float()
        served[own] = torch.where(has_any, fitted, start[own])
    return WarmedRows(served, start, np.zeros(len(counts), dtype=np.int64))


def fitted_variances(
    method: Method,
    module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    counts: np.ndarray,
    parts: Callable[[np.ndarray], torch.Tensor],
    weights: np.ndarray | None = None,
) -> torch.Tensor:
    """Returns the posterior's variances of fitted rows [S, D], float32, for a method that `has_posterior`.

    Args:
        method: that has fitted them.
        module: as for `fitted_rows`.
        rows: of `fitted_rows` [S, D].
        counts: as for `fitted_rows`.
        parts: as for `fitted_rows`.
        weights: as for `fitted_rows`.
    """
    nothing = torch.zeros(0, dtype=torch.int64, device=rows.device)
    none = rows.new_zeros(0, rows.shape[1]).double()
    prior = method.covariance(rows[:1], Lines(nothing, none[:, 0], none))[0].diagonal()
    found = prior.expand(len(rows), -1).clone()
    for own, _, lines in _lines_of_items(module, rows, counts, parts, weights):
        found[own] = method.covariance(rows[own], lines).diagonal(dim1=1, dim2=2)
    return found.float()


def _lines_of_items(
    module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    counts: np.ndarray,
    parts: Callable[[np.ndarray], torch.Tensor],
    weights: np.ndarray | None,
) -> Iterator[tuple[slice, np.ndarray, Lines]]:
    """Yields some items at a time: which, the places of their interactions, and these as lines.

    Items without an interaction are left out where all at a time have none.
    """
    ends = np.append(0, np.cumsum(counts))
    for first in range(0, len(counts), _FIT_ITEMS):
        own = slice(first, min(first + _FIT_ITEMS, len(counts)))
        places = np.arange(int(ends[own.start]), int(ends[own.stop]))
        if not len(places):
            continue
        lines = [
            _line(module, parts(places[one : one + _LINE_ROWS]), rows.shape[1])
            for one in range(0, len(places), _LINE_ROWS)
        ]
        offset, slope = (torch.cat(columns) for columns in zip(*lines, strict=True))
        item = torch.from_numpy(np.repeat(np.arange(own.stop - first), counts[own])).to(rows.device)
        weight = None if weights is None else torch.from_numpy(weights[places]).to(offset)
        yield own, places, Lines(item, offset, slope, weight)


def _line(
    module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], part: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (offset [b], slope [b, D]) of the logits of rows with frozen parts [b, P]."""
    padded = F.pad(part, (0, 0, 0, max(0, FEWEST_ROWS - len(part))))
    offset, slope = line_of(module, padded, dim)
    return offset[: len(part)], slope[: len(part)]


def item_groups(counts: np.ndarray, num_rows: int) -> list[np.ndarray]:
    """Returns items cut into groups of about `num_rows` interactions, at least one item each."""
    group = np.cumsum(counts) // num_rows
    cuts = np.flatnonzero(np.diff(group)) + 1
    return [part for part in np.split(np.arange(len(counts)), cuts) if len(part)]


def places_of(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns places of the interactions of some items, whose `counts` stand one after another."""
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(np.repeat(mask, counts))


def _step_by_step(begins: np.ndarray, ends: np.ndarray, active: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives (positions, whether they are there), both [m, size].

    What each step reads, a line per item, step after step.

    Args:
        begins: first position of each item [S], those with most steps first.
        ends: position behind the last one of each.
        active: how many of the items have a j-th step, for each j.
        size: positions of one step of an item. Lines are filled up with positions that are not there, and so are steps
            with fewer than `FEWEST_ROWS`.
    """
    lines = np.maximum(active, -(-FEWEST_ROWS // size))
    step = np.repeat(np.arange(len(active)), lines)
    item = np.arange(len(step)) - np.repeat(np.cumsum(lines) - lines, lines)
    is_item = item < active[step]
    item = np.where(is_item, item, 0)
    place = (begins[item] + step * size)[:, None] + np.arange(size)
    is_there = is_item[:, None] & (place < ends[item][:, None])
    return np.where(is_there, place, begins[0]), is_there


def module_slope(module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Slope:
    """Returns the gradient of any module (item [b, D], context [b, C]) -> logits [b], by autograd."""

    def slope(item: torch.Tensor, part: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = item.detach().requires_grad_()
            loss = F.binary_cross_entropy_with_logits(module(leaf, part), label, weight, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    return slope


def frozen_double(module: nn.Module) -> nn.Module:
    """Returns a copy in float64 and eval mode whose weights ask for no gradient."""
    return copy.deepcopy(module).double().eval().requires_grad_(False)


def check_rule_fits(config: Config) -> None:
    """Refuses what the rule of the daily job does not cover.

    Raises:
        UserError: naming the key.
    """
    method = find_class("method", config.method.name)
    initialisation = config.method.initialisation
    starts = method.initialisation if initialisation == "default" else initialisation
    if method.fits_items and starts == "random":
        raise UserError(
            f"mwuf warm does not go with method.name = {config.method.name!r} and method.initialisation = 'random': a "
            "row would be fitted around a fresh draw that no state keeps; take the method's own first rows ('default')"
        )
