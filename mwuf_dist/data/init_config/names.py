"""What names of columns say: whole words, camel case split, and the words around the one that tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mwuf_dist.config import UserError
from mwuf_dist.data.init_config import vocabulary


def words(name: str) -> list[str]:
    """Returns the words of a name in small letters: userId, USER_ID and "User ID" are user, id."""
    name = re.sub(r":(token|float)(_seq)?$", "", name)  # RecBole's type
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    split = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", split)
    return re.findall(r"[a-z]+|[0-9]+", split.lower())


def entity_score(name: str, wanted: Sequence[str]) -> int:
    """Says how surely a column holds IDs of one of the wanted kinds; 0: it does not.

    A name is an ID's when it is the word, or the word and one for IDs (`movie_id`), perhaps behind others; a name that
    goes on with another word (`user_agent`, `item_price`) is an attribute's. A name or title is the last resort.
    """
    parts = words(name)
    for place, word in enumerate(wanted):
        for one in (word, f"{word}s"):
            rank = 100 - place
            glued = [one + tail for tail in ("id", "no", "code", "key", "hash")]
            if parts and parts[-1] in glued:
                return 300 + rank if len(parts) == 1 else 200 + rank
            if one not in parts:
                continue
            at = len(parts) - 1 - parts[::-1].index(one)
            before, after = parts[:at], parts[at + 1 :]
            if word in vocabulary.NUMBERED:
                after = [part for part in after if not part.isdecimal()]
            if after and set(after) <= vocabulary.NAMES:
                return rank
            if len(after) > 1:
                after = [part for part in after if part not in vocabulary.WORDS_BEFORE_ID]
            if after and not set(after) <= vocabulary.ID_WORDS:
                continue
            if not set(before) - vocabulary.PREFIXES:
                return (400 if after else 300) + rank
            return (200 if after else 100) + rank
    if (
        wanted is vocabulary.ITEM
        and len(parts) > 1
        and parts[-2] in vocabulary.ITEM_BY_ID
        and parts[-1] in vocabulary.ID_WORDS
    ):
        return 150
    return 0


def time_score(name: str) -> int:
    """Says how surely a column is the time of the event by its name; 0: it is not."""
    parts = words(name)
    if set(parts) & vocabulary.NOT_A_TIME:
        return 0
    for known in ("_".join(parts), "_".join(part for part in parts if part not in vocabulary.UNITS)):
        for place, word in enumerate(vocabulary.TIME):
            if known in (word, word.replace("_", "")) or known.replace("_", "") == word:
                return 300 - place
        if known in vocabulary.ALONE:
            return 250
    joined = "_".join(parts)
    for place, word in enumerate(vocabulary.TIME):
        if word in parts or f"_{word}_" in f"_{joined}_" or any(part in (f"{word}s", f"event{word}") for part in parts):
            return 200 - place
    return 0


def is_part_of_a_date(name: str, others: Sequence[str]) -> bool:
    """Says whether a column is the day, month, ... of a time that stands in several columns."""
    last = words(name)[-1:]
    there = {parts[-1] for one in others if (parts := words(one))}
    return (
        bool(last)
        and last[0] in ("year", "month", "day", "hour", "minute", "second")
        and {"year", "month", "day"} <= there
    )


def label_score(name: str) -> int:
    """Says how surely a column says whether the row is a positive; 0: it does not.

    The word for it stands at the end: `is_click` is one, `click_os` is not.
    """
    parts = [part for part in words(name) if part not in ("is", "has", "was", "did", "n", "num")]
    while len(parts) > 1 and parts[-1] in vocabulary.AFTER_LABEL:
        parts = parts[:-1]
    if not parts or set(parts) & (vocabulary.NEGATIONS | vocabulary.NO_LABEL):
        return 0
    joined = "_".join(parts)
    for place, word in enumerate(vocabulary.LABEL):
        if joined in (word, word.removeprefix("is_")):
            return 300 - place
    if joined in vocabulary.LABEL_COUNTS:
        return 100
    return next((200 - place for place, word in enumerate(vocabulary.LABEL) if word == parts[-1] and len(word) > 1), 0)


def rating_of(names: Sequence[str]) -> str:
    """Returns the column whose name is a rating's, or ends with the word; empty where there is none."""
    return _of(
        names, vocabulary.RATING, lambda parts, word: parts[-1] == word and not set(parts) & vocabulary.NO_RATING
    )


def action_of(names: Sequence[str]) -> str:
    """Returns the column whose name says that it holds what happened; empty where there is none."""
    return _of(
        names,
        vocabulary.ACTION,
        lambda parts, word: f"_{word}_" in f"_{'_'.join(parts)}_" and not set(parts) & vocabulary.NO_ACTION,
    )


def _of(names: Sequence[str], wanted: Sequence[str], ends: Callable[[list[str], str], bool]) -> str:
    plain = {name: parts for name in names if (parts := words(name))}
    for word in wanted:
        for name, parts in plain.items():
            if "_".join(parts) == word:
                return name
    for word in wanted:
        for name, parts in plain.items():
            if len(parts) > 1 and ends(parts, word):
                return name
    return ""


def is_amount(name: str) -> bool:
    """Says whether a name says that numbers are amounts."""
    return bool(set(words(name)) & vocabulary.AMOUNTS)


def is_code(name: str) -> bool:
    """Says whether a name says that numbers are codes, not amounts."""
    parts = words(name)
    if is_amount(name):
        return False
    return bool(set(parts) & vocabulary.CODES) or (bool(parts) and parts[-1] in vocabulary.ID_WORDS)


def is_outcome(name: str) -> bool:
    """Says whether a name says that a column counts or averages what rows of a log tell (a click rate, sales)."""
    parts = words(name)
    is_counted = bool(set(parts) & vocabulary.COUNTED)
    return bool(set(parts) & vocabulary.OUTCOMES) or (is_counted and bool(set(parts) & vocabulary.COUNTABLE))


def is_weight(name: str) -> bool:
    """Says whether a name says that a column holds what a row counts in the losses."""
    parts = words(name)
    return parts[-1:] in (["weight"], ["weights"]) and set(parts[:-1]) <= vocabulary.WEIGHED


def is_of_request(name: str) -> bool:
    """Says whether a name says that a column is known of a row before anybody has acted.

    Where and on what it was shown.
    """
    parts = words(name)
    return bool(parts) and parts[-1] in vocabulary.REQUEST_WORDS and not is_amount(name)


def refuse_lacking(lacking: Mapping[str, Path], role: str, taken: str, score: Callable[[str], int]) -> None:
    """Refuses to go on without a column that looks more like a role than the one that all files have.

    Args:
        lacking: columns that a file does not have, and which file.
        role: an option of the command: `user`, say.
        taken: the column that all files have; empty: none.
        score: says how surely a name is of the role.

    Raises:
        UserError: it names the file, and the options.
    """
    for name, path in lacking.items():
        if score(name) > (score(taken) if taken else 0):
            raise UserError(
                f"{path}: no column {name!r}, which looks like the {role} and stands in the files beside it; if the "
                f"file is no part of the log, move it away; {_instead(role, taken)}"
            )


def refuse_unread(unread: Mapping[str, str], path: Path, role: str, taken: str, score: Callable[[str], int]) -> None:
    """Refuses to go on without a column that looks more like a role than the one that is read.

    Args:
        unread: columns that are not read -> their types.
        path: of their file.
        role: an option of the command.
        taken: the column that is read; empty: none.
        score: says how surely a name is of the role.

    Raises:
        UserError: it names the column, its type and the options.
    """
    for name, kind in unread.items():
        if score(name) > (score(taken) if taken else 0):
            raise UserError(
                f"{path}: column {name!r} looks like the {role}, but its type is {kind}, which is not read; write it "
                f"as text or number; {_instead(role, taken)}"
            )


def _instead(role: str, taken: str) -> str:
    said = f"--{role} {taken} takes {taken!r} instead" if taken else f"--{role} names another column"
    none = {"label": ", --label none takes every row as a positive", "time": ", --time none the order of the rows"}
    return said + none.get(role, "")
