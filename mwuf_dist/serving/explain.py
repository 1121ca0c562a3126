"""`mwuf explain`: why one item (or user) has the embedding it has, and how its scores moved with its clicks.

A run keeps no history of every item, but its warm-up depends on nothing but the config and the data: it is done again
here from its first step, with the item's scores taken on the way, and must end at the rows of the checkpoint.

The serving rule makes a row of the first n interactions of an item whatever came later, so the score after each of
those that `mwuf warm` has brought is found by applying it to fewer: what a job would have served that had seen no more.
Rows of users who came later are made by the same rule with both sides exchanged, and are explained so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mwuf_dist.config import PHASES, config_hash
from mwuf_dist.data import vocabulary
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.data.schema import SIDES, Side
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.explanation import Explanation, Point, thinned
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.item_moves import applied, moving, nearest
from mwuf_dist.serving.served_log import taken
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import SERVED
from mwuf_dist.serving.sides import Items, Users
from mwuf_dist.serving.warm.change import Change
from mwuf_dist.serving.warm.interactions import Columns, log_options
from mwuf_dist.serving.warm.job import seen_by_run
from mwuf_dist.serving.warm.rows import WarmJob, rows_of_run
from mwuf_dist.serving.warm.users import UserChange, UserJob
from mwuf_dist.training.checkpoint.files import Cursor, Meta
from mwuf_dist.training.checkpoint.save import Checkpointer
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.item_rule.frozen_items import FrozenModel
from mwuf_dist.training.item_rule.rule import rule_of
from mwuf_dist.training.loop import Session
from mwuf_dist.training.model import Model, feature_store
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.recorder import Recorder
from mwuf_dist.training.stages.meta_train import initialise_new_ids
from mwuf_dist.training.stages.warm_up import WarmUp

# Moments since the run that are looked at, at most.
_NUM_POINTS = 16
# Moments of a phase at which neighbours are looked for.
_NUM_LOOKS = 6


@dataclass
class _Replay(WarmUp):
    """The run's own warm-up, which looks at one item after each step that trained it."""

    item: int = -1
    users: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    clicks: int = 0
    phase: str = PHASES[0]
    history: list[Point] = field(default_factory=list)

    def step(self, batch: Batch, optimizer: Adam, following: Batch | None = None) -> torch.Tensor:
        """See `WarmUp.step`."""
        loss = super().step(batch, optimizer, following)
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


def explain(
    run: FinishedRun, raw_id: int | str, num_nearest: int = 10, deltas: Sequence[Path] = (), side: Side = "item"
) -> Explanation:
    """Explains one item, or one user.

    Args:
        run: the item's.
        raw_id: of the item, or the user.
        num_nearest: how many old items (users of the run) to name.
        deltas: files of deltas, or folders of them, beside those in the run's folder.
        side: which of both.

    Raises:
        UserError: the run has no such item or user, or a delta is damaged or another run's.
    """
    index = run.index_of(raw_id, side)
    about = Items(run) if side == "item" else Users(run)
    cosines, near = nearest(about, about.rows(torch.tensor([index], device=about.others.device)), num_nearest, index)
    pairs = zip(near[0].tolist(), cosines[0].tolist(), strict=True)
    out = Explanation(
        item_id=about.ids[index].as_py(),
        phase=about.phase(index),
        interactions=about.interactions(index),
        positives=about.fractions_of_clicks(index),
        scale=None,
        shift=None,
        nearest=[(about.ids[one].as_py(), cosine) for one, cosine in pairs],
        side=side,
    )
    out.applied = applied(about, index, deltas)
    shown = [out.item_id, *(one for one, _ in out.nearest)]
    words = vocabulary.described(run.prepared, [run.index_of(one, side) for one in shown], side)
    out.words = {one: said for one, said in zip(shown, words, strict=True) if said}
    if isinstance(about, Users):
        out.history = _served_scores_of_user(about, index)
    elif index >= run.num_old_items:
        item = torch.tensor([index], device=about.others.device)
        with torch.no_grad():
            pair = run.method.scale_and_shift(*run.meta_inputs(item))
        if pair is not None:
            out.scale, out.shift = (values[0].cpu().numpy() for values in pair)
        if run.state is None or index < run.state.num_run_items:
            out.history, out.replay_error = _history(run, index, about.others)
        out.history += _served_scores(about, index)
    if out.history:
        moments = _moments(out.history)
        out.moving = moving(about, [out.history[moment].embedding for moment in moments], moments)
    return out


def _moments(history: list[Point]) -> list[int]:
    """Returns some moments of each phase, its first and last among them, denser at its beginning."""
    found = []
    for phase in dict.fromkeys(point.phase for point in history):
        found += thinned([place for place, point in enumerate(history) if point.phase == phase], _NUM_LOOKS)
    return found


def _numbers_of_clicks(num: int) -> np.ndarray:
    """Returns some numbers of interactions from 0 to all of them."""
    return np.unique(np.linspace(0, num, min(num, _NUM_POINTS) + 1).round().astype(int))


@torch.no_grad()
def _served_scores_of_user(about: Users, index: int) -> list[Point]:
    """Returns the mean probability of items after some numbers of a later user's clicks; empty for one of the run."""
    run, place = about.run, index - about.num_run
    if place < 0 or run.state is None or run.state.users is None:
        return []
    runtime, users = run.model.runtime, run.state.users
    of_users, of_items = (feature_store(run.config.embedding, run.prepared, side, runtime) for side in SIDES)
    frozen = FrozenModel(run, of_users, of_items, run.histories)
    of_run = Prepared(run.prepared.path, run.prepared.manifest)  # without what has come since
    job = UserJob(run.config, runtime, of_run, log_options(run.config, Columns()), run, frozen)
    own = taken(users.log, users.log["item"] == place)
    out = []
    for clicks in _numbers_of_clicks(len(own["item"])):
        log = taken(own, np.arange(clicks))
        made = job.users(UserChange(replace(users, log=log), np.array([place]), log, 0))
        assert made is not None
        row = torch.from_numpy(made.rows[place : place + 1]).to(runtime.device)
        out.append(Point(SERVED, int(clicks), about.score(index, row), row[0].cpu().numpy()))
    return out


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
def _served_scores(about: Items, index: int) -> list[Point]:
    """Returns the mean probability of users after interactions since the run, the first before any of them.

    Empty where the item has had no interaction since the run.
    """
    run, state = about.run, about.run.state
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
    for clicks in _numbers_of_clicks(len(own["item"])):
        log = taken(own, np.arange(clicks))
        change = Change(replace(state, log=log, rows=none), np.array([index]), nothing, 0, 0, 0, 0, log)
        made = WarmJob(run.config, run.model.runtime, run.prepared, change, run_log, run_rows).rows(run)
        row = torch.from_numpy(made.served).to(device)
        users_of = [one["user"][run.prepared.is_event(one["label"], run.config.data.events)] for one in (run_log, log)]
        seen = torch.from_numpy(np.concatenate(users_of).astype(np.int64)).to(device)
        mean = run.model.user_tables.rows_of("user_id", seen + 1).mean(0) if len(seen) else run.mean_user
        item = torch.tensor([index], device=device)
        warm = run.method.warm_rows(row, run.model.item_fields(item), mean[None])
        out.append(Point(SERVED, int(clicks), about.score(index, warm), warm[0].cpu().numpy()))
    return out
