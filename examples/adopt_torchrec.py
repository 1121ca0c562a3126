"""New items for a trained TorchRec model, without pretraining anything.

A small model in the style of DLRM (Naumov et al. 2019: embedding bags, dot products of all pairs of fields, an MLP) is
trained here and its state dict saved; that file is what a company would bring. `make_model` tells `mwuf adopt` how to
score with it. Run it from the folder above this one:

    python -m examples.adopt_torchrec adopted
    mwuf adopt adopted/dlrm.pt --item-table item_id --model examples.adopt_torchrec:make_model \
        --logs adopted/logs.parquet --output adopted/warm
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

DIM = 8
FIELDS = {"user_id": 200, "item_id": 120, "category": 6}  # rows of the tables
NUM_NEW_ITEMS = 40  # whose IDs have no row in the table of items


class Dlrm(nn.Module):
    """Embedding bags, dot products of all pairs of fields beside them, an MLP."""

    pairs: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=rows, feature_names=[name])
            for name, rows in FIELDS.items()
        ]
        self.bags = EmbeddingBagCollection(tables=tables)
        num_pairs = len(FIELDS) * (len(FIELDS) - 1) // 2
        self.over = nn.Sequential(nn.Linear(len(FIELDS) * DIM + num_pairs, 32), nn.ReLU(), nn.Linear(32, 1))
        self.register_buffer("pairs", torch.triu_indices(len(FIELDS), len(FIELDS), offset=1), persistent=False)

    def lookup(self, names: list[str], ids: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings [n, F*D] of some fields with ids [n] each; the others get empty bags."""
        given = dict(zip(names, ids, strict=True))
        num, nothing = len(ids[0]), torch.empty(0, dtype=torch.int64)
        lengths = torch.cat([torch.full((num,), int(name in given)) for name in FIELDS])
        values = torch.cat([given.get(name, nothing) for name in FIELDS])
        found = self.bags(KeyedJaggedTensor(list(FIELDS), values, lengths=lengths))
        return torch.cat([found[name] for name in names], dim=1)

    def score(self, user: torch.Tensor, item: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        """Logits [B] of embeddings [B, D]."""
        fields = torch.stack([user, item, category], dim=1)
        dots = torch.bmm(fields, fields.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.over(torch.cat([fields.flatten(1), dots], dim=1)).squeeze(1)


class Ranking(nn.Module):
    """The same model as `mwuf adopt` wants it: the item embedding comes from outside."""

    def __init__(self, dlrm: Dlrm) -> None:
        super().__init__()
        self.dlrm = dlrm

    def forward(self, item: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Logits [B] of item embeddings [B, D] and contexts [B, 2 D]."""
        return self.dlrm.score(context[:, :DIM], item, context[:, DIM:])

    def context(self, rows: pa.Table) -> torch.Tensor:
        """Embeddings of user and category [n, 2 D]."""
        return torch.cat([self.users(rows), self.item_fields(rows)], dim=1)

    def item_fields(self, rows: pa.Table) -> torch.Tensor:
        """Embedding of the item's category [n, D]."""
        return self.dlrm.lookup(["category"], [_ids(rows, "category")])

    def users(self, rows: pa.Table) -> torch.Tensor:
        """Embedding of the user [n, D]."""
        return self.dlrm.lookup(["user_id"], [_ids(rows, "user_id")])


def make_model(weights: dict[str, torch.Tensor]) -> Ranking:
    """What `--model` names: the model with the weights of the file."""
    dlrm = Dlrm()
    dlrm.load_state_dict(weights)
    return Ranking(dlrm)


def _ids(rows: pa.Table, name: str) -> torch.Tensor:
    return torch.from_numpy(rows[name].to_numpy().astype(np.int64))


def make_logs(num_rows: int = 30_000, seed: int = 0) -> pa.Table:
    """Interactions of known and new items, whose clicks depend on hidden vectors of users, items and categories."""
    random = np.random.default_rng(seed)
    num_items = FIELDS["item_id"] + NUM_NEW_ITEMS
    users, items = random.normal(size=(FIELDS["user_id"], 3)), random.normal(size=(num_items, 3))
    liked = random.normal(size=num_items)
    category = random.integers(FIELDS["category"], size=num_items)
    user, item = random.integers(FIELDS["user_id"], size=num_rows), random.integers(num_items, size=num_rows)
    logit = (users[user] * items[item]).sum(1) + liked[item] + 0.5 * (category[item] - 2.5)
    label = (random.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    columns = {"user_id": user, "item_id": item, "category": category[item], "label": label}
    return pa.table(columns | {"timestamp": np.arange(num_rows)})


def train(logs: pa.Table, num_epochs: int = 8) -> Dlrm:
    """Trains on the known items, as the company did."""
    torch.manual_seed(0)
    dlrm = Dlrm()
    optimizer = torch.optim.Adam(dlrm.parameters(), lr=5e-3)
    logs = logs.filter(pa.array(logs["item_id"].to_numpy() < FIELDS["item_id"]))
    columns = {name: _ids(logs, name) for name in (*FIELDS, "label")}
    for _ in range(num_epochs):
        for rows in torch.randperm(logs.num_rows).split(512):
            found = dlrm.lookup(list(FIELDS), [columns[name][rows] for name in FIELDS]).split(DIM, dim=1)
            loss = F.binary_cross_entropy_with_logits(dlrm.score(*found), columns["label"][rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return dlrm


def main(folder: Path) -> None:
    """Writes the state dict and the logs that the command above reads."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = make_logs()
    torch.save(train(logs).state_dict(), folder / "dlrm.pt")
    pq.write_table(logs, folder / "logs.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "adopted"))
