"""What does a table that grows by TorchRec's managed collision gain by first rows of a method, and what do they cost?

    python -m benchmarks.growing [--rounds 15] [--output FILE]

Items of a made-up stream come one after another; each batch is scored before it is trained on, and the AUC of the first
three rows of each item is that of cold items. A table that is whole from the beginning, each item's row made by the
method before it starts, stands beside one that grows with the hook, and one that grows without. Then the time of a
training step (a table of 100,000 slots of width 64, Zipf's law, batch 4,096, two layers behind it) with and without the
hook, in turns, by processor time. Both with `MCHManagedCollisionModule`: the kernel of MPZCH trains on a GPU only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import LRU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.record import Figure, Record, Row, command_line
from mwuf_dist.embeddings.growing import watch
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.methods.first_rows import Rows, content_rows

GOAL_AUC, GOAL_STEP = 1e-3, 1.1
_SLOTS, _WIDTH, _BATCH, _STEPS = 100_000, 64, 4096, 10
_COLD_ROWS = 3


def stream(num_items: int = 300, num_batches: int = 60, batch: int = 100, width: int = 8) -> dict[str, Any]:
    """Clicks on items that come one after another; an item's vector is told by its fields but for a part."""
    generator = torch.Generator().manual_seed(7)
    fields = torch.randn(num_items, 3, generator=generator)
    items = fields @ torch.randn(3, width, generator=generator)
    items += 0.5 * torch.randn(num_items, width, generator=generator)
    users = torch.randn(200, width, generator=generator) / width**0.5
    num = num_batches * batch
    newest = 20 + (num_items - 20) * torch.arange(num) // num
    item = (newest * torch.rand(num, generator=generator)).long()
    user = torch.randint(200, (num,), generator=generator)
    label = torch.bernoulli(((items[item] * users[user]).sum(1)).sigmoid(), generator=generator)
    count = torch.zeros(num_items, dtype=torch.int64)
    is_cold = torch.zeros(num, dtype=torch.bool)
    for place, one in enumerate(item.tolist()):
        is_cold[place] = count[one] < _COLD_ROWS
        count[one] += 1
    batches = list(zip(item.split(batch), user.split(batch), label.split(batch), strict=True))
    about = {"fields": fields, "items": items, "users": users, "num_items": num_items}
    return about | {"batches": batches, "labels": label, "is_cold": is_cold}


def content_of(data: dict[str, Any], num_known: int = 20) -> Rows:
    """First rows by the fields, learned from the items that are there first."""
    known = torch.arange(num_known)
    return content_rows(data["items"][known], data["fields"][known], lambda ids: data["fields"][ids])


def cold_auc(grows: bool, first_rows: Rows | None, data: dict[str, Any]) -> float:
    """Trains by time and scores each batch before it; the AUC of the first rows of each item."""
    torch.manual_seed(0)
    num_items, width = data["num_items"], data["users"].shape[1]
    table, weight, module = _table(num_items + 1, width, grows, interval=1)
    nn.init.normal_(weight, std=0.5)
    optimizer = torch.optim.SGD(table.parameters(), lr=3.0)
    if first_rows is not None and grows:
        watch(module, weight, first_rows)
    elif first_rows is not None:
        with torch.no_grad():
            weight[:num_items] = first_rows(torch.arange(num_items))
    scores = []
    for item, user, label in data["batches"]:
        logit = (_looked_up(table, item, grows) * data["users"][user]).sum(1)
        scores.append(logit.detach())
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
        optimizer.step()
    return auc(torch.cat(scores)[data["is_cold"]].double().numpy(), data["labels"][data["is_cold"]].numpy())


def _table(num_slots: int, width: int, grows: bool, interval: int) -> tuple[nn.Module, Any, Any]:
    """(A collection of one table, its weight, the module that gives its slots away)."""
    config = EmbeddingConfig(name="t", embedding_dim=width, num_embeddings=num_slots, feature_names=["item"])
    table = EmbeddingCollection([config])
    weight = table.embeddings["t"].weight
    if not grows:
        return table, weight, None
    module = MCHManagedCollisionModule(num_slots, torch.device("cpu"), LRU_EvictionPolicy(), interval)
    whole = ManagedCollisionEmbeddingCollection(table, ManagedCollisionCollection({"t": module}, [config]))
    return whole, weight, module


def _looked_up(table: nn.Module, item: torch.Tensor, grows: bool) -> torch.Tensor:
    found = table(KeyedJaggedTensor(["item"], item, lengths=torch.ones_like(item)))
    return (found[0] if grows else found)["item"].values()


def trainer(interval: int, first_rows: Rows | None) -> Callable[[], None]:
    """What does some steps of a growing table, going on each time it is called.

    Args:
        interval: of steps, after which the module admits the IDs that it has seen.
        first_rows: None for none.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    table, weight, module = _table(_SLOTS, _WIDTH, True, interval)
    behind = nn.Sequential(nn.Linear(_WIDTH, 128), nn.ReLU(), nn.Linear(128, 1))
    momentum = torch.zeros(_SLOTS)
    optimizer = torch.optim.SGD([*table.parameters(), *behind.parameters()], lr=0.1)
    if first_rows is not None:
        watch(module, weight, first_rows, states=lambda: [momentum])

    def steps() -> None:
        for _ in range(_STEPS):
            item = torch.from_numpy(random.zipf(1.2, _BATCH) % (2 * _SLOTS))
            logit = behind(_looked_up(table, item, True))[:, 0]
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logit, (item % 2).float()).backward()
            optimizer.step()

    return steps


def step_row(interval: int, rounds: int) -> Row:
    """Times steps with and without the hook in turns."""
    fields = torch.randn(2 * _SLOTS, 16, generator=torch.Generator().manual_seed(1))
    rows = content_rows(torch.randn(1000, _WIDTH), fields[:1000], lambda ids: fields[ids])
    contestants = {"hook": trainer(interval, rows), "none": trainer(interval, None)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, steps in contestants.items():
            start = time.process_time()
            steps()
            if number:  # the first makes the buffers
                seconds[name].append((time.process_time() - start) / _STEPS)
    ours, alternative = (Figure.of(name, seconds[name]) for name in contestants)
    row = Row(f"step, IDs admitted every {interval} steps", "CPU s", False, ours, alternative)
    return replace(row, more={"times": ours.p50 / alternative.p50})


def auc_row() -> Row:
    """Compares the AUC of cold items."""
    data = stream()
    content = content_of(data)
    grown, whole, none = cold_auc(True, content, data), cold_auc(False, content, data), cold_auc(True, None, data)
    ours, alternative = Figure.of("grows, first rows", [grown]), Figure.of("grows, none", [none])
    return Row("AUC of cold items", "AUC", True, ours, alternative, Figure.of("whole table", [whole]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [auc_row(), *(step_row(interval, options.rounds) for interval in (1, 10))]
    for row in rows:
        figures = [one for one in (row.ours, row.alternative, row.limit) if one is not None]
        print(f"{row.name}: " + ", ".join(f"{one.name} {one.p50:.4f}" for one in figures) + f" {row.unit} {row.more}")
    if options.output:
        config = {"slots": _SLOTS, "width": _WIDTH, "batch": _BATCH}
        question = "First rows of growing tables"
        Record(question, command_line("growing", sys.argv[1:]), config, rows, threads=1).write(options.output)


if __name__ == "__main__":
    main()
