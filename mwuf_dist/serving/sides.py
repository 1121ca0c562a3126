"""The two sides of a run as `mwuf explain` sees them: whose embedding is looked at, and whose mean is its score."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import WARM_SETS
from mwuf_dist.data.schema import Side
from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.finished_run import PHASE_NAMES, FinishedRun
from mwuf_dist.serving.served_log import find
from mwuf_dist.training.item_rule.frozen_users import FEWEST_CLICKS

# Users (items) whose mean probability is the score of an item (a user): the same at every point, whoever clicked.
NUM_OTHERS = 1024


class Items:
    """Looks at items; the others are users.

    Args:
        run: opened.

    Attributes:
        side: item.
        parts: of a delta, which say what it did.
        ids: raw IDs of all [I].
        candidates: indices of those that may be named as near: the old items that are served.
        others: indices of random users [NUM_OTHERS].
    """

    side: Side = "item"
    parts = ("changed", "retired")

    def __init__(self, run: FinishedRun) -> None:
        self.run, self.ids = run, run.item_ids
        device = run.model.runtime.device
        old = torch.as_tensor(np.asarray(run.served_items(old_items=True)), device=device)
        self.candidates = old[old < run.num_old_items]
        self.others = _random(run.prepared.num_stored_users).to(device)

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """Looks up what the backbone reads of items [n, D]."""
        return self.run.embeddings(items)

    def phase(self, index: int) -> str:
        """Names the item's phase."""
        return PHASE_NAMES[int(self.run.phase_codes([index])[0])]

    def interactions(self, index: int) -> int:
        """Counts rows that the model has seen."""
        return int(self.run.num_interactions[index])

    def fractions_of_clicks(self, index: int) -> dict[str, float]:
        """Returns the fraction of clicks in each finished set that has rows of the item."""
        splits = ("pretrain",) if index < self.run.num_old_items else (*WARM_SETS, *self.run.served_splits)
        return _fractions(self.run, splits, self.side, index)

    @torch.no_grad()
    def score(self, index: int, embedding: torch.Tensor) -> float:
        """Scores an item by an embedding [1, D] of it: the mean probability, with its fields as of now."""
        backbone = self.run.model.backbone
        context = self.run.context(self.others, torch.full_like(self.others, index))
        return float(backbone.in_precision(backbone, embedding.expand(len(self.others), -1), context).sigmoid().mean())

    def by_delta(self, index: int, delta: Delta) -> tuple[int, list[float] | None] | None:
        """Returns (interactions after it, embedding) of the item; no embedding: retired; None: not touched."""
        raw_id = self.ids[index].as_py()
        if _place(raw_id, delta.parts["retired"], "item_id") >= 0:
            return 0, None
        changed = delta.parts["changed"]
        place = _place(raw_id, changed, "item_id")
        return None if place < 0 else (changed["interactions"][place].as_py(), changed["embedding"][place].as_py())


class Users:
    """Looks at users; the others are items. See `Items`; near are users of the run.

    Attributes:
        num_run: users of the run itself; those who came later and have a row follow.
    """

    side: Side = "user"
    parts = ("users", "user_log")

    def __init__(self, run: FinishedRun) -> None:
        self.run, self.ids = run, run.user_ids
        later = None if run.state is None else run.state.users
        self.num_run = len(self.ids) - (0 if later is None else len(later.ids))
        device = run.model.runtime.device
        self.candidates = torch.arange(self.num_run, device=device)
        served = torch.as_tensor(np.asarray(run.served_items(old_items=True)), device=device)
        self.others = served[_random(len(served)).to(device)]

    @torch.no_grad()
    def rows(self, users: torch.Tensor) -> torch.Tensor:
        """Looks up rows of the table of user IDs [n, D]."""
        return self.run.model.user_tables.rows_of("user_id", users + 1)

    def phase(self, index: int) -> str:
        """Says whether the user is of the run, and has a row of its own."""
        if index < self.num_run:
            return "of the run"
        own = self.interactions(index) >= FEWEST_CLICKS
        return f"since the run, with {'a row of its own' if own else 'the row of the mean user'}"

    def interactions(self, index: int) -> int:
        """Counts rows that the model has seen; of a later user those that make the row."""
        if index >= self.num_run:
            return int(self._labels_since(index - self.num_run).size)
        prepared = self.run.prepared
        labels = (_labels(self.run, split, self.side, index) for split in self._splits)
        return sum(int(prepared.is_counted(one).sum()) for one in labels)

    def fractions_of_clicks(self, index: int) -> dict[str, float]:
        """Returns the fraction of clicks in each finished set that has rows of the user."""
        if index < self.num_run:
            return _fractions(self.run, self._splits, self.side, index)
        labels = self._labels_since(index - self.num_run)
        return {"served": float(labels.mean())} if labels.size else {}

    @cached_property
    def _splits(self) -> tuple[str, ...]:
        return ("pretrain", *WARM_SETS, *self.run.served_splits)

    def _labels_since(self, place: int) -> np.ndarray:
        assert self.run.state is not None and self.run.state.users is not None
        log = self.run.state.users.log
        return log["label"][log["item"] == place]

    @torch.no_grad()
    def score(self, index: int, embedding: torch.Tensor) -> float:
        """Scores items for a user by a row [1, D] of the user: the mean probability, with the user's other fields."""
        model = self.run.model
        users = torch.full_like(self.others, index)
        person = model.person(users, None).clone()
        first = model.shape.num_row_fields * model.dim  # the ID is the first field of a user
        person[:, first : first + model.dim] = embedding
        fields = torch.cat([model.item_fields(self.others), person], dim=1)
        if self.run.histories is not None:
            fields = torch.cat([fields, model.encoded_history(self.run.histories.whole(users), fields)], dim=1)
        backbone = model.backbone
        return float(backbone.in_precision(backbone, self.run.embeddings(self.others), fields).sigmoid().mean())

    def by_delta(self, index: int, delta: Delta) -> tuple[int, list[float] | None] | None:
        """Returns (new interactions in it, row) of the user; None: not touched."""
        raw_id = self.ids[index].as_py()
        if "users" not in delta.parts or (place := _place(raw_id, delta.parts["users"], "user_id")) < 0:
            return None
        clicks = delta.parts["user_log"]["user_id"].combine_chunks()
        num = int((find(clicks, pa.array([raw_id], clicks.type)) >= 0).sum())
        return num, delta.parts["users"]["row"][place].as_py()


def _random(num: int) -> torch.Tensor:
    return torch.randint(num, (NUM_OTHERS,), generator=torch.Generator().manual_seed(0))


def _labels(run: FinishedRun, split: str, side: Side, index: int) -> np.ndarray:
    columns = run.prepared.columns(split, (side, "label"))
    return columns["label"][columns[side] == index]


def _fractions(run: FinishedRun, splits: tuple[str, ...], side: Side, index: int) -> dict[str, float]:
    found = {split: _labels(run, split, side, index) for split in splits}
    return {split: float(labels.mean()) for split, labels in found.items() if len(labels)}


def _place(raw_id: object, table: pa.Table, column: str) -> int:
    """Returns the row of a table in which an ID stands; -1: in none."""
    ids = table[column].combine_chunks()
    return int(find(pa.array([raw_id], ids.type), ids)[0])
