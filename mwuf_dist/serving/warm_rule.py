"""The serving rule: an item's row from the item's own interactions, in order, and the frozen model; nothing else.

The interactions of an item are cut into blocks that end after K, 2K, 3K, 6K, 12K, ... of them (K is `data.warm_rows`:
the first three are the phases warm-a, warm-b and warm-c). A block starts where the block before it has ended, with a
fresh Adam, and makes `warm_up.epochs` passes over its interactions in their order, in minibatches of 1, 1, 1, 3, 6,
...: K steps a pass whatever the size of the block, so that an item with many clicks is no long chain of steps. With
`warm_up.carry_over` a pass starts at the item's first interaction. The last block may be incomplete: its row is served,
and is made again from the beginning of the block when more has come. That is all the state that there is, so going on
is the same as doing everything anew.

All items go side by side, each with its own moments and step count. So that the company of an item does not change its
bits, the arithmetic is float64 in products of at least `FEWEST_ROWS` rows, and rows are rounded to float32 at the end
of each block. (Of products [n, 16] x [16, 64] and [n, 64] x [64, 64] on a CPU with AVX-512, the bits of a row depend on
nothing but the row from n = 7 on, and not below.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.backbones import BACKBONES
from mwuf_dist.backbones.folded import FoldedHead
from mwuf_dist.config import Config, UserError
from mwuf_dist.methods import METHODS, Method
from mwuf_dist.registry import find_class

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
FEWEST_ROWS = 16  # of a matrix product
# The phases of the protocol are the first blocks; every later block doubles what has been seen.
_NUM_PHASES = 3

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
        """Number of interactions after which a block ends; 0 for block -1."""
        if block < _NUM_PHASES:
            return self.block_rows * (block + 1)
        return self.block_rows * _NUM_PHASES << (block - _NUM_PHASES + 1)

    def minibatch(self, block: int) -> int:
        """Interactions of one step of a block."""
        return 1 if block < _NUM_PHASES else _NUM_PHASES << (block - _NUM_PHASES)

    def last_boundary(self, counts: np.ndarray) -> np.ndarray:
        """The end of the last complete block of items with so many interactions [S]; 0 before the first."""
        ends = [0]
        while ends[-1] <= counts.max(initial=0):
            ends.append(self.block_end(len(ends) - 1))
        return np.array(ends)[np.searchsorted(ends, counts, side="right") - 1]


def rule_of(config: Config) -> WarmRule:
    """The rule with the settings of a run's `warm_up`."""
    settings = config.warm_up
    return WarmRule(config.data.warm_rows, settings.epochs, settings.learning_rate, settings.carry_over)


@dataclass(frozen=True)
class WarmedRows:
    """What the rule has made of S items.

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
) -> WarmedRows:
    """Applies the rule to S items, from a boundary of each to the last of its interactions.

    Args:
        rule: the numbers.
        slope: of the frozen model, in float64.
        start: rows at the boundary [S, D], float32.
        boundary: number of interactions of each item before it [S]: the end of a block, or 0.
        counts: number of interactions of each item [S]; its interactions are counts[i] consecutive ones of the n.
        parts: frozen parts [m, P] in float64 of the interactions with these places [m] among the n.
        labels: of the interactions [n].
    """
    first = np.cumsum(counts) - counts
    label = torch.from_numpy(labels.astype(np.float64)).to(start.device)
    served, at_boundary, boundary = start.clone(), start.clone(), boundary.copy()
    block = 0
    while (counts > rule.block_end(block - 1)).any():
        begin, end = rule.block_end(block - 1), rule.block_end(block)
        tasks = np.flatnonzero((counts > begin) & (boundary <= begin))
        if len(tasks):
            begins = first[tasks] + (0 if rule.carry_over else begin)
            ends = first[tasks] + np.minimum(counts[tasks], end)
            index = torch.from_numpy(tasks).to(start.device)
            rows = _fit(rule, slope, at_boundary[index], begins, ends, rule.minibatch(block), parts, label)
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
) -> torch.Tensor:
    """One block of several items: rows [S, D] at its end, from those at its beginning; step j of all items at once."""
    device, num_steps = start.device, -(-(ends - begins) // size)
    order = np.argsort(-num_steps, kind="stable")  # items that still have a j-th step come first
    begins, ends, num_steps = begins[order], ends[order], num_steps[order]
    padded = FEWEST_ROWS + len(order)
    v, moment_1, moment_2 = (torch.zeros(padded, start.shape[1], dtype=torch.float64, device=device) for _ in range(3))
    v[: len(order)] = start[torch.from_numpy(order).to(device)]
    needed = _places(begins, ends)
    frozen, begins = parts(needed), np.cumsum(ends - begins) - (ends - begins)
    stops, targets = begins + np.diff(np.append(begins, len(needed))), label[torch.from_numpy(needed).to(device)]
    steps_of = torch.from_numpy(num_steps).to(device)
    powers = torch.arange(rule.epochs * int(num_steps.max()) + 1, dtype=torch.float64, device=device)
    unbias_1, unbias_2 = 1 - _BETA_1**powers, 1 - _BETA_2**powers
    begin, stop = (torch.from_numpy(array).to(device) for array in (begins, stops))
    for epoch in range(rule.epochs):
        for step in range(int(num_steps[0])):
            active = int(np.searchsorted(-num_steps, -step, side="left"))
            rows = max(active, -(-FEWEST_ROWS // size))
            place = (F.pad(begin[:active], (0, rows - active)) + step * size)[:, None] + torch.arange(
                size, device=device
            )
            weight = (place < F.pad(stop[:active], (0, rows - active))[:, None]).double()
            weight /= weight.sum(1, keepdim=True).clamp(min=1)
            place = place.clamp_(max=len(frozen) - 1).reshape(-1)
            item = v[:rows] if size == 1 else v[:rows].repeat_interleave(size, dim=0)
            gradient = slope(item, frozen[place], targets[place], weight.reshape(-1))
            gradient = gradient.view(rows, size, -1).sum(1)[:active]
            time = epoch * steps_of[:active] + step + 1
            first, second = moment_1[:active], moment_2[:active]
            first.mul_(_BETA_1).add_(gradient, alpha=1 - _BETA_1)
            second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
            size_of_step = (second / unbias_2[time][:, None]).sqrt_().add_(_EPS)
            v[:active] -= rule.learning_rate * (first / unbias_1[time][:, None]) / size_of_step
    out = torch.empty_like(start)
    out[torch.from_numpy(order).to(device)] = v[: len(order)].float()
    return out


def _places(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The places of several ranges, one after another."""
    lengths = ends - begins
    shift = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return shift + np.arange(len(shift))


def folded_slope(head: FoldedHead) -> Slope:
    """The gradient by a folded head's own backward."""

    def slope(item: torch.Tensor, part: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logit, states, direction = head.forward(item, part)
        return head.backward((logit.sigmoid_() - label) * weight, states, direction)

    return slope


def module_slope(module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Slope:
    """The gradient of any module (item [b, D], context [b, C]) -> logits [b], by autograd."""

    def slope(item: torch.Tensor, part: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = item.detach().requires_grad_()
            loss = F.binary_cross_entropy_with_logits(module(leaf, part), label, weight, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    return slope


def frozen_double(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode whose weights ask for no gradient."""
    return copy.deepcopy(module).double().eval().requires_grad_(False)


def check_rule_fits(config: Config) -> None:
    """Refuses what the rule of the daily job does not cover.

    Raises:
        UserError: naming the key.
    """
    backbone = find_class("backbone.name", config.backbone.name, BACKBONES, nn.Module)
    method = find_class("method.name", config.method.name, METHODS, Method)
    if getattr(backbone, "uses_history", False):
        what = f"backbone.name = {config.backbone.name!r}: histories of the run's users would have to grow with them"
    elif method.fits_items or config.method.regenerate:
        what = f"method.name = {config.method.name!r}: its rows are not trained step by step"
    elif method.looks_up_items:
        what = f"method.name = {config.method.name!r}: its first rows come from a graph of the run's items alone"
    else:
        return
    raise UserError(f"mwuf warm does not go with {what}; run it on a run of another backbone or method")
