"""What moves a run's last bits: one weight of the first matrix, by one unit in its last place."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.last_bits import nudge


def test_one_weight_of_the_first_matrix_moves_to_the_next_number() -> None:
    module = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    nudge(module, 2)
    changed = {name: (value != before[name]).nonzero() for name, value in module.state_dict().items()}
    assert [name for name, places in changed.items() if len(places)] == ["1.weight"]
    ((row, column),) = changed["1.weight"].tolist()
    assert 6 * row + column == 34 % 30
    moved, was = module[1].weight[row, column], before["1.weight"][row, column]
    assert moved.view(torch.int32) - was.view(torch.int32) == (1 if was >= 0 else -1)
