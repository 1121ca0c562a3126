"""What dropout multiplies by, drawn from a stream of PCG64-DXSM on several threads.

The generator is NumPy's (`numpy.random.PCG64DXSM`), bit for bit. It can skip any distance, so blocks are drawn apart.
"""

import torch

from mwuf_kernels.native import call

_LOW = (1 << 64) - 1


def dropout_noise_(
    out: torch.Tensor, state: int, increment: int, skipped: int, kept: int, scale: float
) -> torch.Tensor:
    """Fills a tensor, by `dropout_noise.cpp`; ask `has_library(out)` first.

    A draw of 64 bits is four units of 16 bits with a sign, the lowest first. An element becomes `scale` where its unit
    is one of the `kept` lowest of the 65536 values, else 0.

    Args:
        out: float32 on the CPU, contiguous, of any shape; element i takes unit `skipped + i`.
        state: of the stream, 128 bits.
        increment: of the stream, 128 bits.
        skipped: units of the first draws that are left out.
        kept: 0 to 65536.
        scale: what a kept element is multiplied by.

    Returns:
        `out`.
    """
    halves = (state & _LOW, state >> 64, increment & _LOW, increment >> 64)
    call("mwuf_dropout_noise", *halves, skipped, out.numel(), kept - (1 << 15), float(scale), out)
    return out
