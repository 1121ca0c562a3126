"""A model repository of the Triton Inference Server: the compiled model and its `config.pbtxt`.

The platform is `torch_aoti` of Triton's PyTorch backend, which runs packages of AOTInductor; the server needs the
PyTorch version that compiled the package. A request has one item embedding and one context a row, the answer one logit.
"""

from __future__ import annotations

from pathlib import Path

from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.writers.compiled import CompiledWriter

REPOSITORY, MODEL = "triton", "mwuf"
# Rows of one batch that the server makes of several requests.
_MOST_ROWS = 4096
_CONFIG = """\
name: "{model}"
platform: "torch_aoti"
backend: "pytorch"
default_model_filename: "model.pt2"
max_batch_size: {most_rows}
input [
  {{
    name: "INPUT__0"  # item embedding
    data_type: TYPE_FP32
    dims: [ {dim} ]
  }},
  {{
    name: "INPUT__1"  # context: of the item, of the interaction, of the user
    data_type: TYPE_FP32
    dims: [ {width} ]
  }}
]
output [
  {{
    name: "OUTPUT__0"  # logit
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape: {{ shape: [ ] }}
  }}
]
instance_group [ {{ kind: {kind} }} ]
dynamic_batching {{ }}
"""


class TritonWriter(CompiledWriter):
    """Writes what Parquet has, and `triton/`, which `tritonserver --model-repository` takes."""

    package = f"{REPOSITORY}/{MODEL}/1/model.pt2"

    def model(self, run: FinishedRun, folder: Path) -> None:
        """See `Writer.model`."""
        super().model(run, folder)
        (folder / REPOSITORY / MODEL / "config.pbtxt").write_text(config_of(run), encoding="utf-8")


def config_of(run: FinishedRun) -> str:
    """Returns the text of `config.pbtxt` for the model of a run."""
    model = run.model
    width = (model.shape.num_fields - 1) * model.dim + model.backbone.history_width
    kind = "KIND_GPU" if model.runtime.device.type == "cuda" else "KIND_CPU"
    return _CONFIG.format(model=MODEL, most_rows=_MOST_ROWS, dim=model.dim, width=width, kind=kind)
