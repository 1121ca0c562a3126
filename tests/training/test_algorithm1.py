"""The one-backward step of meta_train is Algorithm 1 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.config import Config, MetaTrainConfig
from mwuf_dist.config.registry import method_config
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.embeddings.sharded import Fetched
from mwuf_dist.embeddings.tables import FlatParameter
from mwuf_dist.methods.mwuf import Mwuf
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.batch_ids import Fetches, FrozenIds
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.stages.meta_train import MetaTrain

NUM_ITEMS, DIM, CONTEXT, ROWS = 7, 4, 6, 32


class LocalTable:
    """A table as `Tables` shows itself, in float64 and without TorchRec."""

    name = "new"
    is_whole = True  # held by every rank

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = nn.Parameter(weight.clone())

    def rows_to_train(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]

    def set_gradient(self, ids: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor) -> None:
        rows.backward(d_rows)

    def gradients_to_send(self) -> list[Fetched]:
        return []  # all rows are here

    def flat_parameters(self) -> list[FlatParameter]:
        return [FlatParameter(self.weight, {"new": (0, self.weight.shape)})]

    def like(self, table: str, local: torch.Tensor) -> torch.Tensor:
        return local


class FrozenStub:
    """A frozen model: logit = tanh(v) . part, and the inputs of the meta networks."""

    losses: Any = Frozen.losses
    losses_and_gradients: Any = Frozen.losses_and_gradients
    with_inputs: Any = Frozen.with_inputs

    def __init__(self) -> None:
        self.context, self.user_mean = torch.randn(NUM_ITEMS, CONTEXT), torch.randn(NUM_ITEMS, DIM)

    def inputs(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.context[items], self.user_mean[items]

    def fetches(self, with_inputs: bool) -> Fetches[FrozenIds]:
        def find(batch: Batch) -> FrozenIds:
            items, index = torch.unique(batch.item, return_inverse=True)
            return FrozenIds(items, index, (batch.user, batch.item))

        return Fetches(find, lambda ids: [])

    def _logit_of(self, ids: FrozenIds) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(self.logit, part=self.part(*ids.parts))

    def part(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return torch.sin(user[:, None] + torch.arange(DIM) + item[:, None]).double()

    def logit(self, embedding: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(embedding) * part).sum(-1)


def batches() -> list[Batch]:
    out = []
    for step in range(20):
        item = torch.randint(0, NUM_ITEMS, (ROWS,))
        label = torch.randint(0, 2, (ROWS,)).double()
        out.append(Batch(torch.randint(0, 50, (ROWS,)), item, label, torch.ones(ROWS), ROWS, True, 0, step))
    return out


def literal_algorithm_1(
    phi: torch.Tensor, method: Mwuf, frozen: FrozenStub, rows: list[Batch], config: MetaTrainConfig
) -> torch.Tensor:
    """Lines 2 to 10 as printed: v and v_warm are obtained, then L_cold updates phi, then L_warm updates h and g."""
    phi = nn.Parameter(phi.clone())
    cold = torch.optim.AdamW([phi], lr=config.learning_rate_cold, weight_decay=0.0)
    warm = torch.optim.AdamW(method.parameters(), lr=config.learning_rate_warm, weight_decay=0.0)
    for batch in rows:
        v = phi[batch.item]
        scaling, shifting = method.scaling, method.shifting
        assert scaling is not None and shifting is not None
        context, user_mean = frozen.inputs(batch.item)
        v_warm = v.detach() * scaling(context) + shifting(user_mean)
        part = frozen.part(batch.user, batch.item)
        cold.zero_grad()
        F.binary_cross_entropy_with_logits(frozen.logit(v, part), batch.label).backward()
        cold.step()
        warm.zero_grad()
        F.binary_cross_entropy_with_logits(frozen.logit(v_warm, part), batch.label).backward()
        warm.step()
    return phi.detach()


def test_one_backward_equals_the_two_updates_of_algorithm_1_in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        config = Config(meta_train=MetaTrainConfig(learning_rate_cold=0.03, learning_rate_warm=0.02))
        frozen, phi, rows = FrozenStub(), torch.randn(NUM_ITEMS, DIM), batches()
        settings = method_config(residual=False)
        ours, theirs = Mwuf(settings, DIM, CONTEXT), Mwuf(settings, DIM, CONTEXT)
        theirs.load_state_dict(ours.state_dict())
        table = LocalTable(phi)
        model = SimpleNamespace(
            new_ids=table, runtime=Runtime(0, 1, torch.device("cpu"), False), num_old=NUM_ITEMS, num_items=NUM_ITEMS
        )
        stage = MetaTrain(config, model, frozen, ours)  # type: ignore[arg-type]
        for batch in rows:
            stage.step(batch)
        expected = literal_algorithm_1(phi, theirs, frozen, rows, config.meta_train)
        torch.testing.assert_close(table.weight.detach(), expected, rtol=0, atol=1e-13)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
        assert (table.weight - phi).abs().max() > 0.1  # it did train
    finally:
        torch.set_default_dtype(torch.float32)
