"""Errors that a script does not catch: those of its input are told, all others are shown as Python shows them."""

from __future__ import annotations

import sys

import pytest

from mwuf_dist.config import UserError, build
from mwuf_dist.runtime import start
from mwuf_dist.runtime.uncaught import tell_user_errors


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Errors that were shown as before."""
    found: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: found.append(error))
    return found


def uncaught(error: BaseException) -> None:
    """Does what Python does with an error that nobody catches."""
    try:
        raise error
    except BaseException as caught:
        sys.excepthook(type(caught), caught, caught.__traceback__)


def test_a_user_error_is_told_with_the_line_and_any_other_is_shown_as_before(
    shown: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    tell_user_errors()
    tell_user_errors()
    with pytest.raises(SystemExit) as end:
        uncaught(UserError("no item '\x1b[31m'"))
    assert end.value.code == 2 and not shown
    told = capsys.readouterr().err
    assert told.startswith(f"mwuf: {__file__}:") and told.endswith(": no item '\\x1b[31m'\n")
    other = ZeroDivisionError("a mistake of ours")
    uncaught(other)
    assert shown == [other]


def test_one_process_shows_errors_without_a_rank_before_each_line(
    shown: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with start(build({})):
        other = ZeroDivisionError()
        uncaught(other)
    assert shown == [other] and not capsys.readouterr().err
