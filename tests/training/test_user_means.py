"""U(v): users of finished sets, not items and not the rows that are about to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mwuf_dist.config import PHASES, WARM_SETS
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from tests.bounds import assert_float32_close
from tests.tiny import tiny


def test_user_means_are_the_mean_rows_of_the_users_of_finished_sets_in_every_phase(tmp_path: Path) -> None:
    """Against a loop over the rows. Fails if user and item are swapped, or if a set that is scored next leaks in."""
    config = tiny()
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        job.meta_train()
        prepared, model, frozen = job.prepared, job.model, job._frozen
        assert frozen is not None
        table = torch.cat([shard.weight for shard in model.user_tables.shards("user_id")]).double()
        items = np.arange(prepared.num_items)
        stage = run_module.WarmUp(config, model, frozen, job.method)
        expected_old = by_hand(job, table, ["pretrain"], items[: prepared.num_old_items])
        for phase in range(len(PHASES)):
            stage.finish_phase(prepared, phase)
            _, means = frozen.inputs(torch.from_numpy(items))
            expected_new = by_hand(job, table, WARM_SETS[:phase], items[prepared.num_old_items :])
            expected = torch.cat([expected_old, expected_new])
            assert_float32_close(means, expected, num_terms=prepared.num_users, size=float(table.abs().mean()))
        job.session.recorder.close()


def by_hand(job: Run, table: torch.Tensor, splits: list[str] | tuple[str, ...], items: np.ndarray) -> torch.Tensor:
    users: dict[int, list[int]] = {int(item): [] for item in items}
    for split in splits:
        columns = job.prepared.columns(split, ("user", "item", "label"))
        for user, item, label in zip(*columns.values(), strict=True):
            if label:
                users[int(item)].append(int(user))
    mean_user = job.model.mean_user().double()
    return torch.stack([table[torch.tensor(of) + 1].mean(0) if of else mean_user for of in users.values()])


def test_users_per_item_keeps_a_random_part_of_each_items_own_users(tmp_path: Path) -> None:
    config = tiny()
    with start(config) as runtime:
        prepared = run_module._prepare(config, runtime)
    items = torch.arange(prepared.num_old_items)
    all_users, all_offsets = ItemUsers(prepared, ["pretrain"], events="all").of(items)
    some_users, some_offsets = ItemUsers(prepared, ["pretrain"], users_per_item=10, seed=1, events="all").of(items)
    assert some_offsets.diff().tolist() == [10] * len(items)  # an old item has more than old_above = 60 rows
    for item in items.tolist():
        few = some_users[some_offsets[item] : some_offsets[item + 1]].tolist()
        many = all_users[all_offsets[item] : all_offsets[item + 1]].tolist()
        assert all(few.count(user) <= many.count(user) for user in few)
    other, _ = ItemUsers(prepared, ["pretrain"], users_per_item=10, seed=2, events="all").of(items)
    assert not torch.equal(some_users, other)


def test_scale_and_shift_are_applied_in_every_phase(tmp_path: Path) -> None:
    """The other fault of public code: the warm embedding is used in the cold phase only."""
    with_networks, without = tiny(), tiny(method={"scaling": False, "shifting": False})
    phases = {}
    for name, config in (("with", with_networks), ("without", without)):
        with start(config) as runtime:
            phases[name] = run_module.run(config, tmp_path / name, runtime)["phases"]
    for phase in PHASES:
        assert phases["with"][phase]["logloss_test"] != phases["without"][phase]["logloss_test"], phase
