"""How one item (or user) moved: who was near at moments of its history, and the deltas that brought its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas.reader import DeltaError, read_delta
from mwuf_dist.serving.run_files import chain_of
from mwuf_dist.serving.sides import Items, Users

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
def nearest(about: Items | Users, vectors: torch.Tensor, num: int, but: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the old items (users of the run) nearest to vectors by cosine.

    Args:
        about: the side that is meant.
        vectors: [M, D].
        num: how many of each.
        but: one that is left out.

    Returns:
        (cosines, indices), each [M, k], best first; k is `num`, or all there are.
    """
    ours = F.normalize(vectors, dim=1)
    best = torch.empty(len(ours), 0, dtype=torch.float64), torch.empty(len(ours), 0, dtype=torch.int64)
    for some in about.candidates[about.candidates != but].split(_AT_ONCE):
        cosine = (ours @ F.normalize(about.rows(some), dim=1).T).double().cpu()
        both = torch.cat([best[0], cosine], dim=1), torch.cat([best[1], some.cpu().expand(len(ours), -1)], dim=1)
        order = both[0].argsort(dim=1, descending=True, stable=True)[:, :num]
        best = both[0].gather(1, order), both[1].gather(1, order)
    return best


@torch.no_grad()
def moving(about: Items | Users, embeddings: Sequence[np.ndarray], moments: list[int], num: int = 5) -> Moving:
    """Follows the neighbours of an item (a user) over its history.

    Args:
        about: the side that is meant.
        embeddings: [D] of it at each moment.
        moments: their places in the history.
        num: nearest ones of each moment.
    """
    vectors = torch.from_numpy(np.stack(embeddings)).to(about.others.device)
    cosines, found = nearest(about, vectors, num)
    shown = torch.tensor(list(dict.fromkeys([*found[-1].tolist(), *found[0].tolist()])), dtype=torch.int64)
    rows = F.normalize(about.rows(shown.to(vectors.device)), dim=1) if len(shown) else vectors[:0]
    names = [about.ids[int(index)].as_py() for index in shown]
    near = [
        [(about.ids[index].as_py(), cosine) for index, cosine in zip(*pair, strict=True)]
        for pair in zip(found.tolist(), cosines.tolist(), strict=True)
    ]
    return Moving(moments, names, (F.normalize(vectors, dim=1) @ rows.T).cpu().numpy(), near)


@torch.no_grad()
def applied(about: Items | Users, index: int, named: Sequence[Path] = ()) -> list[Applied]:
    """Lists the deltas that changed an item (a user), of those in the run's folder and in others.

    Args:
        about: the side that is meant.
        index: of the item or user.
        named: files of deltas, or folders of them: those of the jobs before this one, say.

    Raises:
        UserError: one is damaged, or of another chain.
    """
    folder = about.run.folder
    chain = chain_of(folder)
    own = sorted((folder / deltas.FOLDER).glob(f"*{deltas.SUFFIX}"))
    found: dict[int, Applied] = {}
    for path in [*own, *(deltas.delta_files(named) if named else ())]:
        try:
            delta = read_delta(path, about.parts)
        except DeltaError as error:
            raise UserError(str(error)) from None
        if delta.header["chain"] != chain:
            raise UserError(f"{path}: belongs to another run ({delta.header['chain']}, and {folder} is {chain})")
        if (made := about.by_delta(index, delta)) is not None:
            number, (num, row) = delta.header["number"], made
            vector = None if row is None else torch.tensor([row], dtype=torch.float32, device=about.others.device)
            found[number] = Applied(number, num, None if vector is None else about.score(index, vector))
    ordered = [found[number] for number in sorted(found)]
    return _counted_up(ordered, about.interactions(index)) if about.side == "user" else ordered


def _counted_up(ordered: list[Applied], total: int) -> list[Applied]:
    """Returns deltas that say how many interactions each brings with those that a server knows of after it."""
    later = np.cumsum([0, *(one.interactions for one in reversed(ordered))])[:-1][::-1]
    return [replace(one, interactions=total - int(num)) for one, num in zip(ordered, later, strict=True)]
