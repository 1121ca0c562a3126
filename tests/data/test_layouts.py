"""What `mwuf init` makes of the column layouts of public data sets: right, or asked for, and never wrong in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config.propose import Proposal, propose
from tests.data.column_layouts import Layout, layouts, write_rows

ALL = layouts()
# Questions where an answer would be right: of a hundred layouts five may be asked for.
MOST_ASKED = 0.05


def outcome(layout: Layout, folder: Path) -> tuple[str, str]:
    """`right`, `asked` or `wrong`, and why."""
    write_rows(layout, folder / "log.csv")
    try:
        found = propose(str(folder / "log.csv"))
    except UserError as error:
        options = ("--user", "--item", "--time", "--label", "--header", "--label-is", "--label-at-least")
        named = [one for one in options if one in str(error)]
        if layout.asked:
            return ("right" if layout.asked in named else "wrong"), str(error)
        return ("asked" if named else "wrong"), str(error)
    if layout.asked:
        return "wrong", f"not asked: {found.options}"
    different = "; ".join(_differences(layout, found))
    return ("wrong" if different else "right"), different


def _differences(layout: Layout, found: Proposal) -> list[str]:
    options = found.options
    wanted = {"user": layout.named("user"), "item": layout.named("item"), "time": layout.named("time")}
    wrong = [
        f"{key} is {getattr(options, key)!r}, not {name!r}"
        for key, name in wanted.items()
        if getattr(options, key) != name
    ]
    label, positive = layout.named("label"), ""
    for one in layout.columns:
        if one.role.startswith("label="):
            positive = one.role.removeprefix("label=")
    if (options.label or options.label_from) != label:
        wrong.append(f"label is {options.label or options.label_from!r}, not {label!r}")
    if positive and options.label_is != (positive,):
        wrong.append(f"positive is {options.label_is}, not {positive!r}")
    sides = {one.column or one.name: one.side for one in options.fields}
    for one in layout.columns:
        side = {"uf": "user", "if": "item", "rf": "row", "out": None}.get(one.role, sides.get(one.name))
        if sides.get(one.name) != side:
            wrong.append(f"{one.name} is a feature of {sides.get(one.name)}, not of {side}")
    return wrong


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What has come of each layout."""
    folder = tmp_path_factory.mktemp("layouts")
    return {layout.name: outcome(layout, folder) for layout in ALL}


def test_no_layout_is_wrong_in_silence(outcomes: dict[str, tuple[str, str]]) -> None:
    assert len(outcomes) == len(ALL) >= 60
    wrong = {name: why for name, (found, why) in outcomes.items() if found == "wrong"}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())


def test_few_layouts_are_asked_for_that_have_an_answer(outcomes: dict[str, tuple[str, str]]) -> None:
    asked = [name for name, (found, _) in outcomes.items() if found == "asked"]
    assert len(asked) <= MOST_ASKED * len(ALL), asked


def test_the_collection_tells_a_wrong_answer(tmp_path: Path) -> None:
    """A layout with two roles exchanged is not what is found."""
    right = next(layout for layout in ALL if layout.name == "MovieLens latest")
    roles = {"user": "item", "item": "user"}
    columns = tuple(replace(one, role=roles.get(one.role, one.role)) for one in right.columns)
    assert outcome(replace(right, columns=columns), tmp_path)[0] == "wrong"
