"""New items for a model that TorchEasyRec has trained, from its checkpoint.

TorchEasyRec writes `model.ckpt-STEP/`, with the weights in `model/` (torch.distributed.checkpoint) and, beside it,
`optimizer/`, `plan` and `dataloader_state.json`. A table is called after its feature, with `_emb` behind:
`model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags.item_id_emb.weight`. `main` writes such a folder, with the
weights of the model of `adopt_torchrec.py`; `make_model` is what a company writes for its own model. Run it from the
folder above this one:

    python -m examples.adopt_torcheasyrec adopted
    mwuf adopt adopted/model.ckpt-400 --item-table item_id_emb --model examples.adopt_torcheasyrec:make_model \
        --logs adopted/logs.parquet --output adopted/warm
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp

from examples import adopt_torchrec

STEP = 400
_TABLES = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags"


def theirs(name: str) -> str:
    """The name that TorchEasyRec gives a weight of `adopt_torchrec.Dlrm`."""
    if not name.startswith("bags.embedding_bags."):
        return f"model.{name}"
    field = name.removeprefix("bags.embedding_bags.").removesuffix(".weight")
    return f"{_TABLES}.{field}_emb.weight"


def make_model(weights: dict[str, torch.Tensor]) -> adopt_torchrec.Ranking:
    """What `--model` names: the model with the weights of the checkpoint."""
    dlrm = adopt_torchrec.Dlrm()
    dlrm.load_state_dict({name: weights[theirs(name)] for name in dlrm.state_dict()})
    return adopt_torchrec.Ranking(dlrm)


def write_checkpoint(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Writes the weights of a `Dlrm` as TorchEasyRec does after so many steps."""
    checkpoint = folder / f"model.ckpt-{STEP}"
    dcp.save({theirs(name): value for name, value in weights.items()}, checkpoint_id=checkpoint / "model", no_dist=True)
    (checkpoint / "plan").write_text(json.dumps({}), encoding="utf-8")
    (checkpoint / "dataloader_state.json").write_text(json.dumps({"logs.parquet": 30_000}), encoding="utf-8")
    return checkpoint


def main(folder: Path) -> None:
    """Writes the checkpoint and the logs that the command above reads."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = adopt_torchrec.make_logs()
    write_checkpoint(adopt_torchrec.train(logs).state_dict(), folder)
    pq.write_table(logs, folder / "logs.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "adopted"))
