"""First rows for tables that give a slot to an ID when it comes: what a new key starts from is a method's matter.

TorchRec's managed collision (`HashZchManagedCollisionModule`, which is MPZCH, and `MCHManagedCollisionModule`) gives
slots away, and takes them back from IDs that are not seen any more. Whoever gets one finds there what the table was
made with, or what the ID before has left. `watch` puts a first row there instead, before the lookup of the same step;
`FirstRows.see` is the same for any other table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

NOBODY = torch.iinfo(torch.int64).min  # owns a slot that no ID has


class FirstRows:
    """Knows who owns each slot of a table, and gives a slot its first row when its owner changes.

    What is in the table when this is made counts as owned: restore a table first. Owners are no part of a checkpoint.

    Args:
        weight: the table [N, D], of this rank. It is changed in place, outside of autograd.
        first_rows: raw IDs [n] int64 -> their first rows [n, D], see `mwuf_dist/methods/first_rows.py`.
        owners: raw IDs of the slots as they are [N], `NOBODY` of a free one; None: all are free.
        states: gives the optimizer's state, tensors whose first dimension is the slots; that of a slot with a new owner
            becomes zero. Called each time, as optimizers make it at their first step.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        first_rows: Callable[[torch.Tensor], torch.Tensor],
        owners: torch.Tensor | None = None,
        states: Callable[[], Sequence[torch.Tensor]] = lambda: (),
    ) -> None:
        self._weight, self._first_rows, self._states = weight.detach(), first_rows, states
        free = torch.full((len(weight),), NOBODY, dtype=torch.int64, device=weight.device)
        self.owners = free if owners is None else owners.to(weight.device, torch.int64, copy=True)
        if self.owners.shape != free.shape:
            raise ValueError(f"owners of {tuple(self.owners.shape)} slots for a table of {len(weight)}")

    @torch.no_grad()
    def see(self, slots: torch.Tensor, raw_ids: torch.Tensor) -> torch.Tensor:
        """Gives first rows to those slots that belong to another ID than when they were last seen.

        Args:
            slots: that the next lookup reads, each as often as it comes [n].
            raw_ids: who owns each of them now [n]; `NOBODY` where it is nobody, and then nothing happens.

        Returns:
            The slots that got a row, ascending.
        """
        slots, raw_ids = slots.to(self.owners.device), raw_ids.to(self.owners.device)
        is_new = (self.owners[slots] != raw_ids) & (raw_ids != NOBODY)
        slots, raw_ids = slots[is_new], raw_ids[is_new]
        if not len(slots):
            return slots
        slots, place = torch.unique(slots, return_inverse=True)
        raw_ids = torch.empty_like(slots).scatter_(0, place, raw_ids)  # a slot has one owner
        self._weight[slots] = self._first_rows(raw_ids).to(self._weight)
        for state in self._states():
            state[slots] = 0
        self.owners[slots] = raw_ids
        return slots


class Watch:
    """Sees what a managed collision module gives away, from `watch` on until `close`.

    Attributes:
        num_filled: slots that got a first row so far.
    """

    def __init__(self, module: Any, rows: FirstRows, first_slot: int) -> None:
        self._module, self._rows, self._first_slot = module, rows, first_slot
        self._remap = module.remap
        self.num_filled = 0
        module.remap = self._watched  # which sharded modules call, too, where they do not call `forward`

    def close(self) -> None:
        """Leaves the module as it was."""
        self._module.remap = self._remap

    def _watched(self, features: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        remapped = self._remap(features, *args, **kwargs)
        if self._module.training:
            for name, feature in remapped.items():
                slots = feature.values() - self._first_slot
                owners = _owners_now(self._module, features[name].values(), slots)
                self.num_filled += len(self._rows.see(slots, owners))
        return remapped


def watch(
    module: Any,
    weight: torch.Tensor,
    first_rows: Callable[[torch.Tensor], torch.Tensor],
    states: Callable[[], Sequence[torch.Tensor]] = lambda: (),
) -> Watch:
    """Gives new and reused slots of a table behind TorchRec's managed collision their first row.

    Call it once the module is sharded and restored: what is in the table then stays. An ID that has no slot of its own
    (a full table, or one that `MCHManagedCollisionModule` has not admitted yet) changes nothing.

    Args:
        module: a `HashZchManagedCollisionModule` or `MCHManagedCollisionModule`, of this rank.
        weight: the rows of its slots [N, D], of this rank.
        first_rows: see `FirstRows`.
        states: see `FirstRows`.

    Raises:
        TypeError: `module` is neither.
    """
    if hasattr(module, "_hash_zch_identities"):
        offset = module._output_global_offset_tensor
        first_slot, owners = 0 if offset is None else int(offset), module._hash_zch_identities.detach()[:, 0]
        free = -1
    elif hasattr(module, "_mch_sorted_raw_ids"):
        first_slot, free = module._output_global_offset, torch.iinfo(torch.int64).max
        owners = torch.empty_like(module._mch_sorted_raw_ids)
        owners[module._mch_remapped_ids_mapping - first_slot] = module._mch_sorted_raw_ids
    else:
        raise TypeError(f"{type(module).__name__}: neither HashZch- nor MCHManagedCollisionModule")
    return Watch(module, FirstRows(weight, first_rows, owners.masked_fill(owners == free, NOBODY), states), first_slot)


def _owners_now(module: Any, raw_ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Says who owns the slots [n] that IDs have been given; these are more where such without a slot are left out."""
    if hasattr(module, "_hash_zch_identities"):
        found = module._hash_zch_identities.detach()[:, 0][slots.to(module.device)]
        return found.masked_fill(found == -1, NOBODY)
    # Its last slot is that of all IDs which have none.
    return raw_ids.masked_fill(slots == module._zch_size - 1, NOBODY)
