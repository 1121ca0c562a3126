"""What every rank of `test_resume.py` does under torchrun: a whole run, and one that is stopped and goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mwuf_dist.training.checkpoint.save import SavePolicy
from mwuf_dist.training.stages.meta_train import MetaTrain
from tests.training.test_resume import CONFIGS, Stop, run, stop_at


def main(folder: Path, name: str) -> None:
    """Leaves the two runs in `folder/whole` and `folder/parts`."""
    # One rank is late to each process group but the first: it must not be looked for where it was in the last one.
    run(CONFIGS[name], folder / "whole")
    time.sleep(int(os.environ["RANK"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
        stop_at(patch, MetaTrain, "step", 17)
        with pytest.raises(Stop):
            run(CONFIGS[name], folder / "parts")
    time.sleep(1 - int(os.environ["RANK"]))
    assert not (folder / "parts" / "results.json").exists()
    run(CONFIGS[name], folder / "parts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
