"""A whole run, from prepared shards to the last score, by the plain program and by ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import plain_torch as plain
from benchmarks.contest import plain_model
from benchmarks.record import PHASES, Figure, Row, processor_clock
from mwuf_dist.config import WARM_SETS, Config
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods.mwuf import MwufConfig
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.run import Run


def compare_whole_runs(
    config: Config, folder: Path, runtime: Runtime, prepared: Prepared, runs: int, alone: bool = False
) -> Row:
    """Seconds of whole runs that take turns, and the fixed test's AUCs of both.

    The plain program makes no histories of finished warm sets: with a backbone that looks at them, ours runs `alone`.
    """
    clock, unit = processor_clock(torch.get_num_threads())
    theirs, ours = [], []
    found: tuple[dict[str, float], dict[str, float]] = {}, {}
    for turn in range(runs):
        begin = clock()
        if not alone and config.backbone.name not in plain.WITH_HISTORY:
            found[0].update(plain_run(config, runtime, prepared))
        middle = clock()
        found[1].update(our_run(config, folder / f"run-{turn}", runtime, prepared))
        theirs.append(middle - begin)
        ours.append(clock() - middle)
    plain_aucs, aucs = found
    return Row(
        "whole run",
        unit,
        False,
        Figure.of("ours", ours),
        Figure.of("plain PyTorch", theirs) if plain_aucs else None,
        aucs=aucs,
        more={"alternative_aucs": plain_aucs},
    )


def our_run(config: Config, folder: Path, runtime: Runtime, prepared: Prepared) -> dict[str, float]:
    """What `mwuf run` does between `prepare` and `results.json`; AUC of the fixed test by phase."""
    job = Run(config, folder, runtime, prepared)
    with contextlib.closing(job.session.recorder):
        job.pretrain(None)
        job.meta_train()
        job.warm_up_and_evaluate()
    return {phase: job.session.meta.phases[phase]["auc_test"] for phase in PHASES}


def plain_run(config: Config, runtime: Runtime, prepared: Prepared) -> dict[str, float]:
    """The same run as a plain program; AUC of the fixed test by phase.

    The batches are in another random order, so its AUCs are near ours and not the same.
    """
    torch.manual_seed(config.seed)
    model = plain_model(config, runtime, prepared)
    rows = {split: _columns(prepared, split) for split in ("pretrain", *WARM_SETS, "test")}
    optimizer = plain.adam(model, config.pretrain.learning_rate)
    for batch in _batches([rows["pretrain"]], config.pretrain.batch_size, config.pretrain.epochs):
        plain.pretrain_step(model, optimizer, batch)
    plain.freeze(model)
    phi_new = plain.common_initialisation(model, prepared.num_items)
    assert isinstance(config.method, MwufConfig)
    meta = plain.MetaNetworks(model.items.out_dim, model.dim, config.method.hidden, True)
    old = rows["pretrain"]
    user_ids = model.user_id_rows()
    user_mean = plain.mean_user_embedding(user_ids, old.user, old.item, prepared.num_items)
    cold = plain.adam(phi_new, config.meta_train.learning_rate_cold)
    warm = plain.adam(meta, config.meta_train.learning_rate_warm)
    for batch in _batches([old], config.meta_train.batch_size, 1):
        plain.meta_train_step(model, phi_new, meta, user_mean, cold, warm, batch)
    with torch.no_grad():
        phi_new.weight[prepared.num_old_items :] = model.phi_old.weight[: prepared.num_old_items].mean(0)
    aucs = {}
    for phase, name in enumerate(PHASES):
        finished = [rows[split] for split in WARM_SETS[:phase]]
        if finished:
            chosen = finished if config.warm_up.carry_over else finished[-1:]
            optimizer = plain.adam(phi_new, config.warm_up.learning_rate)
            for batch in _batches(chosen, config.warm_up.batch_size, config.warm_up.epochs):
                plain.warm_up_step(model, phi_new, optimizer, batch)
        users, items = (
            torch.cat([torch.empty(0, dtype=torch.int64), *(getattr(r, key) for r in finished)])
            for key in ("user", "item")
        )
        means = plain.mean_user_embedding(user_ids, users, items, prepared.num_items)
        warmed = plain.warm_embeddings(model, phi_new, meta, means)
        next_set = rows[(*WARM_SETS, "test")[phase]]
        for scored in (next_set, rows["test"]):  # both are scored, as in ours; the fixed test is what is compared
            aucs[name] = plain.auc(plain.score(model, warmed, scored), scored.label)
    return aucs


def _columns(prepared: Prepared, split: str) -> plain.Batch:
    columns = prepared.columns(split, ("user", "item", "label"))
    user, item, label = (torch.from_numpy(columns[name]) for name in ("user", "item", "label"))
    return plain.Batch(user.long(), item.long(), label.float())


def _batches(parts: list[plain.Batch], batch_size: int, epochs: int) -> Iterator[plain.Batch]:
    user, item, label = (torch.cat([getattr(part, name) for part in parts]) for name in ("user", "item", "label"))
    for _ in range(epochs):
        order = torch.randperm(len(user))
        for rows in order.split(batch_size):
            yield plain.Batch(user[rows], item[rows], label[rows])
