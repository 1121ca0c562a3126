"""`mwuf recommend`, from options to files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mwuf_dist.cli.studies import Executor, alone, prepare_all
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.escape import printable
from mwuf_dist.files import write_atomically, write_json
from mwuf_dist.studies import compare, recommend
from mwuf_dist.studies.records import Cell
from mwuf_dist.studies.schedule import Runner, Until


def recommend_command(
    where: str,
    config: Config,
    overridden: dict[str, Any],
    folder: Path,
    executor: Executor,
    minutes: float,
    methods: Sequence[str],
) -> int:
    """`mwuf recommend`.

    Args:
        where: path of the config file.
        config: of the file, with what the command line sets.
        overridden: the keys that the command line sets.
        folder: of the output.
        executor: where runs are done.
        minutes: the time budget.
        methods: to try; empty: those that are cheap.

    Returns:
        The exit code: 1 where time was too short for any answer.
    """
    executor.check()
    if executor.num_ranks > 1:
        raise UserError("mwuf recommend decides by the clock, so one process does it: start it without torchrun")
    left_s = recommend.clock(minutes)
    found = recommend.candidates(config, methods)
    show = os.isatty(2)
    played = prepare(replace(config.data, old_items_as_new=True), show).num_new_items
    share_of_new = played / prepare(config.data, show).num_new_items
    actions = compare.Actions(executor.train, executor.pretrain)

    @contextlib.contextmanager
    def choose_runner(configs: Sequence[Config]) -> Iterator[Runner]:
        with executor.runner(configs) as runner:
            yield Until(runner, left_s)

    def do(configs: Sequence[Config]) -> Mapping[str, tuple[Cell, Path]]:
        prepare_all(configs, executor, folder)
        outcome = compare.compare(configs, folder, actions, choose_runner, executor.say)
        return {path.name: (cell, path) for cell, path in outcome.finished}

    search = recommend.Search(config, found, share_of_new, where, do, left_s, executor.say)
    with alone(folder, "recommend", executor):
        best = search.run()
        if best is None:
            print(f"the time was up before a method and the alternative were tried; the same command goes on: {folder}")
            return 1
        summary = recommend.summarise(search, best)
        write_json(folder / "recommend.json", summary)
        chosen = folder / f"{Path(where).stem}-recommended.toml"
        write_atomically(chosen, recommend.config_toml(summary, Path(where), overridden, folder))
    print(printable(recommend.table(summary)))
    print(f"to deploy it: mwuf run {chosen}")
    return 0
