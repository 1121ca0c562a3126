"""An explanation says of an item what the run knows, and nothing that a leak would have to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist import cli
from mwuf_dist.config import PHASES, UserError
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.run_folder import FinishedRun, open_run
from tests.serving.replay import replayed


def test_the_replayed_warm_up_ends_at_the_row_and_the_score_of_the_run(run: FinishedRun) -> None:
    found = replayed(run)
    rows, epochs = run.config.data.warm_rows, run.config.warm_up.epochs
    for phase in PHASES[1:]:
        clicks = [point.clicks for point in found.history if point.phase == phase]
        assert clicks == sorted(clicks) and clicks[-1] == rows * epochs
    assert [point.phase for point in found.history].count("cold") == 1


def test_scale_shift_and_neighbours_are_those_of_the_embedding(run: FinishedRun) -> None:
    index = run.num_items - 1
    found = explain(run, run.item_ids[index].as_py(), num_nearest=4)
    assert found.phase == "warm-c" and found.interactions == 3 * run.config.data.warm_rows
    assert found.scale is not None and found.shift is not None
    cold = run.model.new_ids.shards("new")[0].weight[index].detach().numpy()
    warm = run.warm_embeddings(torch.tensor([index]))[0].numpy()
    np.testing.assert_allclose(cold * found.scale + found.shift, warm, rtol=1e-5, atol=1e-6)
    old = run.model.old_ids.shards("old")[0].weight.detach().double().numpy()
    cosine = old @ warm / np.linalg.norm(old, axis=1) / np.linalg.norm(warm)
    best = np.argsort(-cosine)[:4]
    assert [item_id for item_id, _ in found.nearest] == [run.item_ids[int(place)].as_py() for place in best]
    np.testing.assert_allclose([value for _, value in found.nearest], cosine[best], rtol=1e-5)


def test_an_old_item_has_neighbours_other_than_itself_and_no_history(run: FinishedRun) -> None:
    found = explain(run, run.old_item_ids[0])
    assert found.phase == "old" and found.scale is None and not found.history
    assert run.old_item_ids[0] not in [item_id for item_id, _ in found.nearest]
    with pytest.raises(UserError, match="no item"):
        explain(run, "nothing")


def test_command_prints_and_draws(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with open_run(run_folder) as run:
        item_ids = [run.new_item_ids[0], run.old_item_ids[0]]
    for item_id in item_ids:
        with pytest.raises(SystemExit) as end:
            cli.main(["explain", str(run_folder), "--item", str(item_id), "--output", str(tmp_path / "item.png")])
        assert end.value.code == 0
        assert f"item {item_id}: " in capsys.readouterr().out
        assert (tmp_path / "item.png").read_bytes().startswith(b"\x89PNG")
