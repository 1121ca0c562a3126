"""The formats of `mwuf export`: one file each, behind the interface of `interface.py`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal, get_args

from mwuf_dist.config import UserError

if TYPE_CHECKING:
    from mwuf_dist.serving.writers.interface import Writer

# Formats that are tables and the model alone, which the daily job writes too.
TableFormat = Literal["parquet", "safetensors", "npy"]
Format = Literal["parquet", "safetensors", "npy", "torchscript-free", "triton", "faiss", "redis", "torcheasyrec"]

_CLASSES: dict[str, tuple[str, str]] = {
    "parquet": ("parquet", "ParquetWriter"),
    "safetensors": ("safetensors", "SafetensorsWriter"),
    "npy": ("npy", "NpyWriter"),
    "torchscript-free": ("torchscript_free", "TorchscriptFreeWriter"),
    "triton": ("triton", "TritonWriter"),
    "faiss": ("faiss", "FaissWriter"),
    "redis": ("redis", "RedisWriter"),
    "torcheasyrec": ("torcheasyrec", "TorchEasyRecWriter"),
}
assert set(_CLASSES) == set(get_args(Format))


def writer_of(kind: str, to: str = "") -> Writer:
    """Returns the writer of a format.

    Args:
        kind: its name.
        to: see `Writer`.

    Raises:
        UserError: there is none of this name, or `to` does not go with it.
    """
    if kind not in _CLASSES:
        raise UserError(f"no format {kind!r}: there are {', '.join(_CLASSES)}; was this written by a later version?")
    module, name = _CLASSES[kind]
    cls = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return cls(to)
