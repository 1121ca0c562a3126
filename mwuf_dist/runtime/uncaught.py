"""How a script of one process ends on an error that it does not catch."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mwuf_dist.config import UserError
from mwuf_dist.escape import printable

_EXIT_CODE = 2  # of a command that is given wrong input
# What stands between a script and the line that raised: this package, and what wraps its functions.
_BETWEEN = (str(Path(__file__).parents[1]), str(Path(contextlib.__file__)))


def tell_user_errors() -> None:
    """Makes a `UserError` that nobody catches end the process as it ends a command: a message, and exit code 2.

    The message begins with the script's own line. Any other error is shown as before.
    """
    shown_before = sys.excepthook
    if isinstance(shown_before, _Hook):
        return
    sys.excepthook = _Hook(shown_before)


@contextlib.contextmanager
def same_excepthook() -> Iterator[None]:
    """Undoes what a call does to the way in which errors are shown.

    PyTorch puts the rank before each line when it makes a process group, once more for each group; of one process
    that says nothing.
    """
    before = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = before


class _Hook:
    """Shows errors that are not caught."""

    def __init__(self, others: object) -> None:
        self._others = others

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """See `sys.excepthook`."""
        if not isinstance(error, UserError):
            assert callable(self._others)
            self._others(kind, error, trace)
            return
        theirs = [one for one in traceback.extract_tb(trace) if not _is_between(one.filename)]
        where = f"{theirs[-1].filename}:{theirs[-1].lineno}: " if theirs else ""
        print(f"mwuf: {printable(where + str(error))}", file=sys.stderr)
        raise SystemExit(_EXIT_CODE)


def _is_between(path: str) -> bool:
    return path.startswith(_BETWEEN) or "/torch/" in path
