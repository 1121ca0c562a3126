"""Adam over dense weights and table shards, with moments that a checkpoint can lay out anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mwuf_dist.embeddings.tables import Tables, parameters_by_name

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam:
    """One fused AdamW over several groups.

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
        self._named: dict[str, nn.Parameter] = {}
        self._sharded: dict[str, tuple[Tables, str]] = {}
        groups: list[dict[str, Any]] = []
        for name, module, rate in dense:
            parameters = dict(module.named_parameters())
            self._named |= {f"{name}.{key}": parameter for key, parameter in parameters.items()}
            groups.append({"params": list(parameters.values()), "lr": rate, "weight_decay": weight_decay})
        for collection, rate in tables:
            owned = list(parameters_by_name([collection]))
            for owner, table, parameter in owned:
                key = f"{owner.name}.{table}"
                self._named[key], self._sharded[key] = parameter, (owner, table)
            groups.append({"params": [parameter for _, _, parameter in owned], "lr": rate, "weight_decay": 0.0})
        groups = [group for group in groups if group["params"]]
        self._optimizer = torch.optim.AdamW(groups, fused=True) if groups else None

    def step(self) -> None:
        """One step; gradients are cleared."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Moments and step counts by parameter name, tables' moments as sharded tensors."""
        out: dict[str, Any] = {}
        for name, parameter in self._named.items():
            assert self._optimizer is not None
            values = self._optimizer.state[parameter]
            if not values:  # before the first step: what that step would make
                values["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                values |= {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
            for moment in _MOMENTS:
                value = values[moment].detach()
                if name in self._sharded:
                    owner, table = self._sharded[name]
                    value = owner.like(table, value)
                out[f"adam.{name}.{moment}"] = value
            # Of a sharded table every rank has the same count.
            out[f"adam.{name}.step"] = values["step"]
        return out
