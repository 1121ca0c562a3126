"""AdamW over several parameters, by `adam.cpp` on a CPU and torch's fused kernel elsewhere; Adam of single rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mwuf_kernels.native import call, has_library


@dataclass(frozen=True)
class AdamSettings:
    """Learning rate, decay rates of both moments, decoupled weight decay, and what keeps a division from being by 0."""

    rate: float
    weight_decay: float = 0.0
    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-8


@torch.no_grad()
def adam_step_(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    moments: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    num_steps: torch.Tensor,
    settings: AdamSettings,
) -> None:
    """Changes parameters and moments in place (Loshchilov and Hutter 2019).

    torch's kernel knows OpenMP's threads only, which the loops of this package do without.

    Args:
        parameters: contiguous tensors of any shapes.
        gradients: theirs.
        moments: (first, second) of each.
        num_steps: which step this is, from 1 [].
        settings: of all of them.
    """
    if has_library(*parameters, *gradients) and all(tensor.is_contiguous() for tensor in gradients):
        step = int(num_steps)
        factors = (
            settings.rate / (1 - settings.beta_1**step),
            (1 - settings.beta_2**step) ** -0.5,
            1 - settings.rate * settings.weight_decay,
            1 - settings.beta_1,
            1 - settings.beta_2,
            settings.eps,
        )
        for parameter, gradient, first, second in zip(parameters, gradients, *moments, strict=True):
            call("mwuf_adam", parameter.numel(), parameter, gradient, first, second, *factors)
        return
    torch._fused_adamw_(
        list(parameters),
        list(gradients),
        list(moments[0]),
        list(moments[1]),
        [],
        [num_steps] * len(parameters),
        lr=settings.rate,
        beta1=settings.beta_1,
        beta2=settings.beta_2,
        weight_decay=settings.weight_decay,
        eps=settings.eps,
        amsgrad=False,
        maximize=False,
    )


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
