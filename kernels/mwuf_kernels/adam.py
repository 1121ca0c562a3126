"""AdamW over several parameters, by `adam.cpp` on a CPU and torch's fused kernel elsewhere; Adam of single rows."""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mwuf_kernels.native import address, has_library, library, structure

_Update = structure(
    "update",
    longs="n",
    floats="step_size root keep new_mean new_square eps",
    pointers="parameter gradient mean square",
)


@dataclass(frozen=True)
class AdamSettings:
    """Learning rate, decay rates of both moments, decoupled weight decay, and what keeps a division from being by 0."""

    rate: float
    weight_decay: float = 0.0
    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class AdamGroup:
    """Parameters that take the same step.

    Args:
        parameters: contiguous tensors of any shapes.
        gradients: theirs.
        moments: (first, second) of each.
        num_steps: which step this is, from 1 [].
        settings: of all of them.
    """

    parameters: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor]
    moments: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
    num_steps: torch.Tensor
    settings: AdamSettings

    @property
    def is_for_loop(self) -> bool:
        """Whether `adam.cpp` can do it."""
        return has_library(*self.parameters, *self.gradients) and all(one.is_contiguous() for one in self.gradients)


@torch.no_grad()
def adam_step_(groups: Sequence[AdamGroup]) -> None:
    """Changes parameters and moments in place (Loshchilov and Hutter 2019), in one call for all groups.

    torch's kernel knows OpenMP's threads only, which the loops of this package do without.
    """
    if groups and all(group.is_for_loop for group in groups):
        updates = [update for group in groups for update in _updates(group)]
        found = library()
        assert found is not None
        found.mwuf_adam(ctypes.c_long(len(updates)), (_Update * len(updates))(*updates))
        return
    for group in groups:
        settings = group.settings
        torch._fused_adamw_(
            list(group.parameters),
            list(group.gradients),
            list(group.moments[0]),
            list(group.moments[1]),
            [],
            [group.num_steps] * len(group.parameters),
            lr=settings.rate,
            beta1=settings.beta_1,
            beta2=settings.beta_2,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            amsgrad=False,
            maximize=False,
        )


def _updates(group: AdamGroup) -> Iterator[tuple[int | float | None, ...]]:
    settings, step = group.settings, int(group.num_steps)
    factors = (
        settings.rate / (1 - settings.beta_1**step),
        (1 - settings.beta_2**step) ** -0.5,
        1 - settings.rate * settings.weight_decay,
        1 - settings.beta_1,
        1 - settings.beta_2,
        settings.eps,
    )
    for tensors in zip(group.parameters, group.gradients, *group.moments, strict=True):
        yield tensors[0].numel(), *factors, *map(address, tensors)


@torch.no_grad()
def adam_step_by_row_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    num_steps: torch.Tensor,
    settings: AdamSettings,
) -> None:
    """Changes a parameter [n, D] and its moments in place, each row at a step of its own, without weight decay.

    Args:
        parameter: of any floating type.
        gradient: [n, D].
        moments: (first, second), both [n, D].
        num_steps: which step this is to each row, from 1 [n].
        settings: of all of them.
    """
    mean, square = moments
    unbias_1, unbias_2 = (1 - beta ** num_steps.to(mean.dtype)[:, None] for beta in (settings.beta_1, settings.beta_2))
    mean.mul_(settings.beta_1).add_(gradient, alpha=1 - settings.beta_1)
    square.mul_(settings.beta_2).addcmul_(gradient, gradient, value=1 - settings.beta_2)
    size_of_step = (square / unbias_2).sqrt_().add_(settings.eps)
    parameter -= settings.rate * (mean / unbias_1) / size_of_step
