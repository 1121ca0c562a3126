"""The leak audit: labels of sets that are still to be scored change no score.

One short pass of a run (every epoch cut to a few steps, everything else as it is) is made twice. In the second, the
labels of every set that has not been scored in its own phase yet are shuffled, from before `pretrain` on: `warm_a`
shows its labels after the cold phase is scored, `warm_b` after warm-a, `warm_c` after warm-b, `test` never. A run that
keeps to the protocol cannot tell, so every score of all four phases must be the same to the bit.

What it cannot see: code that opens the prepared files itself instead of asking `Prepared`, and users of rows that are
still to be scored (`tests/training/test_user_means.py` holds those).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwuf_dist.config import PHASES, WARM_SETS, Config, config_hash
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime, generator_seed, start
from mwuf_dist.training.results import NEXT_SETS
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.warm_up import WarmUp

# Steps of each epoch of the short pass: as many as a warm set of MovieLens-1M has.
STEPS_PER_EPOCH = 20


class HiddenLabels:
    """Shuffles the labels of the sets that are still to be scored, for everyone who asks a `Prepared` for them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._hidden = set(NEXT_SETS)

    def num_moved(self, prepared: Prepared) -> int:
        """Returns rows whose label the shuffle changes, over the four sets."""
        labels = {split: prepared.columns(split, ("label",))["label"] for split in NEXT_SETS}
        return sum(int((label != self._shuffled(split, label)).sum()) for split, label in labels.items())

    def _shuffled(self, split: str, label: np.ndarray) -> np.ndarray:
        return np.random.default_rng(generator_seed(self._seed, NEXT_SETS.index(split))).permutation(label)

    def _shuffled_events(self, label: np.ndarray, phases: np.ndarray) -> np.ndarray:
        """Returns labels of the events of histories [E]; events of the k-th warm set are of phase k."""
        label = np.array(label)
        for number, split in enumerate(WARM_SETS, 1):
            if split in self._hidden:
                label[phases == number] = self._shuffled(split, label[phases == number])
        return label

    def reveal(self, phase: int) -> None:
        """Lets the set that was scored in `phase` show its labels from here on; `test` never does."""
        self._hidden -= {NEXT_SETS[phase]} - {"test"}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Says where labels are hidden, in this process: whoever opens the data anew gets the shuffled ones too."""
        read_rows, labels = Prepared.read_rows, self

        def hidden(self: Prepared, split: str, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
            found = read_rows(self, split, start, stop, names)
            if split not in labels._hidden or "label" not in found:
                return found
            whole = read_rows(self, split, 0, self.num_rows(split), ("label",))["label"]
            return found | {"label": labels._shuffled(split, whole)[start:stop]}

        load = Histories.load

        def hidden_events(self: Histories, name: str) -> np.ndarray:
            found = load(self, name)
            return labels._shuffled_events(found, load(self, "phases")) if name == "labels" else found

        Prepared.read_rows, Histories.load = hidden, hidden_events  # the two places through which every label comes
        try:
            yield
        finally:
            Prepared.read_rows, Histories.load = read_rows, load


class _Pass(Run):
    """A run that keeps its scores and looks at no label to measure them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.session.steps_per_epoch = STEPS_PER_EPOCH
        self.labels: HiddenLabels | None = None
        self.found: dict[tuple[str, str], np.ndarray | None] = {}

    def evaluate(self, stage: WarmUp, phase: int) -> None:
        """See `Run.evaluate`."""
        self.found |= {(PHASES[phase], split): scores for split, scores in self.scores(stage, phase).items()}
        if self.labels is not None:
            self.labels.reveal(phase)


def quietly(config: Config) -> Config:
    """Makes the config of an audit's pass: no progress is shown, and no more is saved than a run needs."""
    return dataclasses.replace(
        config,
        runtime=dataclasses.replace(config.runtime, progress="off"),
        checkpoint=dataclasses.replace(config.checkpoint, every_s=0.0, keep_last=1),
    )


def audit(config: Config, folder: Path) -> dict[str, Any]:
    """Audits one run.

    Args:
        config: of the run.
        folder: for what the two passes leave, which all ranks can write to; it is removed.

    Returns:
        `passed`; `num_scores`, how many were compared; `num_labels`, how many labels the shuffle changed; `changed`,
        how many scores did by phase and set ("warm-a on test"); the run's `config_hash`.

    Raises:
        UserError: the data or config is wrong.
    """
    quiet = quietly(config)
    with start(quiet) as runtime:
        runtime.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
        prepared = prepare(quiet.data)
        labels = HiddenLabels(config.seed)
        num_labels = labels.num_moved(prepared)
        honest = _scores(quiet, folder / "honest", runtime, prepared, None)
        blind = _scores(quiet, folder / "blind", runtime, prepared, labels)
        runtime.barrier()
        runtime.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
        found: Any = runtime.broadcast(_compare(honest, blind))  # only the main rank has gathered the scores
    num_scores, changed = found
    return {
        "passed": not changed and num_labels > 0,
        "num_scores": num_scores,
        "num_labels": num_labels,
        "changed": changed,
        "config_hash": config_hash(config),
    }


def _scores(
    config: Config, folder: Path, runtime: Runtime, prepared: Prepared, labels: HiddenLabels | None
) -> dict[tuple[str, str], np.ndarray | None]:
    with labels.active() if labels is not None else contextlib.nullcontext():
        job = _Pass(config, folder, runtime, prepared)
        job.labels = labels
        with contextlib.closing(job.session.recorder):
            job.pretrain(None)
            job.meta_train()
            job.warm_up_and_evaluate()
    return job.found


def _compare(
    honest: dict[tuple[str, str], np.ndarray | None], blind: dict[tuple[str, str], np.ndarray | None]
) -> tuple[int, dict[str, int]]:
    """Gives (number of scores, how many of them differ where any does).

    Both empty on a rank that does not gather them.
    """
    num_scores, changed = 0, {}
    for (phase, split), expected in honest.items():
        found = blind[phase, split]
        if expected is None or found is None:
            continue
        num_scores += len(expected)
        num_changed = int((~((expected == found) | (np.isnan(expected) & np.isnan(found)))).sum())
        if num_changed:
            changed[f"{phase} on {split}"] = num_changed
    return num_scores, changed
