"""An explanation says of an item what the run knows, and nothing that a leak would have to tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist import cli
from mwuf_dist.config import PHASES, UserError
from mwuf_dist.serving.explain import Explanation, Point, explain
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from tests.bounds import assert_float32_close
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
    assert_float32_close(
        cold * found.scale + found.shift, warm, num_terms=100
    )  # inputs and hidden units of the networks
    old = run.model.old_ids.shards("old")[0].weight.detach().double().numpy()
    cosine = old @ warm / np.linalg.norm(old, axis=1) / np.linalg.norm(warm)
    best = np.argsort(-cosine)[:4]
    assert [item_id for item_id, _ in found.nearest] == [run.item_ids[int(place)].as_py() for place in best]
    assert_float32_close(
        [value for _, value in found.nearest], cosine[best].tolist(), num_terms=3 * len(warm), size=1.0
    )


def test_an_old_item_has_neighbours_other_than_itself_and_no_history(run: FinishedRun) -> None:
    found = explain(run, run.old_item_ids[0])
    assert found.phase == "old" and found.scale is None and not found.history
    assert run.old_item_ids[0] not in [item_id for item_id, _ in found.nearest]
    with pytest.raises(UserError, match="no item"):
        explain(run, "nothing")


def scores_in(text: str) -> dict[str, list[tuple[int, float]]]:
    """(clicks, score) of each phase that a text of an explanation prints."""
    found = {}
    for line in text.splitlines():
        phase, _, scores = line.strip().partition("  ")
        if re.match(r"\s*\d+: 0\.\d{4}", scores):
            pairs = [score.split(": ") for score in scores.strip().split("  ")]
            found[phase] = [(int(clicks), float(score)) for clicks, score in pairs]
    return found


def test_a_dozen_scores_of_a_phase_are_printed_its_ends_among_them_and_with_all_every_one() -> None:
    history = [Point("cold", 0, 0.5)]
    history += [Point("warm-a", click + 1, (500 - click) / 1000) for click in range(100)]
    history += [Point("warm-b", click + 1, (400 + click) / 1000) for click in range(12)]
    found = Explanation(7, "warm-b", 112, {}, None, None, [], history)
    whole = {phase: [(p.clicks, p.score) for p in history if p.phase == phase] for phase in PHASES[:3]}
    assert scores_in(found.text(every_step=True)) == whole
    printed = scores_in(found.text())
    assert printed["cold"] == whole["cold"] and printed["warm-b"] == whole["warm-b"]
    some = printed["warm-a"]
    assert len(some) <= 12 and set(some) <= set(whole["warm-a"])
    assert some[0] == whole["warm-a"][0] and some[-1] == whole["warm-a"][-1]
    gaps = np.diff([clicks for clicks, _ in some])
    assert (gaps > 0).all() and gaps[0] < gaps[-1]  # denser at the beginning


def test_command_prints_and_draws(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with open_run(run_folder) as run:
        item_ids = [run.new_item_ids[0], run.old_item_ids[0]]
    for item_id in item_ids:
        with pytest.raises(SystemExit) as end:
            cli.main(["explain", str(run_folder), "--item", str(item_id), "--output", str(tmp_path / "item.png")])
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert f"item {item_id}: " in out and all(len(scores) <= 12 for scores in scores_in(out).values())
        assert (tmp_path / "item.png").read_bytes().startswith(b"\x89PNG")
    # What --all adds is the scores left out, and nothing else changes.
    with pytest.raises(SystemExit):
        cli.main(["explain", str(run_folder), "--item", str(item_ids[0]), "--output", str(tmp_path / "a.png"), "--all"])
    every = scores_in(capsys.readouterr().out)
    with open_run(run_folder) as run:
        history = explain(run, item_ids[0]).history
    assert {phase: [clicks for clicks, _ in scores] for phase, scores in every.items()} == {
        phase: [point.clicks for point in history if point.phase == phase] for phase in PHASES
    }
    assert max(map(len, every.values())) > 12


def test_a_user_of_the_run_has_neighbours_and_no_history(run: FinishedRun) -> None:
    found = explain(run, run.user_ids[3].as_py(), side="user")
    seen = [run.prepared.columns(split, ("user", "label")) for split in ("pretrain", "warm_a", "warm_b", "warm_c")]
    labels = [part["label"][part["user"] == 3] for part in seen]
    assert found.interactions == sum(map(len, labels)) > 0 and found.phase == "of the run" and not found.history
    assert list(found.positives.values()) == [float(one.mean()) for one in labels if len(one)]
    assert len(found.nearest) == 10 and run.user_ids[3].as_py() not in [one for one, _ in found.nearest]


def test_command_takes_an_item_or_a_user(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with open_run(run_folder) as run:
        user = run.user_ids[3].as_py()
    picture = tmp_path / "user.png"
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(run_folder), "--user", str(user), "--output", str(picture)])
    assert end.value.code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert f"user {user}: of the run" in out and "nearest users of the run" in out
    for wrong in ([], ["--item", "1", "--user", "2"], ["--user", "nobody"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["explain", str(run_folder), *wrong])
        said = capsys.readouterr().err
        assert end.value.code == 2 and ("no user 'nobody'" if "nobody" in wrong else "name an item with") in said
