"""Why a file has no column of a name: it is written in another way, its first line is data, another sign divides it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from mwuf_dist.config import UserError


def absent(path: Path, there: Sequence[str], name: str, what: str, other: Path | None) -> UserError:
    """Makes the error of a file of a table (`LogTable.what`) that lacks a column which `other` beside it has."""
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]
    unlike = f"; it is unlike {other.name} beside it: if it is no part of the log, move it away" if other else ""
    return UserError(
        f"{path}: no column {name!r}; did you mean {otherwise_written(there, name) or near!r}? Its columns: "
        f"{', '.join(there)[:300]}{'' if looks_like_data(there) else unlike}{why_no_names(there, what, other)}"
    )


def otherwise_written(there: Sequence[str], name: str) -> str:
    """Finds the column that has the same name in another letter case; empty: there is none."""
    return next((one for one in there if one.lower() == name.lower()), "")


def why_no_names(there: Sequence[str], what: str, other: Path | None = None) -> str:
    """Says why the names of a file of a table (`LogTable.what`) may be none; empty where nothing speaks for it."""
    if looks_like_data(there):
        return "; its first line looks like data: write a line of names above it" + (
            f", as {other.name} beside it has" if other else " (or give names: data.logs.header, --header)"
        )
    return _of_other_delimiter(there, what)


def looks_like_data(names: Sequence[str]) -> bool:
    """Says whether a line that should be names has two numbers or more."""
    return sum(one.replace(".", "", 1).lstrip("-").isdecimal() for one in names) >= 2


def sign_between(there: Sequence[str]) -> str:
    """Finds what stands between two columns where one name looks like several; empty: it does not."""
    return next((sign for sign in (";", "\t", "|", "::", ",") if len(there) == 1 and sign in there[0]), "")


def _of_other_delimiter(there: Sequence[str], what: str) -> str:
    """Says that one name looks like several with another sign between them."""
    if not (sign := sign_between(there)):
        return ""
    said = "tab" if sign == "\t" else repr(sign)
    key, option = "data.logs.delimiter", f"--delimiter {said}"
    if what in ("users", "items"):
        key, option = f"data.logs.{what}_form.delimiter", f"--{what}-delimiter {said} of `mwuf init`"
    return f"; is {sign!r} what stands between two columns? Say it with {key}, on the command line {option}"
