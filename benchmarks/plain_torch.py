"""A good plain PyTorch MWUF program: the baseline that the benchmarks and tests compare `mwuf_dist` with.

It imports nothing of `mwuf_dist`, so that it can neither share its faults nor profit from its kernels. Everything lies
in memory, a batch is three index tensors, and one step is one function that a timing harness can call.

Words: B rows of a batch, D embedding width, F_u user fields, F_i item fields (the item ID is no field: the model's
`phi_old` or the method's `phi_new` holds it), F = F_u + 1 + F_i.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_backbones import BACKBONES, WITH_HISTORY, Encoder, Interest, Recurrent, build


@dataclass(frozen=True)
class Field:
    """One feature of every user, or of every item, as a side table.

    Attributes:
        name: The field's name, unique over both sides.
        size: Number of embedding rows; every value lies in [0, size).
        values: int64 `[num_entities]`, or, with offsets, all entities' values end to end.
        offsets: int64 `[num_entities + 1]` for a multi-valued field (mean pooled; no value at all pools to zero).
    """

    name: str
    size: int
    values: Tensor
    offsets: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Rows to train on or to score: user `[B]` int64, item `[B]` int64, label `[B]` float.

    history `[B, L]` int64: old items that the row's user met before, oldest first, padded behind; for the encoder
    `[B, num_old]`: how often the user liked the old item, the row itself left out.
    """

    user: Tensor
    item: Tensor
    label: Tensor
    history: Tensor | None = None


class SideEmbeddings(nn.Module):
    """The embeddings of one side's fields."""

    def __init__(self, fields: Sequence[Field], dim: int, init_std: float) -> None:
        super().__init__()
        self.out_dim = len(fields) * dim
        self.tables = nn.ModuleList()
        for i, field in enumerate(fields):
            self.register_buffer(f"values_{i}", field.values)
            if field.offsets is None:
                table = nn.Embedding(field.size, dim)
            else:
                self.register_buffer(f"starts_{i}", field.offsets[:-1])
                self.register_buffer(f"lengths_{i}", field.offsets.diff())
                table = nn.EmbeddingBag(field.size, dim, mode="mean")
            nn.init.normal_(table.weight, std=init_std)
            self.tables.append(table)

    def forward(self, index: Tensor) -> Tensor:
        """Looks up all fields of the entities `index` `[B]`; returns `[B, num_fields * D]`."""
        return torch.cat([self._lookup(i, table, index) for i, table in enumerate(self.tables)], 1)

    def num_values_of_a_row(self) -> float:
        """Counts rows of tables that an entity looks up, on average over them."""
        bags = [field for field, table in enumerate(self.tables) if not isinstance(table, nn.Embedding)]
        lengths = [self.get_buffer(f"lengths_{i}").float().mean().item() for i in bags]
        return len(self.tables) - len(bags) + sum(lengths)

    def _lookup(self, i: int, table: nn.Module, index: Tensor) -> Tensor:
        values = self.get_buffer(f"values_{i}")
        if isinstance(table, nn.Embedding):
            return table(values[index])
        # The jagged values of a batch: half the time of a padded bag, which also visits its padding.
        lengths = self.get_buffer(f"lengths_{i}")[index]
        ends = lengths.cumsum(0)
        bag_starts = ends - lengths
        shift = self.get_buffer(f"starts_{i}")[index] - bag_starts
        places = torch.repeat_interleave(shift, lengths) + torch.arange(int(ends[-1]), device=index.device)
        return table(values[places], bag_starts)


class PlainModel(nn.Module):
    """The backbone f_theta with its feature tables and the old items' ID table.

    A backbone that looks at histories has two rows more in `phi_old`: row `num_old` is the unknown item, and row
    `num_old + 1`, which stays zero, pads a history. `dtype` is that of the backbone's products, by autocast.
    """

    def __init__(
        self,
        backbone: str,
        user_fields: Sequence[Field],
        item_fields: Sequence[Field],
        num_old_items: int,
        dim: int = 16,
        hidden: Sequence[int] = (64, 64),
        batch_norm: bool = False,
        dropout: float = 0.0,
        init_std: float = 0.01,
        log_neurons: int = 32,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone is {backbone!r}; use one of {', '.join(BACKBONES)}")
        self.dtype = dtype
        self.dim, self.num_old, self.uses_history = dim, num_old_items, backbone in WITH_HISTORY
        self.users = SideEmbeddings(user_fields, dim, init_std)
        self.items = SideEmbeddings(item_fields, dim, init_std)
        padding = num_old_items + 1 if self.uses_history else None
        self.phi_old = nn.Embedding(num_old_items + 2 * self.uses_history, dim, padding)
        nn.init.normal_(self.phi_old.weight, std=init_std)
        if padding is not None:
            nn.init.zeros_(self.phi_old.weight[padding])
        num_fields = len(user_fields) + 1 + len(item_fields)
        self.head = build(backbone, len(item_fields), num_fields, dim, log_neurons, hidden, batch_norm, dropout)

    @torch.no_grad()
    def user_id_rows(self) -> Tensor:
        """ID embedding of every user `[num_users, D]`: the first user field is the ID."""
        table = self.users.tables[0]
        assert isinstance(table, nn.Embedding)
        return table(self.users.get_buffer("values_0"))

    def past(self, batch: Batch, users: Tensor, items: Tensor) -> Tensor | None:
        """What the backbone makes of the rows' histories before it sees the item ID; None where it looks at none."""
        if not self.uses_history:
            return None
        assert batch.history is not None
        if isinstance(self.head, Encoder):
            old = self.phi_old.weight[: self.num_old], self.items(torch.arange(self.num_old))
            with self._products():
                return self.head.past(old, batch.history, items, users)
        lengths = (batch.history <= self.num_old).sum(1)
        assert isinstance(self.head, Interest | Recurrent)
        with self._products():
            return self.head.past(self.phi_old(batch.history), lengths).to(self.phi_old.weight)

    def forward(self, users: Tensor, v: Tensor, items: Tensor, past: Tensor | None = None) -> Tensor:
        """Logits `[B]` of user fields `[B, F_u * D]`, item ID embeddings `[B, D]` and item fields `[B, F_i * D]`."""
        with self._products():
            return self.head(torch.cat([v, items, users], 1), past).squeeze(1).to(v)

    def logits(self, batch: Batch, item_ids: Tensor) -> Tensor:
        """Logits `[B]` of rows with the item ID embeddings `[num_items, D]`: lookups and forward."""
        users, items = self.users(batch.user), self.items(batch.item)
        return self(users, F.embedding(batch.item, item_ids), items, self.past(batch, users, items))

    def _products(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast("cpu", self.dtype)


class MetaNetworks(nn.Module):
    """The scaling network h over an item's own fields and the shifting network g over its mean user embedding."""

    def __init__(self, item_width: int, dim: int = 16, hidden: int = 16, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.h = nn.Sequential(nn.Linear(item_width, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.g = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        if residual:  # v_warm starts as v
            for network in (self.h, self.g):
                last = network[2]
                assert isinstance(last, nn.Linear) and last.bias is not None
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, v: Tensor, items: Tensor, user_mean: Tensor) -> Tensor:
        """v_warm `[B, D]` of ID embeddings `[B, D]`, item fields `[B, F_i * D]` and the mean of U(v) `[B, D]`."""
        scale = self.h(items)
        return v * (1 + scale if self.residual else scale) + self.g(user_mean)


def compiled(module: nn.Module) -> None:
    """Lets `torch.compile` make the module's whole forward, lookups included, at its first call."""
    if isinstance(module, PlainModel):
        setattr(module, "logits", torch.compile(module.logits))  # noqa: B010
        module.users.compile()
        module.items.compile()
    module.compile()


def adam(module: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Fused Adam over what is not frozen in `module`."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay, fused=True)


def freeze(model: PlainModel) -> PlainModel:
    """Freezes the model for meta_train, warm_up and scoring: no gradients, and BatchNorm's moments stand still."""
    return model.requires_grad_(False).eval()


def common_initialisation(model: PlainModel, num_items: int) -> nn.Embedding:
    """phi_new `[num_items, D]`, every row the mean of the old items' rows."""
    mean = model.phi_old.weight.detach()[: model.num_old].mean(0)
    return nn.Embedding.from_pretrained(mean.repeat(num_items, 1), freeze=False)


@torch.no_grad()
def mean_user_embedding(user_ids: Tensor, user: Tensor, item: Tensor, num_items: int) -> Tensor:
    """The mean user ID embedding of U(v) for every item; the global mean user for items without a row.

    Args:
        user_ids: User ID embeddings by user index, `[num_users, D]`.
        user: int64 `[R]`, users of finished rows.
        item: int64 `[R]`, items of the same rows.
        num_items: Number of rows of the result, `[num_items, D]`.
    """
    sums = user_ids.new_zeros(num_items, user_ids.shape[1]).index_add_(0, item, user_ids[user])
    counts = torch.bincount(item, minlength=num_items).unsqueeze(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), user_ids.mean(0))


def pretrain_step(model: PlainModel, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One step on theta, the feature tables and phi_old; returns the loss."""
    optimizer.zero_grad()
    logits = model.logits(batch, model.phi_old.weight)
    loss = F.binary_cross_entropy_with_logits(logits, batch.label)
    loss.backward()
    optimizer.step()
    return loss.detach()


def meta_train_step(
    model: PlainModel,
    phi_new: nn.Embedding,
    meta: MetaNetworks,
    user_mean: Tensor,
    phi_new_optimizer: torch.optim.Optimizer,
    meta_optimizer: torch.optim.Optimizer,
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """One step of Algorithm 1 as two passes; returns the losses (L_cold, L_warm).

    The cold pass updates phi_new only and the warm pass h and g only, on the v that the cold pass looked up.

    Args:
        model: Frozen (see `freeze`); its looked-up fields serve both passes.
        phi_new: The new-ID table, `[num_items, D]`.
        meta: The scaling and the shifting network.
        user_mean: Mean user embedding of U(v) by item, `[num_items, D]`.
        phi_new_optimizer: Optimizer of `phi_new`.
        meta_optimizer: Optimizer of `meta`.
        batch: Rows of old items.
    """
    users, items = model.users(batch.user), model.items(batch.item)
    past = model.past(batch, users, items)
    v = phi_new(batch.item)
    phi_new_optimizer.zero_grad()
    loss_cold = F.binary_cross_entropy_with_logits(model(users, v, items, past), batch.label)
    loss_cold.backward()
    phi_new_optimizer.step()

    meta_optimizer.zero_grad()
    v_warm = meta(v.detach(), items, user_mean[batch.item])
    loss_warm = F.binary_cross_entropy_with_logits(model(users, v_warm, items, past), batch.label)
    loss_warm.backward()
    meta_optimizer.step()
    return loss_cold.detach(), loss_warm.detach()


def warm_up_step(
    model: PlainModel, phi_new: nn.Embedding, phi_new_optimizer: torch.optim.Optimizer, batch: Batch
) -> Tensor:
    """One step of L_cold on the new items' rows of phi_new, everything else frozen; returns the loss."""
    phi_new_optimizer.zero_grad()
    logits = model.logits(batch, phi_new.weight)
    loss = F.binary_cross_entropy_with_logits(logits, batch.label)
    loss.backward()
    phi_new_optimizer.step()
    return loss.detach()


@torch.no_grad()
def warm_embeddings(model: PlainModel, phi_new: nn.Embedding, meta: MetaNetworks, user_mean: Tensor) -> Tensor:
    """v_warm of every item, `[num_items, D]`: once per phase, not once per row."""
    everything = torch.arange(len(user_mean), device=user_mean.device)
    return meta(phi_new.weight, model.items(everything), user_mean)


@torch.no_grad()
def score(model: PlainModel, item_ids: Tensor, batch: Batch) -> Tensor:
    """Logits `[B]` with the item ID embeddings `[num_items, D]`: phi_new itself (base) or v_warm (MWUF)."""
    return model.logits(batch, item_ids)


def auc(logits: Tensor, label: Tensor) -> float:
    """Area under the ROC curve of logits `[n]` for labels `[n]`: ties count half, by mean ranks."""
    _, place, counts = torch.unique(logits.double(), return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0) - (counts - 1) / 2
    positive = label > 0
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    excess = float(ranks[place][positive].sum()) - num_positive * (num_positive + 1) / 2
    return excess / (num_positive * num_negative)
