"""Hostile names, as they are shown."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mwuf_dist import escape
from mwuf_dist.evaluation.item_plot import ItemView, plot_item

NAMES = [
    "a\n| b | c |", "[click](javascript:alert(1))", "![x](http://evil/x.png)", "<script>alert(1)</script>",
    "`x` *y* _z_",
    "# heading", "- list", "1. list", "http://evil.example", "$\\frac{$", "\\input{/etc/passwd}", "a & b % c",
    "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe", "\x9b31m", "a\rb", "~~gone~~", "&lt;",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_without_control_characters(name: str) -> None:
    for shown in (escape.one_line(name), escape.markdown(name), escape.latex(name)):
        assert ("\n" not in shown and shown.isprintable()) or "\u200b" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", escape.printable(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_sign_of_markup_stands_unescaped(name: str) -> None:
    assert not re.search(r"(?<!\\)(?:\\\\)*[*_`|<>\[\]$]", escape.markdown(name).replace("\\\\", ""))
    assert not re.match(r"[-+=#]|\d+[.)]", escape.markdown(name))
    bare = escape.latex(name)
    for known in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", "$<$", "$>$", "$-$"):
        bare = bare.replace(known, "")
    assert not re.search(r"(?<!\\)[&%$#_{}~^]|\\[a-zA-Z]", bare)


def test_a_picture_takes_a_name_that_is_half_a_formula(tmp_path: Path) -> None:
    view = ItemView(
        "item $\\frac{$",
        history=[("cold", 0, 0.5), ("warm-a", 3, 0.6)],
        nearest=[("$x_{$", 0.9)],
        moments=[0, 1],
        neighbours=["$x_{$", "\\frac{$"],
        cosine=np.array([[0.5, 0.1], [0.9, 0.2]]),
    )
    plot_item(view, tmp_path / "item.png")
    assert (tmp_path / "item.png").stat().st_size > 1000
