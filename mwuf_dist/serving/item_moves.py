"""How one item moved: the old items near it at moments of its history, and the deltas that brought its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas.reader import DeltaError, read_delta
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.run_files import chain_of
from mwuf_dist.serving.served_log import find

_AT_ONCE = 1 << 16  # Old items that are compared at once.


@dataclass(frozen=True)
class Moving:
    """Holds how near some old items were at moments of an item's history.

    Attributes:
        moments: indices into the history, ascending [M].
        item_ids: raw IDs [n] of the old items that were among the nearest at the first or the last moment.
        cosine: of those at each moment [M, n].
        nearest: at each moment (raw ID, cosine) of the nearest of all old items, best first.
    """

    moments: list[int]
    item_ids: list[Any]
    cosine: np.ndarray
    nearest: list[list[tuple[Any, float]]]


@dataclass(frozen=True)
class Applied:
    """One delta that changed the item, or retired it.

    Attributes:
        number: of the delta.
        interactions: of the item that a server knows of after it.
        score: mean probability over the same users as in the history, by the row that it brought; None where the item
            was retired.
    """

    number: int
    interactions: int
    score: float | None


@torch.no_grad()
def nearest(run: FinishedRun, vectors: torch.Tensor, num: int, but: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the old items nearest to vectors by cosine.

    Args:
        run: whose old items are meant, those that are served.
        vectors: [M, D].
        num: how many of each.
        but: an item that is left out.

    Returns:
        (cosines, indices), each [M, k], best first; k is `num`, or all there are.
    """
    ours = F.normalize(vectors, dim=1)
    best = torch.empty(len(ours), 0, dtype=torch.float64), torch.empty(len(ours), 0, dtype=torch.int64)
    old = torch.as_tensor(run.served_items(old_items=True), device=ours.device)
    for items in old[(old < run.num_old_items) & (old != but)].split(_AT_ONCE):
        cosine = (ours @ F.normalize(run.embeddings(items), dim=1).T).double().cpu()
        both = torch.cat([best[0], cosine], dim=1), torch.cat([best[1], items.cpu().expand(len(ours), -1)], dim=1)
        order = both[0].argsort(dim=1, descending=True, stable=True)[:, :num]
        best = both[0].gather(1, order), both[1].gather(1, order)
    return best


@torch.no_grad()
def moving(run: FinishedRun, embeddings: Sequence[np.ndarray], moments: list[int], num: int = 5) -> Moving:
    """Follows the neighbours of an item over its history.

    Args:
        run: the item's.
        embeddings: [D] of the item at each moment.
        moments: their places in the history.
        num: nearest old items of each moment.
    """
    vectors = torch.from_numpy(np.stack(embeddings)).to(run.model.runtime.device)
    cosines, items = nearest(run, vectors, num)
    shown = torch.tensor(list(dict.fromkeys([*items[-1].tolist(), *items[0].tolist()])), dtype=torch.int64)
    rows = F.normalize(run.embeddings(shown), dim=1) if len(shown) else vectors[:0]
    names = [run.item_ids[int(index)].as_py() for index in shown]
    near = [
        [(run.item_ids[index].as_py(), cosine) for index, cosine in zip(*pair, strict=True)]
        for pair in zip(items.tolist(), cosines.tolist(), strict=True)
    ]
    return Moving(moments, names, (F.normalize(vectors, dim=1) @ rows.T).cpu().numpy(), near)


@torch.no_grad()
def applied(run: FinishedRun, index: int, users: torch.Tensor, named: Sequence[Path] = ()) -> list[Applied]:
    """Lists the deltas that changed an item, of those in the run's folder and in others.

    Args:
        run: the item's.
        index: of the item.
        users: whose mean probability is the score [n].
        named: files of deltas, or folders of them: those of the jobs before this one, say.

    Raises:
        UserError: one is damaged, or of another chain.
    """
    raw_id, chain = run.item_ids[index].as_py(), chain_of(run.folder)
    own = sorted((run.folder / deltas.FOLDER).glob(f"*{deltas.SUFFIX}"))
    found: dict[int, Applied] = {}
    for path in [*own, *(deltas.delta_files(named) if named else ())]:
        try:
            delta = read_delta(path, ("changed", "retired"))
        except DeltaError as error:
            raise UserError(str(error)) from None
        if delta.header["chain"] != chain:
            raise UserError(f"{path}: belongs to another run ({delta.header['chain']}, and {run.folder} is {chain})")
        number, changed = delta.header["number"], delta.parts["changed"]
        if _place(raw_id, delta.parts["retired"]) >= 0:
            found[number] = Applied(number, 0, None)
        elif (place := _place(raw_id, changed)) >= 0:
            row = torch.tensor([changed["embedding"][place].as_py()], dtype=torch.float32, device=users.device)
            found[number] = Applied(number, changed["interactions"][place].as_py(), mean_score(run, index, row, users))
    return [found[number] for number in sorted(found)]


@torch.no_grad()
def mean_score(run: FinishedRun, index: int, embedding: torch.Tensor, users: torch.Tensor) -> float:
    """Scores an item by an embedding [1, D] of it: the mean probability over users [n], with its fields as of now."""
    backbone = run.model.backbone
    context = run.context(users, torch.full_like(users, index))
    return float(backbone.in_precision(backbone, embedding.expand(len(users), -1), context).sigmoid().mean())


def _place(raw_id: Any, table: pa.Table) -> int:
    """Returns the row of a table in which an item stands; -1: in none."""
    ids = table["item_id"].combine_chunks()
    return int(find(pa.array([raw_id], ids.type), ids)[0])
