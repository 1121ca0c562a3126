"""What `benchmarks.stops` plays: which process of which command is stopped when, and how long the others may take."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 5
RAY_TIMEOUT_S = 20  # within which a rank imports what it needs
# Seconds that a command may take to come as far as a scenario wants it, and to its end after that.
PATIENCE_S = 240.0
# Seconds beyond `runtime.timeout_s`, by the way of starting and the process that is stopped: the constants of
# docs/faults.md, and 10 s for a machine that does other things too. `torchrun` gives its ranks half a minute to end.
_BUSY_S = 10.0
LIMITS_S = {
    ("torchrun", "rank"): 8 + 30 + _BUSY_S,
    ("torchrun", "launcher"): 8 + _BUSY_S,
    ("ranks", "rank"): 8 + _BUSY_S,
    ("ranks", "absent"): 60 + 8 + _BUSY_S,
    ("ray", "rank"): 15 + 8 + _BUSY_S,
    ("ray", "lanes"): 15 + 8 + _BUSY_S,
    ("ray", "gcs"): 8 + _BUSY_S,
    ("ray", "raylet"): 75 + _BUSY_S,
    ("ray", "launcher"): PATIENCE_S,
    ("prepare", "worker"): 60 + _BUSY_S,
    ("compare", "worker"): 15 + 8 + _BUSY_S,
}
STAGES = ("pretrain", "meta_train", "warm_up")
SHARES = {  # of 50 scenarios
    ("torchrun", "rank"): 15,
    ("torchrun", "launcher"): 7,
    ("ranks", "rank"): 14,
    ("ranks", "absent"): 2,
    ("ray", "rank"): 4,
    ("ray", "lanes"): 2,
    ("ray", "gcs"): 1,
    ("ray", "raylet"): 1,
    ("ray", "launcher"): 1,
    ("prepare", "worker"): 1,
    ("compare", "worker"): 2,
}
VALUES: dict[str, Any] = {
    "data": {
        "name": "synthetic",
        "old_above": 60,
        "warm_rows": 8,
        "synthetic": {"num_rows": 20_000, "num_users": 300, "num_items": 300},
    },
    "backbone": {"name": "deepfm", "hidden": [8]},
    "embedding": {"dim": 8},
    "pretrain": {"epochs": 60, "batch_size": 1024},
    "meta_train": {"epochs": 30, "batch_size": 1024},
    "warm_up": {"batch_size": 256, "epochs": 30},
    "checkpoint": {"every_s": 0.2},
    "runtime": {"device": "cpu", "progress": "off", "timeout_s": TIMEOUT_S},
}


@dataclass(frozen=True)
class Scenario:
    """What is stopped, and when: so many seconds into a stage, or after the start."""

    way: str
    who: str
    rank: int
    when: str
    delay_s: float


def scenarios(num: int, seed: int) -> list[Scenario]:
    """So many scenarios, in the proportions of the kinds."""
    draw = random.Random(seed)
    total, found = sum(SHARES.values()), []
    for number in range(num):
        place, kinds = (number * 7 % num + 0.5) / num * total, list(SHARES)
        while place > SHARES[kinds[0]]:
            place -= SHARES[kinds.pop(0)]
        (way, who), rank = kinds[0], draw.randrange(2)
        when = "start" if who == "absent" or way in ("prepare", "compare") else draw.choice(STAGES)
        found.append(Scenario(way, who, rank, when, round(draw.uniform(0.0, 0.5), 2)))
    return found
