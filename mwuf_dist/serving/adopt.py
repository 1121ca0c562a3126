"""`mwuf adopt`: warm embeddings for the new items of a model that was trained elsewhere.

Nothing of that model is trained. Its logs are read once: interactions of items that have a row in its item table train
the scaling and shifting networks (algorithm 1 of MWUF, the items played as new), then the other items are warmed up on
their own interactions by the serving rule.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mwuf_dist.config import UserError
from mwuf_dist.config_logs import LogsConfig
from mwuf_dist.data import tables
from mwuf_dist.serving.meta_warm_up import MetaWarmUp
from mwuf_dist.serving.warm_input import id_keys
from mwuf_dist.serving.warm_rule import WarmRule, module_slope, warm_rows

# Rows of the logs whose embeddings are asked for at once.
_CHUNK_ROWS = 1 << 16


class RankingModel(nn.Module):
    """What the factory of a user's model must return. Any module with these four methods is one.

    `rows` is a part of the logs, an Arrow table with all of its columns.
    """

    def forward(self, item: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Logits [B] from item ID embeddings [B, D] and what `context` gave for the rows [B, C]."""
        raise NotImplementedError

    def context(self, rows: pa.Table) -> torch.Tensor:
        """All that the model knows of each row but the item ID embedding [n, C]."""
        raise NotImplementedError

    def item_fields(self, rows: pa.Table) -> torch.Tensor:
        """Embeddings of the own fields of each row's item [n, Ci]: what scales its embedding."""
        raise NotImplementedError

    def users(self, rows: pa.Table) -> torch.Tensor:
        """Embedding of each row's user [n, Cu]: what, as a mean over an item's users, shifts its embedding."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdoptSettings:
    """Columns of the logs and the few numbers of the two trainings.

    Attributes:
        user: column of the user.
        item: column of the item. A number below the number of rows of the item table is that row's item.
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
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{folder}: exists; name another --output") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); name another --output") from None
        vector = pa.list_(pa.float32(), self.rows.shape[1])
        vectors = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), type=vector)
            for values in (self.embeddings, self.rows)
        ]
        columns = [self.item_ids, *vectors, pa.array(self.interactions)]
        pq.write_table(
            pa.table(columns, names=["item_id", "embedding", "row", "interactions"]), folder / "items.parquet"
        )
        torch.save(self.meta.state_dict(), folder / "meta.pt")
        (folder / "adopt.json").write_text(json.dumps(about | {"num_items": len(self.item_ids)}, indent=1) + "\n")


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `torch.distributed.checkpoint` folder or of a state dict file, by name.

    Raises:
        UserError: it is neither.
    """
    try:
        if path.is_dir():
            stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
            tensors = {
                name: torch.empty(about.size, dtype=about.properties.dtype)
                for name, about in stored.items()
                if isinstance(about, TensorStorageMetadata)
            }
            dcp.load(tensors, checkpoint_id=str(path), no_dist=True)
            return tensors
        # Tensors and plain containers only: a pickle could run anything.
        return _flat(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UserError(
            f"{path}: neither a folder of torch.distributed.checkpoint nor a state dict file of tensors alone "
            f"({str(error)[:200]}); write one with torch.save(model.state_dict(), FILE)"
        ) from None


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            out[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
    return out


def find_table(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The table [I, D] whose key is `name`, or the only one that has it as a part.

    Raises:
        UserError: there is none, or there are several.
    """
    matrices = {key: value for key, value in weights.items() if value.dim() == 2}
    found = [name] if name in matrices else [key for key in matrices if name in key.split(".")]
    if len(found) != 1:
        near = found or difflib.get_close_matches(name, matrices, n=3, cutoff=0.0)
        raise UserError(
            f"--item-table {name!r}: {'several tables have' if found else 'no table has'} this name; did you mean "
            f"{' or '.join(repr(one) for one in near)}?"
        )
    return matrices[found[0]].float()


def import_factory(path: str) -> Callable[[dict[str, torch.Tensor]], nn.Module]:
    """The callable that `package.module:factory` names; the folder in which the command is called is looked in too.

    Raises:
        UserError: there is none.
    """
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(f"--model {path!r}: cannot import {module_name} ({error}); run from its folder") from None
    if not callable(found):
        raise UserError(f"--model {path!r}: {module_name} has no function {name!r} that makes the model")
    factory: Any = found
    return factory


def adopt(model: nn.Module, item_table: torch.Tensor, logs: pa.Table, settings: AdoptSettings | None = None) -> Adopted:
    """Warms up the items of the logs that have no row in the model's item table.

    Args:
        model: a `RankingModel`; it is put into eval mode and none of its weights changes.
        item_table: its trained item ID embeddings [I, D].
        logs: interactions of known items and new ones.
        settings: columns and numbers.

    Raises:
        UserError: the logs have no known item, or no new one.
    """
    settings = settings or AdoptSettings()
    model.eval()
    known = _is_known(logs[settings.item], len(item_table))
    if known.all() or not known.any():
        raise UserError(
            f"the logs have {int(known.sum())} rows of items in the item table (0 to {len(item_table) - 1}) and "
            f"{int((~known).sum())} of new ones: both are needed, the first to learn how items warm up"
        )
    common = item_table.float().mean(0)
    trained, new = (_interactions(model, logs.filter(pa.array(mask)), settings) for mask in (known, ~known))
    torch.manual_seed(settings.seed)
    meta = MetaWarmUp(len(common), trained.item_fields.shape[1], trained.users.shape[1], settings.hidden)
    _meta_train(model, meta, trained, common, settings)
    rule = WarmRule(settings.warm_rows, settings.warm_epochs, settings.warm_learning_rate)
    frozen = _single_precision(model)
    made = warm_rows(
        rule,
        module_slope(frozen),
        common.repeat(len(new.ids), 1),
        np.zeros(len(new.ids), dtype=np.int64),
        new.counts,
        lambda places: new.context[torch.from_numpy(places)].double(),
        new.label.numpy(),
    )
    vectors = meta.embeddings(made.rows, new.item_fields, new.user_mean)
    return Adopted(new.ids, vectors, made.rows, new.counts, meta)


def _is_known(ids: pa.ChunkedArray, num_rows: int) -> np.ndarray:
    if not pa.types.is_integer(ids.type):
        raise UserError(f"item IDs are {ids.type}; they must be numbers: those below {num_rows} are rows of the table")
    number = ids.to_numpy()
    return (number >= 0) & (number < num_rows)


def _single_precision(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    # A copy in float64 would copy all of the model's tables; theirs is the precision that the model was trained in.
    return lambda item, context: model(item.float(), context.float()).double()


@dataclass(frozen=True)
class _Interactions:
    """Interactions sorted by (item, time, user) with what the model says of them.

    Attributes:
        ids: distinct items, ascending [U].
        counts: interactions of each [U].
        item: place in `ids` of each row [n].
        label: [n].
        context: [n, C].
        item_fields: of each item, by its first row [U, Ci].
        users: of each row [n, Cu].
        user_mean: of each item [U, Cu].
    """

    ids: pa.Array
    counts: np.ndarray
    item: torch.Tensor
    label: torch.Tensor
    context: torch.Tensor
    item_fields: torch.Tensor
    users: torch.Tensor
    user_mean: torch.Tensor


@torch.no_grad()
def _interactions(model: nn.Module, logs: pa.Table, settings: AdoptSettings) -> _Interactions:
    ids, item = np.unique(logs[settings.item].to_numpy(), return_inverse=True)
    keys = id_keys(pa.concat_arrays(logs[settings.user].chunks))
    order = np.lexsort([keys, logs[settings.time].to_numpy(), item])
    logs, item = logs.take(pa.array(order)), item[order]
    counts = np.bincount(item, minlength=len(ids))
    parts = [
        [getattr(model, name)(logs.slice(first, _CHUNK_ROWS)).float() for name in ("context", "item_fields", "users")]
        for first in range(0, logs.num_rows, _CHUNK_ROWS)
    ]
    context, item_fields, users = (torch.cat(columns) for columns in zip(*parts, strict=True))
    place = torch.from_numpy(item)
    total = torch.zeros(len(ids), users.shape[1]).index_add_(0, place, users)
    label = torch.from_numpy(logs[settings.label].to_numpy().astype(np.float32))
    first = torch.from_numpy(np.cumsum(counts) - counts)
    mean = total / torch.from_numpy(counts)[:, None]
    return _Interactions(pa.array(ids), counts, place, label, context, item_fields[first], users, mean)


def _meta_train(
    model: nn.Module, meta: MetaWarmUp, rows: _Interactions, common: torch.Tensor, settings: AdoptSettings
) -> None:
    """Algorithm 1 of MWUF over known items played as new: their rows start at the common one."""
    played = nn.Parameter(common.repeat(len(rows.ids), 1))
    optimizer = torch.optim.Adam([played, *meta.parameters()], lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(rows.item), generator=generator).split(settings.batch_size):
            items, inverse = torch.unique(rows.item[batch], return_inverse=True)
            pair = meta(played[items], rows.item_fields[items], rows.user_mean[items], inverse)
            logits = (model(embedding, rows.context[batch]) for embedding in pair)
            loss = sum(F.binary_cross_entropy_with_logits(logit, rows.label[batch]) for logit in logits)
            assert isinstance(loss, torch.Tensor)
            gradients = torch.autograd.grad(loss, [played, *meta.parameters()])  # none to the model
            for parameter, gradient in zip([played, *meta.parameters()], gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()


def adopt_files(
    weights: Path, table: str, model: str, logs: Path, output: Path, settings: AdoptSettings | None = None
) -> Adopted:
    """The command: reads, adopts, writes `output`.

    Raises:
        UserError: something of the input is wrong.
    """
    settings = settings or AdoptSettings()
    if output.exists():
        raise UserError(f"{output}: exists; name another --output")
    found = load_weights(weights)
    item_table = find_table(found, table)
    ranking = import_factory(model)(found)
    missing = [name for name in ("forward", "context", "item_fields", "users") if not hasattr(ranking, name)]
    if missing:
        raise UserError(f"--model {model!r}: what it makes has no {', '.join(missing)}: see adopt in docs/serving.md")
    files = tables.find_files(str(logs), "--logs")
    needed = [settings.user, settings.item, settings.label, settings.time]
    names = list(dict.fromkeys([*needed, *tables.column_names(files[0], LogsConfig())]))
    read = tables.read(files, names, LogsConfig(), "logs")
    adopted = adopt(ranking, item_table, _plain(read.columns), settings)
    about: dict[str, object] = {"weights": str(weights), "item_table": table, "model": model}
    adopted.save(output, about | asdict(settings))
    return adopted


def _plain(columns: pa.Table) -> pa.Table:
    """Without dictionaries; text that is whole numbers throughout, as CSV has them, as numbers."""
    out = {}
    for name in columns.column_names:
        column = columns[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) and pc.all(pc.match_substring_regex(column, "^-?[0-9]{1,18}$")).as_py():
            column = column.cast(pa.int64())
        out[name] = column
    return pa.table(out)
