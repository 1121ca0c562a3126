"""AdamW over several parameters, by torch's fused kernel; Adam of single rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
    """Changes parameters and moments in place (Loshchilov and Hutter 2019), in one pass over each.

    torch's layers above this kernel sort parameters by device and check them anew in every step, which takes longer
    than the kernel itself.

    Args:
        parameters: contiguous tensors of any shapes.
        gradients: theirs.
        moments: (first, second) of each.
        num_steps: which step this is, from 1 [], float32.
        settings: of all of them.
    """
    torch._fused_adamw_(
        list(parameters),
        [gradient.contiguous() for gradient in gradients],  # The kernel reads memory in order, whatever the strides.
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
