"""`mwuf adopt`: warm embeddings for the new items of a model that was trained elsewhere.

Nothing of that model is trained. Its logs are read once: interactions of items that have a row in its item table train
the scaling and shifting networks (algorithm 1 of MWUF, the items played as new), then the other items are warmed up on
their own interactions by the serving rule.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.config import UserError
from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.vectors import column_of
from mwuf_dist.files import appearing, write_json
from mwuf_dist.locks import locked
from mwuf_dist.methods.meta_warm_up import MetaWarmUp, algorithm_1_losses
from mwuf_dist.training.item_rule.rule import WarmRule, item_groups, module_slope, warm_rows

# Rows of the logs whose embeddings are asked for at once.
_CHUNK_ROWS = 1 << 16
_MOST_SAID = 300  # Characters of an error, and of a row.


class RankingModel(nn.Module):
    """Defines what the factory of a user's model must return: any module with these four methods.

    `rows` is a part of the logs, an Arrow table with all of its columns.
    """

    def forward(self, item: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Returns logits [B] from item ID embeddings [B, D] and what `context` gave for the rows [B, C]."""
        raise NotImplementedError

    def context(self, rows: pa.Table) -> torch.Tensor:
        """Returns all that the model knows of each row but the item ID embedding [n, C]."""
        raise NotImplementedError

    def item_fields(self, rows: pa.Table) -> torch.Tensor:
        """Returns embeddings of the own fields of each row's item [n, Ci]: what scales its embedding."""
        raise NotImplementedError

    def users(self, rows: pa.Table) -> torch.Tensor:
        """Returns embedding of each row's user [n, Cu]: what, as a mean over an item's users, shifts its embedding."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdoptSettings:
    """Columns of the logs and the few numbers of the two trainings.

    Attributes:
        user: column of the user.
        item: column of the item. Without a list of IDs, a number below the number of rows of the item table is that
            row's item.
        label: column of the label, 0 or 1.
        time: column of the time.
        hidden: width of the hidden layer of the meta networks.
        epochs: passes over the known items' rows.
        batch_size: of these passes.
        learning_rate: of Adam, for the rows played as new and for the meta networks.
        warm_rows: K of the serving rule.
        warm_epochs: its passes over a block.
        warm_learning_rate: its learning rate.
        seed: of the order of rows and the first weights.
    """

    user: str = "user_id"
    item: str = "item_id"
    label: str = "label"
    time: str = "timestamp"
    hidden: int = 16
    epochs: int = 1
    batch_size: int = 1024
    learning_rate: float = 1e-3
    warm_rows: int = 20
    warm_epochs: int = 5
    warm_learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Adopted:
    """New items of an adopted model.

    Attributes:
        item_ids: raw IDs [n], ascending.
        embeddings: warm embeddings [n, D]: what the model reads in the place of its item table's row.
        rows: the rows before scaling and shifting [n, D].
        interactions: number of each item's rows in the logs [n].
        meta: the trained networks.
    """

    item_ids: pa.Array
    embeddings: torch.Tensor
    rows: torch.Tensor
    interactions: np.ndarray
    meta: MetaWarmUp

    def save(self, folder: Path, about: dict[str, object]) -> None:
        """Writes `items.parquet`, `meta.pt` (the networks' state dict) and `adopt.json` into a new folder."""
        with locked(folder, "adopt"):
            if folder.exists():
                raise UserError(f"{folder}: exists; name another --output")
            with appearing(folder, "name another --output") as beside:
                self._write(beside, about)

    def _write(self, folder: Path, about: dict[str, object]) -> None:
        vectors = [column_of(values.numpy()) for values in (self.embeddings, self.rows)]
        columns = [self.item_ids, *vectors, pa.array(self.interactions)]
        pq.write_table(
            pa.table(columns, names=["item_id", "embedding", "row", "interactions"]), folder / "items.parquet"
        )
        buffer = io.BytesIO()
        torch.save(self.meta.state_dict(), buffer)
        (folder / "meta.pt").write_bytes(buffer.getbuffer())
        write_json(folder / "adopt.json", about | {"num_items": len(self.item_ids)})


def adopt(
    model: nn.Module,
    item_table: torch.Tensor,
    logs: pa.Table,
    settings: AdoptSettings | None = None,
    item_ids: pa.ChunkedArray | None = None,
) -> Adopted:
    """Warms up the items of the logs that have no row in the model's item table.

    Args:
        model: a `RankingModel`; it is put into eval mode and none of its weights changes.
        item_table: its trained item ID embeddings [I, D].
        logs: interactions of known items and new ones.
        settings: columns and numbers.
        item_ids: raw ID of the item of each row of the table [at most I], numbers or text, null for a row of no item;
            None where an item's ID is the number of its row.

    Raises:
        UserError: the logs have no known item, or no new one.
    """
    settings = settings or AdoptSettings()
    _check(logs, item_table, settings)
    model.eval()
    item, ids, _ = raw_ids.encode_ids(logs[settings.item])
    if (item < 0).any():
        raise UserError(f"{settings.item} is missing in {int((item < 0).sum())} of {len(item)} rows; remove these rows")
    known = is_known(ids, len(item_table), item_ids)[item]
    if known.all() or not known.any():
        raise UserError(
            f"the logs have {int(known.sum())} rows of items in the item table ({len(item_table)} rows) and "
            f"{int((~known).sum())} of new ones: both are needed, the first to learn how items warm up"
        )
    common = item_table.float().mean(0)
    trained, new = (_interactions(model, logs, np.flatnonzero(mask), item, ids, settings) for mask in (known, ~known))
    torch.manual_seed(settings.seed)
    meta = MetaWarmUp(len(common), trained.item_fields.shape[1], trained.user_mean.shape[1], settings.hidden)
    _meta_train(model, meta, trained, common, settings)
    rows = _warmed(model, new, common, settings)
    vectors = meta.embeddings(rows, new.item_fields, new.user_mean)
    num_bad = int((~vectors.isfinite()).any(dim=1).sum())
    if num_bad:
        raise UserError(
            f"--model: the embeddings of {num_bad:,} of {len(vectors):,} new items are NaN or infinite: "
            "forward(item, context) gives such logits for some rows, or the learning rates are too large"
        )
    return Adopted(new.ids, vectors, rows, new.counts, meta)


def _check(logs: pa.Table, item_table: torch.Tensor, settings: AdoptSettings) -> None:
    """Refuses what would make every embedding wrong: missing values, labels that are no labels, times as text."""
    for name in (settings.user, settings.item, settings.label, settings.time):
        if logs[name].null_count:
            raise UserError(f"{name} is missing in {logs[name].null_count} of {logs.num_rows} rows; remove these rows")
    kind = logs[settings.time].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)):
        raise UserError(f"{settings.time} has type {kind}, which has no order in time; give numbers or timestamps")
    label = logs[settings.label].cast(pa.float64()).to_numpy()
    if not np.isin(label, (0, 1)).all():
        wrong = label[~np.isin(label, (0, 1))][0]
        raise UserError(f"{settings.label} is {wrong} in some row, neither 0 nor 1: make labels of it first")
    bad = np.flatnonzero(~np.isfinite(item_table.detach().float().cpu().numpy()).all(axis=1))
    if len(bad):
        raise UserError(f"row {bad[0]} of the item table (and {len(bad) - 1} others) holds NaN or infinity")


def is_known(ids: pa.Array, num_rows: int, item_ids: pa.ChunkedArray | None) -> np.ndarray:
    """Says which of the raw IDs [n] are those of rows of the table."""
    if item_ids is not None:
        if len(item_ids) > num_rows:
            raise UserError(f"the list of item IDs has {len(item_ids)} rows, and the item table only {num_rows}")
        _, listed, form = raw_ids.encode_ids(item_ids)
        return raw_ids.find(ids, listed, form) >= 0
    if not pa.types.is_integer(ids.type):
        raise UserError(
            f"item IDs are text, such as {ids[0].as_py()!r}: say which ID each row of the item table has (--item-ids)"
        )
    number = ids.to_numpy()
    return (number >= 0) & (number < num_rows)


def _warmed(model: nn.Module, new: _Interactions, common: torch.Tensor, settings: AdoptSettings) -> torch.Tensor:
    """Returns rows [U, D] by the serving rule, from the common one; of so many items at a time that contexts fit."""
    rule = WarmRule(settings.warm_rows, settings.warm_epochs, settings.warm_learning_rate)
    slope, first = module_slope(_single_precision(model)), np.cumsum(new.counts) - new.counts
    out = []
    for items in item_groups(new.counts, _CHUNK_ROWS):
        begin, end = int(first[items[0]]), int(first[items[-1]] + new.counts[items[-1]])
        context = new.context(model, np.arange(begin, end)).double()
        start, none = common.repeat(len(items), 1), np.zeros(len(items), dtype=np.int64)
        made = warm_rows(
            rule, slope, start, none, new.counts[items], lambda places, c=context: c[torch.from_numpy(places)],
            new.label[begin:end].numpy(),
        )  # fmt: skip
        out.append(made.rows)
    return torch.cat(out)


def _single_precision(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    # A copy in float64 would copy all of the model's tables; theirs is the precision that the model was trained in.
    return lambda item, context: model(item.float(), context.float()).double()


@dataclass(frozen=True)
class _Interactions:
    """Interactions sorted by (item, time, user), and what the model says of their items.

    Attributes:
        ids: distinct items, ascending [U].
        counts: interactions of each [U].
        item: place in `ids` of each row [n].
        label: [n].
        logs: all rows of the logs; only their embeddings are too large to be held at once.
        order: place of each row in them [n].
        item_fields: of each item, by its first row [U, Ci].
        user_mean: of each item [U, Cu].
    """

    ids: pa.Array
    counts: np.ndarray
    item: torch.Tensor
    label: torch.Tensor
    logs: pa.Table
    order: np.ndarray
    item_fields: torch.Tensor
    user_mean: torch.Tensor

    @torch.no_grad()
    def context(self, model: nn.Module, rows: np.ndarray) -> torch.Tensor:
        """Asks the model for the context of some rows [m, C]."""
        return _asked(model, "context", self.logs, self.order[rows])


@torch.no_grad()
def _interactions(
    model: nn.Module, logs: pa.Table, rows: np.ndarray, item: np.ndarray, ids: pa.Array, settings: AdoptSettings
) -> _Interactions:
    """Returns those of `rows` of the logs, whose row r has the item ids[item[r]]."""
    user = logs[settings.user].take(pa.array(rows))
    user_of, user_ids, _ = raw_ids.encode_ids(user)
    order = rows[np.lexsort([id_keys(user_ids)[user_of], logs[settings.time].to_numpy()[rows], item[rows]])]
    used, place = np.unique(item[order], return_inverse=True)
    counts = np.bincount(place)
    first = order[np.cumsum(counts) - counts]
    total: torch.Tensor | None = None
    for begin in range(0, len(order), _CHUNK_ROWS):
        users = _asked(model, "users", logs, order[begin : begin + _CHUNK_ROWS])
        total = torch.zeros(len(used), users.shape[1]) if total is None else total
        total.index_add_(0, torch.from_numpy(place[begin : begin + _CHUNK_ROWS]), users)
    assert total is not None
    label = torch.from_numpy(logs[settings.label].to_numpy()[order].astype(np.float32))
    fields = torch.cat(
        [_asked(model, "item_fields", logs, first[one : one + _CHUNK_ROWS]) for one in range(0, len(used), _CHUNK_ROWS)]
    )
    mean = total / torch.from_numpy(counts)[:, None]
    return _Interactions(ids.take(pa.array(used)), counts, torch.from_numpy(place), label, logs, order, fields, mean)


def _asked(model: nn.Module, method: str, logs: pa.Table, rows: np.ndarray) -> torch.Tensor:
    """Asks the model about some rows [m], and gives what it says [m, width].

    Raises:
        UserError: it fails, or says something that is not finite, of some row; it is named by its values.
    """
    found, wrong = _tried(model, method, logs.take(pa.array(rows)))
    if found is not None:
        return found
    while len(rows) > 1:  # the first row, by halves
        half = rows[: len(rows) // 2]
        fault = _tried(model, method, logs.take(pa.array(half)))[1]
        rows, wrong = (half, fault) if fault else (rows[len(half) :], wrong)
    values = ", ".join(f"{name} = {value!r}" for name, value in logs.slice(int(rows[0]), 1).to_pylist()[0].items())
    raise UserError(
        f"--model: {method}(rows) {wrong} for the row with {values[:_MOST_SAID]}: correct or remove such rows"
    )


def _tried(model: nn.Module, method: str, rows: pa.Table) -> tuple[torch.Tensor | None, str]:
    """Returns (what the model says of rows, empty text), or (None, what is wrong with it)."""
    try:
        found = getattr(model, method)(rows).float()
    except Exception as error:  # of a user's code anything may come
        return None, f"fails ({type(error).__name__}: {str(error)[:_MOST_SAID]})"
    return (found, "") if bool(found.isfinite().all()) else (None, "gives NaN or infinity")


def _meta_train(
    model: nn.Module, meta: MetaWarmUp, rows: _Interactions, common: torch.Tensor, settings: AdoptSettings
) -> None:
    """Runs Algorithm 1 of MWUF over known items played as new: their rows start at the common one."""
    played = nn.Parameter(common.repeat(len(rows.ids), 1))
    optimizer = torch.optim.Adam([played, *meta.parameters()], lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(rows.item), generator=generator).split(settings.batch_size):
            items, inverse = torch.unique(rows.item[batch], return_inverse=True)
            pair = meta(played[items], rows.item_fields[items], rows.user_mean[items], inverse)
            context = rows.context(model, batch.numpy())
            label = rows.label[batch]
            losses = algorithm_1_losses(
                pair, lambda v, c=context, y=label: F.binary_cross_entropy_with_logits(model(v, c), y)
            )
            gradients = torch.autograd.grad(losses.sum(), [played, *meta.parameters()])  # none to the model
            for parameter, gradient in zip([played, *meta.parameters()], gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
