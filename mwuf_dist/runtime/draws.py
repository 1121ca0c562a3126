"""Random numbers of training by position: a function of (seed, stage, epoch, step, position in the global batch).

So neither the number of ranks nor a restart changes a mask. A stage calls `begin` before a step. Who draws then gets
the numbers of this rank's rows, which are neighbours in the global batch, or those of ids, wherever they stand. Calls
are told apart by their order, so every rank makes the same ones.

A row's numbers come from one stream per call that a rank enters at its first row: PCG64-DXSM can skip any distance at
once. With 16 bits a unit a mask costs what one of SFC64 cost, which cannot skip, and a tenth of torch's `bernoulli_`.
"""

from __future__ import annotations

import numpy as np
import torch
from mwuf_kernels import dropout_noise_, has_library

_CALL_BITS = 48  # The stream of a call has room for 2^48 draws of 64 bits.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64


class _Step:
    """The draws of one step, in the order of the calls."""

    def __init__(self, key: tuple[int, ...], first_row: int) -> None:
        self.key = key
        self.first_row = first_row
        self.calls = 0
        self._bits: np.random.PCG64DXSM | None = None
        self._position = 0

    def raw(self, begin: int, number: int) -> np.ndarray:
        """Draws [begin, begin + number) of the next call's stream, uint64."""
        stream = self._at(begin)
        self._position += number
        return stream.random_raw(number)

    def state(self, begin: int) -> tuple[int, int]:
        """Returns state and increment of the next call's stream, from which draw `begin` comes."""
        found = self._at(begin).state["state"]
        return found["state"], found["inc"]

    def _at(self, begin: int) -> np.random.PCG64DXSM:
        """Returns the stream where draw `begin` of the next call is its next."""
        if self._bits is None:
            self._bits = np.random.PCG64DXSM(np.random.SeedSequence(self.key))
        begin += self.calls << _CALL_BITS
        self.calls += 1
        self._bits.advance(begin - self._position)
        self._position = begin
        return self._bits

    def salt(self) -> int:
        """Returns a number of 64 bits of its own for the next call."""
        self.calls += 1
        return int(np.random.SeedSequence([*self.key, self.calls]).generate_state(1, np.uint64)[0])


_step = _Step((0,), 0)


def begin(*key: int, first_row: int) -> None:
    """Begins a step's draws.

    Args:
        key: seed, number of the stage, epoch and step.
        first_row: position of this rank's first row in the global batch; its others follow.
    """
    global _step
    _step = _Step(key, first_row)


def row_uniform(num_rows: int, width: int, device: torch.device) -> torch.Tensor:
    """Returns uniform numbers in [0, 1) of this rank's rows, the first of its batch [num_rows, width] float32."""
    if device.type != "cpu":
        rows = torch.arange(_step.first_row, _step.first_row + num_rows, device=device)
        return id_uniform(rows, width)
    raw = _step.raw(_step.first_row * width, num_rows * width) >> np.uint64(40)
    return torch.from_numpy(raw.astype(np.float32) * np.float32(2**-24)).view(num_rows, width)


def id_uniform(ids: torch.Tensor, width: int) -> torch.Tensor:
    """Gives uniform numbers in [0, 1) of ids [n] int64, wherever they stand.

    [n, width] float32. Equal ids get equal ones.
    """
    columns = torch.arange(width, device=ids.device)
    z = (ids[:, None] * width + columns) * _signed(_GOLDEN) + _signed(_step.salt())
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return _shifted(z ^ _shifted(z, 31), 40) * 2.0**-24


def row_noise(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Draws what dropout multiplies this rank's rows x [b, ...] by: 0 for a fraction, and what keeps the mean.

    On CPU the fraction is right to 2^-16.
    """
    num_rows = len(x)
    width = x.numel() // max(1, num_rows)
    scale = 0.0 if dropout == 1 else 1 / (1 - dropout)
    if x.device.type != "cpu":
        kept = row_uniform(num_rows, width, x.device) >= dropout
        return kept.view(x.shape).to(x.dtype).mul_(scale)
    begin = _step.first_row * width
    skipped = begin % 4  # A draw is four units.
    kept = round((1 - dropout) * (1 << 16))  # of 65536
    noise = torch.empty(x.shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    if has_library(noise):
        return dropout_noise_(noise, *_step.state(begin // 4), skipped, kept, scale).to(x.dtype)
    raw = _step.raw(begin // 4, -(-(skipped + x.numel()) // 4))
    units = raw.view(np.int16)[skipped : skipped + x.numel()].reshape(x.shape)
    out = noise.numpy()
    np.multiply(units < kept - (1 << 15), out.dtype.type(scale), out=out)
    return noise.to(x.dtype)


def _signed(value: int) -> int:
    """Returns the int64 of the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns bits of int64 shifted to the right, zeros coming in; torch's shift brings the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
