"""New and reused slots of a growing table start from a method's row, and all others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_modules import LRU_EvictionPolicy, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from benchmarks.growing import GOAL_AUC, cold_auc, content_of, stream
from mwuf_dist import MetaWarmUp
from mwuf_dist.embeddings.growing import NOBODY, FirstRows, watch
from mwuf_dist.methods.first_rows import common_rows, content_rows, mwuf_rows

DIM = 4


def row_of(raw_ids: torch.Tensor) -> torch.Tensor:
    """A first row that tells its ID."""
    return raw_ids[:, None].float() + torch.arange(DIM) / 8


class Mpzch(HashZchManagedCollisionModule):
    """MPZCH with a stand-in for its kernel, which trains on a GPU only: linear probing, the oldest gives way."""

    def _zero_collision_hash(self, **given: Any) -> Any:
        identities, metadata = given["identities"].data, given["metadata"]
        slots, evicted = [], []
        for place, raw_id in enumerate(given["input"].tolist()):
            probes = [(raw_id * 7 + step) % len(identities) for step in range(given["max_probe"])]
            there = [slot for slot in probes if identities[slot, 0] == raw_id]
            free = [slot for slot in probes if identities[slot, 0] == -1]
            oldest = min(probes, key=lambda slot: int(metadata[slot, 0]))
            slot = (there or free or [oldest])[0]
            if not there and not free:
                evicted.append(slot)
            identities[slot, 0], metadata[slot, 0] = raw_id, int(given["input_metadata"][place])
            slots.append(slot)
        return torch.tensor(slots), torch.tensor(evicted) if evicted else None


def mpzch(num_slots: int) -> HashZchManagedCollisionModule:
    config = HashZchEvictionConfig(features=["item"], single_ttl=1)
    policy = HashZchEvictionPolicyName.SINGLE_TTL_EVICTION
    more: dict[str, Any] = {"max_probe": 3, "eviction_policy_name": policy, "eviction_config": config, "name": "item"}
    return Mpzch(num_slots, torch.device("cpu"), total_num_buckets=1, **more)


def mch(num_slots: int, interval: int = 1) -> MCHManagedCollisionModule:
    return MCHManagedCollisionModule(num_slots, torch.device("cpu"), LRU_EvictionPolicy(), interval)


def batch_of(raw_ids: list[int]) -> dict[str, JaggedTensor]:
    return {"item": JaggedTensor(torch.tensor(raw_ids), lengths=torch.ones(len(raw_ids), dtype=torch.int64))}


def mpzch_owners(module: Any) -> dict[int, int]:
    return {slot: int(one) for slot, one in enumerate(module._hash_zch_identities[:, 0]) if one != -1}


def mch_owners(module: Any) -> dict[int, int]:
    pairs = zip(module._mch_remapped_ids_mapping.tolist(), module._mch_sorted_raw_ids.tolist(), strict=True)
    return {slot: one for slot, one in pairs if one != torch.iinfo(torch.int64).max}


@pytest.mark.parametrize(("make", "owners_of"), [(mpzch, mpzch_owners), (mch, mch_owners)])
def test_a_slot_starts_from_its_owners_row_each_time_it_gets_another_one(
    make: Callable[[int], Any], owners_of: Callable[[Any], dict[int, int]]
) -> None:
    module, random = make(24), np.random.default_rng(3)
    weight, state = torch.full((24, DIM), -1.0), torch.ones(24)
    seen = watch(module, weight, row_of, states=lambda: [state])
    owned: dict[int, int] = {}
    num_reused = 0
    for step in range(60):
        raw_ids = random.integers(step // 3, 25 + step // 3, size=9).tolist()
        slots = module(module.profile(batch_of(raw_ids)))["item"].values().tolist()
        module.evict()
        now = owners_of(module)
        for slot in range(24):
            if slot in slots and now.get(slot, NOBODY) != owned.get(slot, NOBODY):
                assert torch.equal(weight[slot], row_of(torch.tensor([now[slot]]))[0]) and state[slot] == 0
                num_reused += slot in owned
                owned[slot] = now[slot]
                weight[slot] += 0.5  # a step of training
                state[slot] = 1
            elif slot in owned:
                assert torch.equal(weight[slot], row_of(torch.tensor([owned[slot]]))[0] + 0.5) and state[slot] == 1
    assert num_reused > 10 and seen.num_filled == len(owned) + num_reused
    # Neither a lookup without training nor one after the end touches anything.
    before = weight.clone()
    seen.close()
    module(module.profile(batch_of([900, 901])))
    assert torch.equal(weight, before)


def test_what_a_restored_table_holds_stays_and_other_modules_are_refused() -> None:
    module = mch(10)
    module(module.profile(batch_of([5, 6, 7, 7])))  # its history has room for a batch as long as the first
    weight = torch.randn(10, DIM)
    before = weight.clone()
    watch(module, weight, row_of)
    slots = module(module.profile(batch_of([5, 6, 7, 8])))["item"].values()
    assert torch.equal(weight[slots[:3]], before[slots[:3]])
    assert torch.equal(weight[slots[3]], row_of(torch.tensor([8]))[0])
    with pytest.raises(TypeError, match="neither"):
        watch(torch.nn.Linear(1, 1), weight, row_of)


def test_a_table_of_ones_own_has_the_same_function() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, DIM))
    rows = FirstRows(weight, row_of, owners=torch.tensor([40, NOBODY, NOBODY, NOBODY, NOBODY, NOBODY]))
    assert rows.see(torch.tensor([3, 0, 3, 5]), torch.tensor([41, 40, 41, NOBODY])).tolist() == [3]
    assert rows.see(torch.tensor([3]), torch.tensor([41])).tolist() == []
    assert rows.see(torch.tensor([0, 3]), torch.tensor([42, 41])).tolist() == [0]
    assert torch.equal(weight[torch.tensor([0, 3])], row_of(torch.tensor([42, 41]))) and not weight[5].any()
    with pytest.raises(ValueError, match="owners of"):
        FirstRows(weight, row_of, owners=torch.zeros(5))


def test_first_rows_of_the_methods_are_their_formulas() -> None:
    torch.manual_seed(0)
    known, known_fields = torch.randn(50, DIM), torch.randn(50, 3)
    fields = torch.randn(9, 3)
    raw_ids = torch.tensor([4, 2])
    common, users = common_rows(known), torch.randn(9, 5)
    torch.testing.assert_close(common(raw_ids), known.mean(0).expand(2, -1))
    from sklearn.linear_model import Ridge

    expected = Ridge(alpha=2.0).fit(known_fields.double(), known.double()).predict(fields[raw_ids].double())
    made = content_rows(known, known_fields, lambda ids: fields[ids], ridge=2.0)(raw_ids)
    torch.testing.assert_close(made, torch.from_numpy(expected).float())
    networks = MetaWarmUp(dim=DIM, item_width=3, user_width=5)
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter)
    warm = mwuf_rows(networks, common, lambda ids: fields[ids], lambda ids: users[ids])(raw_ids)
    scale, shift = 1 + networks.scaling(fields[raw_ids]), networks.shifting(users[raw_ids])
    torch.testing.assert_close(warm, known.mean(0) * scale + shift)


def test_cold_items_of_a_growing_table_rank_as_those_of_a_whole_table_and_better_than_from_what_was_there() -> None:
    data = stream()
    content = content_of(data)
    whole, grown = (cold_auc(grows, content, data) for grows in (False, True))
    assert abs(whole - grown) < GOAL_AUC
    assert grown > cold_auc(True, None, data) + 0.05  # random rows, which is what a new key has without a method
