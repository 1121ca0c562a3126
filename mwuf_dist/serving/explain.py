"""`mwuf explain`: why one item has the embedding it has, and how its scores moved with its clicks.

A run keeps no history of every item, but its warm-up depends on nothing but the config and the data: it is done again
here from its first step, with the item's scores taken on the way, and must end at the rows of the checkpoint.

The serving rule makes a row of the first n interactions of an item whatever came later, so the score after each of
those that `mwuf warm` has brought is found by applying it to fewer: what a job would have served that had seen no more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mwuf_dist.config import PHASES, WARM_SETS, config_hash
from mwuf_dist.data import vocabulary
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.evaluation.item_plot import ItemView
from mwuf_dist.serving.finished_run import PHASE_NAMES, FinishedRun
from mwuf_dist.serving.item_moves import Applied, Moving, applied, mean_score, moving, nearest
from mwuf_dist.serving.served_log import taken
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import SERVED
from mwuf_dist.serving.warm.change import Change
from mwuf_dist.serving.warm.job import seen_by_run
from mwuf_dist.serving.warm.rows import WarmJob, rows_of_run
from mwuf_dist.training.checkpoint.files import Cursor, Meta
from mwuf_dist.training.checkpoint.save import Checkpointer
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.item_rule.rule import rule_of
from mwuf_dist.training.loop import Session
from mwuf_dist.training.model import Model
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.recorder import Recorder
from mwuf_dist.training.stages.meta_train import initialise_new_ids
from mwuf_dist.training.stages.warm_up import WarmUp

# Users whose mean probability is an item's score: the same at every point, whoever clicked.
_NUM_USERS = 1024
# Scores of a phase that are printed, unless all are asked for.
_NUM_PRINTED = 12
# Moments since the run that are looked at, at most.
_NUM_POINTS = 16
# Moments of a phase at which neighbours are looked for.
_NUM_LOOKS = 6


T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """The item's score at one moment: in `phase`, after `clicks` of its rows have been trained on in that phase.

    `embedding` [D] is what was scored.
    """

    phase: str
    clicks: int
    score: float
    embedding: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), repr=False, compare=False)


@dataclass
class Explanation:
    """Holds what is known about one item.

    Attributes:
        item_id: raw ID.
        phase: of the item, or "old".
        interactions: number of its rows that the model has seen.
        positives: fraction of clicks among its rows of each finished set that has some, by the set's name.
        scale: [D], None for an old item or a method without scaling and shifting.
        shift: [D], the same.
        nearest: (raw ID, cosine) of the old items nearest by what the backbone reads, best first.
        history: mean probability over the same random users at each moment, those of the run before those of the
            interactions that `mwuf warm` has brought; empty for an old item.
        moving: the neighbours at some of these moments, the last of each phase among them; None for an old item.
        applied: the deltas that changed the item or retired one of its ID.
        words: what the fields of the item and of the nearest ones hold, by raw ID, for own logs.
        replay_error: largest difference of the item's replayed row of phi_new to that of the checkpoint.
    """

    item_id: Any
    phase: str
    interactions: int
    positives: dict[str, float]
    scale: np.ndarray | None
    shift: np.ndarray | None
    nearest: list[tuple[Any, float]]
    history: list[Point] = field(default_factory=list)
    replay_error: float = 0.0
    words: dict[Any, str] = field(default_factory=dict)
    moving: Moving | None = None
    applied: list[Applied] = field(default_factory=list)

    def text(self, every_step: bool = False) -> str:
        """Gives for a terminal: of each phase at most a dozen scores, denser at its beginning, unless `every_step`."""
        lines = [f"item {self.item_id}: {self.phase}, {self.interactions} interactions seen"]
        lines += [f"  {words}"] if (words := self.words.get(self.item_id)) else []
        lines += [f"  clicks in {name}: {share:.0%}" for name, share in self.positives.items()]
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if values is not None:
                numbers = " ".join(f"{value:+.3f}" for value in values)
                lines.append(f"{name} (mean {values.mean():+.4f}, norm {np.linalg.norm(values):.4f}): {numbers}")
        lines.append("nearest old items by cosine of the embeddings")
        lines += [f"  {cosine:+.4f}  {one}   {self.words.get(one, '')}".rstrip() for one, cosine in self.nearest]
        if self.history:
            what = f"mean probability over the same {_NUM_USERS} random users"
            lines.append(f"{what}, after so many of its rows in a phase, every pass counted")
            for phase in dict.fromkeys(point.phase for point in self.history):
                points = [point for point in self.history if point.phase == phase]
                chosen = points if every_step else _thinned(points)
                lines.append(f"  {phase:>7}  " + "  ".join(f"{point.clicks}: {point.score:.4f}" for point in chosen))
        for one in self.applied if every_step else _thinned(self.applied):
            what = "retired" if one.score is None else f"{one.interactions} interactions: {one.score:.4f}"
            lines.append(f"  delta {one.number}  {what}")
        if any(point.phase != SERVED for point in self.history):
            lines.append(
                f"(the run's warm-up was done again; its row is the checkpoint's within {self.replay_error:.1e})"
            )
        return "\n".join(lines)

    def view(self) -> ItemView:
        """Returns for a picture and a page."""
        facts = {"phase": self.phase, "interactions seen": f"{self.interactions:,}"}
        facts |= {f"clicks in {name}": f"{fraction:.0%}" for name, fraction in self.positives.items()}
        facts |= {"fields": words} if (words := self.words.get(self.item_id)) else {}
        moving = self.moving or Moving([], [], np.empty((0, 0)), [])
        return ItemView(
            title=f"item {self.item_id}",
            facts=facts,
            history=[(point.phase, point.clicks, point.score) for point in self.history],
            scale=self.scale,
            shift=self.shift,
            nearest=[(str(one), cosine) for one, cosine in self.nearest],
            moments=moving.moments,
            neighbours=[str(one) for one in moving.item_ids],
            cosine=moving.cosine,
            nearest_then=[[(str(one), cosine) for one, cosine in near] for near in moving.nearest],
            deltas=[(one.number, one.interactions, one.score) for one in self.applied],
        )


def _thinned(points: list[T], num: int = _NUM_PRINTED) -> list[T]:
    """Picks at most `num` points, first and last among them, at positions that grow by about the same factor."""
    if len(points) <= num:
        return points
    places = np.geomspace(1, len(points), num).round().astype(int) - 1
    return [points[place] for place in np.unique(places)]


@dataclass
class _Replay(WarmUp):
    """The run's own warm-up, which looks at one item after each step that trained it."""

    item: int = -1
    users: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    clicks: int = 0
    phase: str = PHASES[0]
    history: list[Point] = field(default_factory=list)

    def step(self, batch: Batch, optimizer: Adam) -> torch.Tensor:
        """See `WarmUp.step`."""
        loss = super().step(batch, optimizer)
        clicks = int(((batch.item == self.item) & (batch.weight > 0)).sum())
        if clicks:
            self.clicks += clicks
            self.look()
        return loss

    @torch.no_grad()
    def look(self) -> None:
        """Takes the item's score as it is now."""
        items = torch.full_like(self.users, self.item)
        history = self.histories.whole(self.users) if self.histories is not None else None
        embedding = self.scored_rows(items[:1])
        logits = self.frozen.logit(embedding.expand(len(items), -1), self.frozen.part(self.users, items, history))
        score, row = float(logits.sigmoid().mean()), embedding[0].cpu().numpy().copy()
        self.history.append(Point(self.phase, self.clicks, score, row))


def explain(run: FinishedRun, raw_id: int | str, num_nearest: int = 10, deltas: Sequence[Path] = ()) -> Explanation:
    """Explains one item.

    Args:
        run: the item's.
        raw_id: of the item.
        num_nearest: how many old items to name.
        deltas: files of deltas, or folders of them, beside those in the run's folder.

    Raises:
        UserError: the run has no such item, or a delta is damaged or another run's.
    """
    index = run.index_of(raw_id)
    item = torch.tensor([index], device=run.model.runtime.device)
    splits = ("pretrain",) if index < run.num_old_items else (*WARM_SETS, *run.served_splits)
    out = Explanation(
        item_id=run.item_ids[index].as_py(),
        phase=PHASE_NAMES[int(run.phase_codes(item)[0])],
        interactions=int(run.num_interactions[index]),
        positives={split: share for split in splits if (share := _share_of_clicks(run, split, index)) is not None},
        scale=None,
        shift=None,
        nearest=_nearest(run, item, num_nearest),
    )
    users = _random_users(run)
    out.applied = applied(run, index, users, deltas)
    shown = [out.item_id, *(one for one, _ in out.nearest)]
    words = vocabulary.described(run.prepared, [run.index_of(one) for one in shown])
    out.words = {one: said for one, said in zip(shown, words, strict=True) if said}
    if index >= run.num_old_items:
        with torch.no_grad():
            pair = run.method.scale_and_shift(*run.meta_inputs(item))
        if pair is not None:
            out.scale, out.shift = (values[0].cpu().numpy() for values in pair)
        if run.state is None or index < run.state.num_run_items:
            out.history, out.replay_error = _history(run, index, users)
        out.history += _served_scores(run, index, users)
        moments = _moments(out.history)
        out.moving = moving(run, [out.history[moment].embedding for moment in moments], moments)
    return out


def _moments(history: list[Point]) -> list[int]:
    """Returns some moments of each phase, its first and last among them, denser at its beginning."""
    found = []
    for phase in dict.fromkeys(point.phase for point in history):
        found += _thinned([place for place, point in enumerate(history) if point.phase == phase], _NUM_LOOKS)
    return found


def _share_of_clicks(run: FinishedRun, split: str, index: int) -> float | None:
    columns = run.prepared.columns(split, ("item", "label"))
    labels = columns["label"][columns["item"] == index]
    return float(labels.mean()) if len(labels) else None


def _nearest(run: FinishedRun, item: torch.Tensor, num: int) -> list[tuple[Any, float]]:
    cosines, found = nearest(run, run.embeddings(item), num, int(item))
    pairs = zip(found[0].tolist(), cosines[0].tolist(), strict=True)
    return [(run.item_ids[index].as_py(), cosine) for index, cosine in pairs]


def _random_users(run: FinishedRun) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(run.prepared.num_stored_users, (_NUM_USERS,), generator=generator).to(run.model.runtime.device)


def _history(run: FinishedRun, index: int, users: torch.Tensor) -> tuple[list[Point], float]:
    """Returns the item's scores from cold to warm-c by doing the warm-up again on a model of its own."""
    config, runtime, prepared = run.config, run.model.runtime, run.prepared
    model = Model(config, prepared, runtime)
    for tables, theirs in zip(
        (*model.pretrained_tables, model.new_ids), (*run.model.pretrained_tables, run.model.new_ids), strict=True
    ):
        for name in tables.specs:
            tables.shards(name)[0].weight.copy_(theirs.shards(name)[0].weight)
    model.backbone.load_state_dict(run.model.backbone.state_dict())
    model.vector_fields.load_state_dict(run.model.vector_fields.state_dict())
    initialise_new_ids(config, model, run.method, from_row=model.num_old)
    stage = _Replay(config, model, frozen_model(model, config.embedding), run.method, index, users)
    stage.finish_phase(prepared, 0)
    stage.look()
    with tempfile.TemporaryDirectory() as scratch:
        recorder = Recorder(Path(scratch), runtime)
        meta = Meta(Cursor("warm_up"), config_hash(config), 1, {})
        session = Session(runtime, recorder, Checkpointer(Path(scratch), config.checkpoint, runtime), meta)
        for phase in range(1, len(PHASES)):
            stage.phase, stage.clicks = PHASES[phase], 0
            stage.run_phase(session, prepared, phase)
            stage.finish_phase(prepared, phase)
            stage.look()
        recorder.close()
    item = torch.tensor([index], device=runtime.device)
    with torch.no_grad():
        theirs = run.model.new_ids.rows(item) if run.run_rows is None else run.run_rows[item.cpu()].to(item.device)
        error = (model.new_ids.rows(item) - theirs).abs().max()
    return stage.history, float(error)


@torch.no_grad()
def _served_scores(run: FinishedRun, index: int, users: torch.Tensor) -> list[Point]:
    """Returns the mean probability over `users` [n] after interactions since the run, the first before any of them.

    Empty where the item has had no interaction since the run.
    """
    state = run.state
    if state is None or (index < state.num_run_items and not (state.log["item"] == index).any()):
        return []
    device = run.model.runtime.device
    own = taken(state.log, state.log["item"] == index)
    user_ids = run.prepared.raw_ids("user")
    run_log = seen_by_run(run.prepared, np.array([index]), user_ids)
    run_rows = rows_of_run(rule_of(run.config, run.prepared), run.prepared, old_items=False)
    # No row of before: the item goes on from the run's row, or its first one.
    none = Rows.none(run.model.dim)
    nothing = np.empty(0, dtype=np.int64)
    out = []
    num = len(own["item"])
    for clicks in np.unique(np.linspace(0, num, min(num, _NUM_POINTS) + 1).round().astype(int)):
        log = taken(own, np.arange(clicks))
        change = Change(replace(state, log=log, rows=none), np.array([index]), nothing, 0, 0, 0, 0, log)
        made = WarmJob(run.config, run.model.runtime, run.prepared, change, run_log, run_rows).rows(run)
        row = torch.from_numpy(made.served).to(device)
        users_of = [one["user"][run.prepared.is_event(one["label"], run.config.data.events)] for one in (run_log, log)]
        seen = torch.from_numpy(np.concatenate(users_of).astype(np.int64)).to(device)
        mean = run.model.user_tables.rows_of("user_id", seen + 1).mean(0) if len(seen) else run.mean_user
        item = torch.tensor([index], device=device)
        warm = run.method.warm_rows(row, run.model.item_fields(item), mean[None])
        score = mean_score(run, index, warm, users)
        out.append(Point(SERVED, int(clicks), score, warm[0].cpu().numpy()))
    return out
