"""What a person did, as words, names of files and names of times say it."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config import names, vocabulary
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable

# From the rarest and most telling on: the first that is there is what counts as positive.
POSITIVE_ACTIONS = (
    ("buy", "bought", "purchase", "purchased", "transaction", "checkout", "conversion", "converted", "paid", "sale"),
    ("order", "ordered", "booking", "booked", "install", "installed", "subscribe", "subscribed"),
    ("cart", "addtocart", "add2cart", "basket"),
    ("like", "liked", "fav", "favorite", "favourite", "collect", "save", "saved", "bookmark", "wishlist", "share"),
    ("click", "clicked", "clicks", "clk", "open", "opened", "play", "played", "complete", "completed"),
)  # fmt: skip
_NO_POSITIVE = -1


def positive_action(values: Sequence[str]) -> str | None:
    """Returns the most telling positive of words of what happened, as whole words: dislike and no_click are none."""
    if len(values) > 200:
        return None
    of_value = {value: names.words(value) for value in values}
    good = {v: parts for v, parts in of_value.items() if not set(parts) & vocabulary.NEGATIONS}
    for kinds in POSITIVE_ACTIONS:
        found = [value for value, parts in good.items() if {*parts, *(part.rstrip("s") for part in parts)} & set(kinds)]
        if found:
            return min(found, key=lambda value: (len(of_value[value]), value))
    return None


def refuse_names_of_files(files: Sequence[Path], instead: str) -> None:
    """Refuses to take every row as a positive where the files' own names say that different things happened.

    Args:
        files: of the log.
        instead: what else a person can do, for the message.

    Raises:
        UserError: clicks.csv lies beside impressions.csv.
    """
    top = Path(os.path.commonpath([path.parent for path in files]))
    of_kinds: dict[frozenset[int], Path] = {}
    for path in files:
        parts = path.relative_to(top).parts
        if kinds := frozenset().union(*(_kinds(names.words(part)) for part in parts)):
            of_kinds.setdefault(kinds, path)
    for (kinds, one), (others, other) in itertools.combinations(of_kinds.items(), 2):
        if not kinds & others:
            raise UserError(
                f"{top}: no column says what happened, but the names of {one.relative_to(top)} and "
                f"{other.relative_to(top)} do: write it into a column of each file, or put them into folders that are "
                f"one (event=click/ and event=impression/); {instead}"
            )


def _kinds(parts: Sequence[str]) -> set[int]:
    """Returns the kinds of POSITIVE_ACTIONS that a file's name speaks of, or that of all that is no positive.

    Orders are purchases here, and a word counts only as an event: orders_no.csv comes from Norway.
    """
    found, is_shown = set(), False
    for before, word in itertools.pairwise(["", *(one for one in parts if one not in ("from", "to"))]):
        forms = {word, word.rstrip("s")}
        kind = next((place for place, known in enumerate(POSITIVE_ACTIONS) if forms & set(known)), None)
        is_none = before in vocabulary.NOT
        if (forms & vocabulary.TAKEN_BACK and not is_none) or (
            kind is not None and (is_none or before in vocabulary.REMOVED)
        ):
            return {_NO_POSITIVE}
        if kind is not None:
            found.add(max(kind, 1))
        is_shown |= bool(forms & vocabulary.SHOWN) and not is_none
    return found or ({_NO_POSITIVE} if is_shown else set())


def refuse_times_of_label(table: LogTable, changing: Sequence[str]) -> None:
    """Refuses to take every row as a positive where a column says when some of them became one (`clicked_at`)."""
    for name in changing:
        of_label = [one for one in names.words(name) if names.label_score(one)]
        column = table.columns[name]
        if not of_label or names.label_score(name) or names.words(name)[-1] not in vocabulary.TIMES_OF_LABEL:
            continue
        has = column.is_valid().to_numpy() & (codes(column)[0] != _place_of_zero(column))
        if 0 < has.mean() < 1:
            raise UserError(
                f"{table.files[0]}: column {name!r} holds a time in {int(has.sum()):,} of {len(has):,} rows and none "
                "in the others, which looks like the label: write a column of 1 and 0 for it; --label names another "
                "column, --label none takes every row as a positive"
            )


def _place_of_zero(column: pa.ChunkedArray) -> int:
    values = codes(column)[1]
    return -1 if pa.types.is_timestamp(values.type) else pc.index(text_of(values), "0").as_py()
