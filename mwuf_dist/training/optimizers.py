"""Adam over dense weights and table shards, with moments that a checkpoint can lay out anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mwuf_kernels import AdamSettings, adam_step_
from torch import nn

from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime


@dataclass
class _Group:
    """Parameters with one learning rate, and their moments. They have all taken equally many steps."""

    learning_rate: float
    weight_decay: float
    parameters: list[torch.Tensor] = field(default_factory=list)
    exp_avg: list[torch.Tensor] = field(default_factory=list)
    exp_avg_sq: list[torch.Tensor] = field(default_factory=list)
    num_steps: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))

    def add(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a parameter; returns its moments."""
        self.parameters.append(parameter)
        self.exp_avg.append(torch.zeros_like(parameter, requires_grad=False))
        self.exp_avg_sq.append(torch.zeros_like(parameter, requires_grad=False))
        # Where the fused kernel wants it.
        self.num_steps = self.num_steps.to(parameter.device)
        return self.exp_avg[-1], self.exp_avg_sq[-1]

    def step(self, rate: float) -> None:
        """Steps on the parameters that have a gradient, at `rate` times the learning rate, and clears it."""
        self.num_steps += 1
        stepped = [
            (parameter, parameter.grad, mean, square)
            for parameter, mean, square in zip(self.parameters, self.exp_avg, self.exp_avg_sq, strict=True)
            if parameter.grad is not None
        ]
        if not stepped:  # None are left of tables that other ranks hold.
            return
        parameters, gradients, means, squares = zip(*stepped, strict=True)
        settings = AdamSettings(self.learning_rate * rate, self.weight_decay)
        adam_step_(parameters, gradients, (means, squares), self.num_steps, settings)
        for parameter in parameters:
            parameter.grad = None


@dataclass(frozen=True)
class _Moments:
    """Holds what a checkpoint keeps of one parameter: views of the moments, sharded as their table is."""

    name: str
    group: _Group
    moments: tuple[torch.Tensor, torch.Tensor]
    tables: Tables | None = None
    table: str = ""

    def state(self) -> dict[str, Any]:
        tables = self.tables
        laid_out = self.moments if tables is None else [tables.like(self.table, moment) for moment in self.moments]
        state: dict[str, Any] = {
            f"adam.{self.name}.{key}": moment for key, moment in zip(("exp_avg", "exp_avg_sq"), laid_out, strict=True)
        }
        return state | {f"adam.{self.name}.step": self.group.num_steps}


class Adam:
    """AdamW (Loshchilov and Hutter 2019) over several groups; the tables of a TorchRec kernel are one parameter.

    Tables that train in their own backward (fused row-wise Adagrad) are left out: there is nothing to do for them here.

    Args:
        dense: name, weights and learning rate of each dense group.
        tables: collections and their learning rate.
        weight_decay: decoupled, on the dense weights only.
    """

    def __init__(
        self,
        dense: Sequence[tuple[str, nn.Module, float]],
        tables: Sequence[tuple[Tables, float]],
        weight_decay: float = 0.0,
    ) -> None:
        self._groups: list[_Group] = []
        self._held_by_all: list[torch.Tensor] = []
        self._moments: list[_Moments] = []
        self._tables = [collection for collection, _ in tables]
        for name, module, rate in dense:
            group = _Group(rate, weight_decay)
            for key, parameter in module.named_parameters():
                self._moments.append(_Moments(f"{name}.{key}", group, group.add(parameter)))
                self._held_by_all.append(parameter)
            self._groups.append(group)
        for collection, rate in tables:
            group = _Group(rate, 0.0)
            for flat in collection.flat_parameters():
                moments = group.add(flat.weights)
                if collection.is_whole:
                    self._held_by_all.append(flat.weights)
                for table, (start, shape) in flat.parts.items():
                    first, second = (m.view(-1)[start : start + shape.numel()].view(shape) for m in moments)
                    name = f"{collection.name}.{table}"
                    self._moments.append(_Moments(name, group, (first, second), collection, table))
            self._groups.append(group)

    def sum_gradients(self, runtime: Runtime) -> None:
        """Sums the gradients of what every rank holds over the ranks, beside those that shards of tables get."""
        to_send = [one for tables in self._tables for one in tables.gradients_to_send()]
        for fetched in to_send[:-1]:
            fetched.send_gradients(torch.empty(0))
        runtime.sum_gradients(self._held_by_all, to_send[-1].send_gradients if to_send else None)

    @torch.no_grad()
    def step(self, rate: float = 1.0) -> None:
        """Steps on every parameter that has a gradient, at `rate` times its learning rate; gradients are cleared."""
        for group in self._groups:
            group.step(rate)

    def state(self) -> dict[str, Any]:
        """Returns moments and step counts by parameter name, tables' moments as sharded tensors."""
        state: dict[str, Any] = {}
        for moments in self._moments:
            state |= moments.state()
        return state
