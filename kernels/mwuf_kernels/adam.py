"""AdamW over several parameters, by torch's fused kernel; Adam of single rows."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mwuf_kernels.native import num_threads

# Elements from which threads share a parameter. On two cores with one memory, 80 million are 1.14 to 1.16 times as fast
# on two threads, 24 million 1.06 to 1.12, 4 and 8 million .92 to 1.04.
_SHARED_FROM = 1 << 24
_LINE = 64  # A thread's part is so many elements, or a multiple: whole registers, and cache lines of its own.


@dataclass(frozen=True)
class AdamSettings:
    """Learning rate, decay rates of both moments, decoupled weight decay, and what keeps a division from being by 0."""

    rate: float
    weight_decay: float = 0.0
    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-8


# A parameter or a part of one, its gradient, and its moments.
_Tensors = tuple[torch.Tensor, ...]


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
    than the kernel itself. Large parameters are shared by the threads of `set_num_threads`; results have the same bits
    for any number of them.

    Args:
        parameters: contiguous tensors of any shapes.
        gradients: theirs.
        moments: (first, second) of each.
        num_steps: which step this is, from 1 [], float32.
        settings: of all of them.
    """
    # The kernel reads memory in order, whatever the strides.
    whole = [*zip(parameters, [gradient.contiguous() for gradient in gradients], *moments, strict=True)]
    number = num_threads()
    if number == 1 or not any(one[0].is_cpu and one[0].numel() >= _SHARED_FROM for one in whole):
        return _step(whole, num_steps, settings)
    shares: list[list[_Tensors]] = [[] for _ in range(number)]
    for tensors in whole:
        num_elements = tensors[0].numel()
        each = num_elements if num_elements < _SHARED_FROM else -(-num_elements // (number * _LINE)) * _LINE
        pieces = zip(*(one.view(-1).split(each) for one in tensors), strict=True)
        for share, piece in zip(shares, pieces, strict=False):  # a small one is in one piece
            share.append(piece)
    others = [_threads(number - 1).submit(_step, share, num_steps, settings) for share in shares[1:] if share]
    _step(shares[0], num_steps, settings)
    for one in others:
        one.result()
    return None


@functools.cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="mwuf-adam")


os.register_at_fork(after_in_child=_threads.cache_clear)  # A child has none of its parent's threads.


@torch.no_grad()
def _step(tensors: Sequence[_Tensors], num_steps: torch.Tensor, settings: AdamSettings) -> None:
    parameters, gradients, means, squares = (list(column) for column in zip(*tensors, strict=True))
    torch._fused_adamw_(
        parameters,
        gradients,
        means,
        squares,
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
