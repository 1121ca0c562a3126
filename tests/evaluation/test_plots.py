import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.comparison import build_comparison
from mwuf_dist.evaluation.plots import _row_styles, plot_clicks, plot_phases, plot_run, plot_speed, spread_apart
from mwuf_dist.evaluation.published import ROWS
from tests.evaluation.results import make_result, two_methods, with_clicks

_HEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted)


def _pixels(path):
    """The picture, [height, width, channels] in 0..1."""
    return imread(io.BytesIO(path.read_bytes()), format="png")


def _has_colour(picture, colour):
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return bool((np.abs(picture[:, :, :3] - wanted).max(axis=2) < 0.01).any())


@given(_HEIGHTS, st.floats(0.001, 0.3))
def test_names_stand_apart_in_order_around_where_they_belong(heights, gap):
    spread = spread_apart(heights, gap)
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(spread))
    assert np.mean(spread) == pytest.approx(np.mean(heights), abs=1e-9)


@given(_HEIGHTS)
def test_names_that_are_apart_already_stay_where_they_are(heights):
    gap = min(np.diff(heights), default=1.0) * 0.99
    assert spread_apart(heights, gap) == pytest.approx(heights, abs=1e-9)


def test_names_move_no_further_than_they_must():
    assert spread_apart([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])


def test_band_shows_the_spread_over_seeds_and_a_single_seed_has_none(tmp_path):
    """A band is a pale area of its line's colour: the share of such pixels tells it from antialiasing."""
    shares = {}
    for num_seeds in (1, 5):
        plot_phases(build_comparison(two_methods(num_seeds)), tmp_path / "phases.png")
        band = np.array([0, 0x72, 0xB2]) / 255 * 0.16 + 0.84  # the first colour at the band's opacity on white
        shares[num_seeds] = (np.abs(_pixels(tmp_path / "phases.png")[:, :, :3] - band).max(axis=2) < 0.02).mean()
    assert shares[5] > 20 * shares[1]


def test_rows_are_drawn_in_colours_of_their_own(tmp_path):
    plot_phases(build_comparison(two_methods()), tmp_path / "phases.png")
    picture = _pixels(tmp_path / "phases.png")
    assert _has_colour(picture, "#0072B2") and _has_colour(picture, "#D55E00")
    assert not _has_colour(picture, "#009E73")


def test_one_row_and_missing_numbers_still_give_pictures(tmp_path):
    result = make_result("wide_deep", "mwuf", 0, [0.6] * 4, dataset="movielens-1m")
    result["phases"]["warm-c"] = {}
    result["phases"]["cold"]["auc_test"] = float("nan")
    result["stages"] = {}
    comparison = build_comparison([result])
    for plot in (plot_phases, plot_speed):
        plot(comparison, tmp_path / "picture.png")
        assert _pixels(tmp_path / "picture.png").std() > 0


def test_run_has_a_panel_per_trained_stage_and_one_of_auc(tmp_path):
    result = two_methods(1)[1]
    rows = [{"stage": "pretrain", "step": step, "samples": 10 * step, "loss": 1 / (step + 1)} for step in range(200)]
    rows += [{"stage": "meta_train", "samples": n, "loss_cold": 0.7, "loss_warm": 0.6} for n in range(10)]
    rows += [{"stage": "warm_up", "phase": phase, "samples": 1, "loss": 0.5} for phase in PHASES[1:]]
    rows += [{"stage": "evaluate", "phase": "cold", "seconds": 1.0}]
    plot_run(rows, result, tmp_path / "all.png")
    plot_run(rows[:200], result, tmp_path / "pretrain.png")
    plot_run([], result, tmp_path / "none.png")
    widths = [_pixels(tmp_path / f"{name}.png").shape[1] for name in ("none", "pretrain", "all")]
    assert widths[1:] == pytest.approx([2 * widths[0], 4 * widths[0]], abs=4)


@pytest.mark.parametrize("num_methods", [1, 12])
def test_clicks_are_drawn_for_the_rows_that_have_them(num_methods, tmp_path):
    results = []
    for index in range(num_methods):
        result = with_clicks(make_result("wide_deep", f"method{index}", 0, [0.6 + index / 100] * 4), warm_rows=20)
        results.append(result)
    comparison = build_comparison([*results, make_result("wide_deep", "without", 0, [0.6] * 4)])
    plot_clicks(comparison, tmp_path / "clicks.png")
    picture = _pixels(tmp_path / "clicks.png")
    assert _has_colour(picture, "#0072B2") and _has_colour(picture, "#009E73") == (num_methods == 12)


def test_methods_of_one_backbone_among_several_are_told_apart_by_their_lines():
    rows = [{"backbone": b, "method": m, "variant": ""} for b, m in ROWS]
    styles = _row_styles(rows)
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == len(rows)


def test_plots_touch_no_global_state_of_matplotlib():
    code = "import sys, mwuf_dist.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
