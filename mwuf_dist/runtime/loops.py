"""Whether the compiled loops are used: by all ranks or by none."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mwuf_dist.runtime.runtime import Runtime


def share_out(threads: int, device: torch.device) -> bool:
    """Gives the compiled loops of a CPU so many threads, and torch one where there are loops.

    Returns whether there are.

    OpenMP's threads spin between two operators, on the core that the loops' threads would have, and a sum of torch's on
    several threads has other bits than on one.
    """
    from mwuf_kernels import native  # late: `prepare` has no use for it

    native.set_num_threads(threads)
    is_compiled = device.type == "cpu" and native.has_library()
    torch.set_num_threads(1 if is_compiled else threads)
    return is_compiled


def agreed(runtime: Runtime, is_compiled: bool) -> bool:
    """Says whether every rank has compiled loops: with and without them ranks would exchange different things."""
    if runtime.world_size == 1 or runtime.device.type != "cpu":
        return is_compiled
    everyone = not runtime.max(int(not is_compiled))
    if is_compiled and not everyone:
        warnings.warn(
            "another rank has no compiled loops, so no rank uses them, and training is slower: see `mwuf doctor` on "
            "each host",
            stacklevel=2,
        )
    return everyone


def loops_of_all(device: torch.device, are_used: bool) -> contextlib.AbstractContextManager[None]:
    """Lets nobody use the loops where a rank has none: backbones look for them without asking the others."""
    from mwuf_kernels import without_library  # late, as above

    return without_library() if device.type == "cpu" and not are_used else contextlib.nullcontext()
