"""The view of an item says how its score, its neighbours and its served rows moved, and a browser shows it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist import cli
from mwuf_dist.config import PHASES, UserError
from mwuf_dist.evaluation.html import html
from mwuf_dist.evaluation.item_page import item_page, item_section
from mwuf_dist.evaluation.item_plot import ItemView, plot_item
from mwuf_dist.evaluation.report import build_comparison
from mwuf_dist.runtime import start
from mwuf_dist.serving.explain import Explanation, explain
from mwuf_dist.serving.finished_run import FinishedRun, load_run, open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm import follow as follow_module
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.retire import Retiring
from mwuf_dist.serving.warm.sources import FolderSource
from mwuf_dist.serving.warm.sources import folder as folder_module
from tests.bounds import assert_float32_close, near
from tests.browser import chromium
from tests.evaluation.results import two_methods

CLICKS = (9, 5, 12)  # of the item in each file


@pytest.fixture(scope="module")
def live(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that three files have been followed into, all with clicks on the run's last item and on a new one."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "clicks").mkdir()
    with open_run(run_folder) as run:
        users, item = run.user_ids.to_numpy(), run.item_ids[run.num_items - 1].as_py()
    random, first = np.random.default_rng(2), 10**9
    for number, num in enumerate(CLICKS):
        rows = {"user_id": random.choice(users, num + 3), "item_id": [item] * num + [10**6] * 3}
        rows |= {"label": random.integers(2, size=num + 3), "timestamp": first + np.arange(num + 3)}
        path = folder / "clicks" / f"{number}.parquet"
        pq.write_table(pa.table(rows), path)
        os.utime(path, ns=(10**18 + number,) * 2)
        first += 100
    with pytest.MonkeyPatch.context() as patch, start(read_run(run_folder)[0]) as runtime:
        patch.setattr(folder_module, "_BATCH_BYTES", 1)
        source = FolderSource(folder / "clicks")
        follow_module.follow(run_folder, source, folder / "live", runtime, until_idle=True)
    return folder / "live"


@pytest.fixture(scope="module")
def found(live: Path) -> Explanation:
    with open_run(live) as run:
        return explain(run, run.item_ids[run.state.num_run_items - 1].as_py() if run.state else 0)


def test_each_delta_of_an_item_is_shown_with_the_score_that_a_server_had_after_it(
    found: Explanation, live: Path
) -> None:
    assert [one.number for one in found.applied] == [1, 2, 3]
    assert [one.interactions for one in found.applied] == (24 + np.cumsum(CLICKS)).tolist()
    # Clicks came in the order of their time, so what was served then is the score after so many of them.
    served = {point.clicks: point.score for point in found.history if point.phase == "served"}
    matched = [one for one in found.applied if one.interactions - 24 in served]
    assert found.applied[-1] in matched
    for one in matched:
        assert one.score == near(served[one.interactions - 24], num_terms=100)
    with open_run(live) as run:
        assert run.state is not None
        unseen = explain(run, 10**6)
    assert [one.interactions for one in unseen.applied] == [3, 6, 9]


def test_neighbours_at_each_moment_are_the_nearest_by_cosine_then(found: Explanation, live: Path) -> None:
    moving = found.moving
    assert moving is not None and [found.history[moment].phase for moment in moving.moments].count("cold") == 1
    ends = {phase: max(i for i, p in enumerate(found.history) if p.phase == phase) for phase in (*PHASES, "served")}
    assert set(ends.values()) <= set(moving.moments)
    with open_run(live) as run:
        old = run.embeddings(torch.arange(run.num_old_items)).double().numpy()
        ids = run.item_ids.to_pylist()
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    for row, moment in enumerate(moving.moments):
        ours = found.history[moment].embedding.astype(np.float64)
        cosine = old @ ours / np.linalg.norm(ours)
        best = np.argsort(-cosine, kind="stable")[:5]
        assert [one for one, _ in moving.nearest[row]] == [ids[index] for index in best]
        places = [ids.index(one) for one in moving.item_ids]
        assert_float32_close(moving.cosine[row], cosine[places].tolist(), num_terms=100, size=1.0)
    now = found.nearest[:5]  # the last moment is now; products of several rows may round otherwise
    assert [one for one, _ in moving.nearest[-1]] == [one for one, _ in now]
    first, last = ([one for one, _ in moving.nearest[place]] for place in (0, -1))
    assert set(moving.item_ids) == {*first, *last}


def test_deltas_of_earlier_jobs_are_named_and_those_of_another_run_are_refused(
    run_folder: Path, live: Path, tmp_path: Path
) -> None:
    with start(read_run(run_folder)[0]) as runtime:
        run = load_run(run_folder, runtime)
        item = run.item_ids[run.num_items - 1].as_py()
        clicks = live.parent / "clicks"
        warm(run_folder, clicks / "0.parquet", tmp_path / "monday", runtime)
        (tmp_path / "gone.csv").write_text(f"item_id\n{item}\n")
        retiring = Retiring(tmp_path / "gone.csv", None)
        warm(tmp_path / "monday", None, tmp_path / "tuesday", runtime, retiring=retiring)
        pq.write_table(
            pa.table(
                {"user_id": run.user_ids[:2], "item_id": [item] * 2, "label": [1, 0], "timestamp": [2 * 10**9] * 2}
            ),
            tmp_path / "back.parquet",
        )
        warm(tmp_path / "tuesday", tmp_path / "back.parquet", tmp_path / "wednesday", runtime)
        run = load_run(tmp_path / "wednesday", runtime)
        assert [one.number for one in explain(run, item).applied] == [3]
        told = explain(run, item, deltas=[tmp_path / "monday", tmp_path / "tuesday"])
        assert [(one.number, one.interactions, one.score is None) for one in told.applied] == [
            (1, 24 + CLICKS[0], False),
            (2, 0, True),
            (3, 2, False),
        ]
        assert "delta 2  retired" in told.text()
        other = next((live / "deltas").iterdir()).read_bytes()
        (tmp_path / "x.delta").write_bytes(other[:-9] + b"xxxxx" + other[-4:])
        with pytest.raises(UserError, match="damaged"):
            explain(run, item, deltas=[tmp_path / "x.delta"])


def test_a_browser_shows_the_page_and_the_report_without_a_request_or_a_complaint(
    found: Explanation, live: Path, tmp_path: Path
) -> None:
    with open_run(live) as run:
        item = found.item_id
        nothing = Explanation("<b>&\"'$x_1$" + "long " * 40, "old", 0, {}, None, None, [("<i>$y^2$", 0.5)])
        assert isinstance(run, FinishedRun)
    views = {"moved": found.view(), "hostile": nothing.view(), "empty": ItemView("nothing")}
    pages = {}
    for name, view in views.items():
        plot_item(view, tmp_path / f"{name}.png")
        pages[name] = tmp_path / f"{name}.html"
        pages[name].write_text(item_page(view, tmp_path / f"{name}.png"))
    section = item_section(found.view(), tmp_path / "moved.png")
    pages["report"] = tmp_path / "report.html"
    pages["report"].write_text(html(build_comparison(two_methods(2)), [], [section]))
    profile = tmp_path / "profile"
    profile.mkdir()
    with chromium(profile) as browser:
        shown = {}
        for name, path in pages.items():
            for width in (1280, 390):
                browser.open(path, width)
                assert browser.value("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width}"
            sizes = browser.value("[...document.images].map(one => [one.naturalWidth, one.width])")
            assert len(sizes) == 1 and sizes[0][0] > 500 and sizes[0][1] > 200, name
            shown[name] = browser.value("document.body.innerText")
        assert not browser.complaints
        allowed = ("data:image/png;base64,", *(path.as_uri() for path in pages.values()))
        assert all(url.startswith(allowed) for url in browser.requested), browser.requested
    for name in ("moved", "report"):
        said = " ".join(shown[name].split())
        assert f"item {item}" in said and "delta 3 50" in said and "Nearest old items at the end of each phase" in said
        for phase in (*PHASES, "served"):
            point = [point for point in found.history if point.phase == phase][-1]
            assert f"{phase} {point.clicks}" in said and f"{point.score:.4f}" in said
    assert "AUC" in shown["report"] and "<b>&\"'$x_1$" in shown["hostile"]


def test_command_writes_the_page_beside_the_picture(live: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(live), "--item", "1000000", "--output", str(tmp_path / "one.png")])
    said = capsys.readouterr().out
    assert end.value.code == 0 and "delta 3  9 interactions: 0." in said
    assert f"page: {tmp_path / 'one.html'}" in said and "item 1000000" in (tmp_path / "one.html").read_text()
