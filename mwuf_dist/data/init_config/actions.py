"""What a person did, as words, names of files and names of times say it."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

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
    of_kinds: dict[str, Path] = {}
    for path in files:
        parts = names.words(" ".join(path.relative_to(top).parts))
        if set(parts) & vocabulary.NO_POSITIVE:
            of_kinds.setdefault("", path)
        elif (action := positive_action(parts)) is not None:
            of_kinds.setdefault(action, path)
    if len(of_kinds) > 1:
        shown = " and ".join(str(path.relative_to(top)) for path in list(of_kinds.values())[:2])
        raise UserError(
            f"{top}: no column says what happened, but the names of {shown} do: write it into a column of each file, "
            f"or put them into folders that are one (event=click/ and event=impression/); {instead}"
        )


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
