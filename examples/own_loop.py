"""MWUF in a TorchRec loop of your own: `MetaWarmUp` beside the model of `adopt_torchrec.py`.

The trained model is frozen. One more table, of rows that all start at the mean item, is looked up by TorchRec in every
step; `MetaWarmUp` makes two embeddings of each row, and one backward trains both: the rows by the first, the scaling
and shifting networks by the second. Run it from the folder above this one: python -m examples.own_loop
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from examples.adopt_torchrec import DIM, FIELDS, Dlrm, make_logs, train
from mwuf_dist import MetaWarmUp


def fit(dlrm: Dlrm, user: torch.Tensor, item: torch.Tensor, category: torch.Tensor, label: torch.Tensor) -> MetaWarmUp:
    """One pass over rows of known items, played as new.

    Args:
        dlrm: trained; nothing of it changes.
        user: of each row [n].
        item: of each row [n].
        category: of each row [n].
        label: [n].
    """
    dlrm.eval().requires_grad_(False)
    config = EmbeddingBagConfig(name="new", embedding_dim=DIM, num_embeddings=FIELDS["item_id"], feature_names=["new"])
    new_rows = EmbeddingBagCollection(tables=[config])
    table = new_rows.embedding_bags["new"].get_parameter("weight")
    users, categories = dlrm.lookup(["user_id"], [user]), dlrm.lookup(["category"], [category])
    with torch.no_grad():
        table.copy_(dlrm.bags.embedding_bags["item_id"].get_parameter("weight").mean(0).expand_as(table))
        counts = torch.bincount(item, minlength=len(table)).clamp(min=1)
        mean_user = torch.zeros(len(table), DIM).index_add_(0, item, users) / counts[:, None]
        fields = torch.zeros(len(table), DIM)
        fields[item] = categories  # each row of an item has its category
    warm_up = MetaWarmUp(DIM, item_width=DIM, user_width=DIM)
    optimizer = torch.optim.Adam([{"params": new_rows.parameters()}, {"params": warm_up.parameters()}], lr=5e-3)
    for rows in torch.randperm(len(item)).split(512):
        items, inverse = torch.unique(item[rows], return_inverse=True)
        looked_up = new_rows(KeyedJaggedTensor(["new"], items, lengths=torch.ones_like(items)))["new"]
        loss = torch.zeros(())
        for embedding in warm_up(looked_up, fields[items], mean_user[items], inverse):
            logit = dlrm.score(users[rows], embedding, categories[rows])
            loss = loss + F.binary_cross_entropy_with_logits(logit, label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return warm_up


def main() -> MetaWarmUp:
    """Trains the model, then the warm-up."""
    logs = make_logs()
    columns = {name: torch.from_numpy(logs[name].to_numpy().copy()) for name in (*FIELDS, "label")}
    known = columns["item_id"] < FIELDS["item_id"]
    user, item, category, label = (columns[name][known] for name in (*FIELDS, "label"))
    warm_up = fit(train(logs), user, item, category, label.float())
    print(f"mean |scale - 1| at zero inputs: {float(warm_up.scaling(torch.zeros(1, DIM)).detach().abs().mean()):.4f}")
    return warm_up


if __name__ == "__main__":
    main()
