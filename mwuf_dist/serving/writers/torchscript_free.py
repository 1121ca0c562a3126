"""The model for servers without TorchScript and without Python: a `torch.export` program and a compiled package."""

from mwuf_dist.serving.writers.compiled import CompiledWriter


class TorchscriptFreeWriter(CompiledWriter):
    """Writes what Parquet has, and `model-aoti.pt2`, compiled by AOTInductor: see `compiled.py`."""

    package = "model-aoti.pt2"
