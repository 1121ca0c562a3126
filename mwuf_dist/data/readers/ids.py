"""IDs in one normal form, whatever wrote them: 12, "12", "12.0" and a decimal 12 are one ID, in CSV and in Parquet.

The form belongs to the data set and not to a file: it is taken from all of a column's distinct values (`IdForm`), and
stays with a run, so that a later file whose IDs are written in another way still meets the run's. The forms:

* `integer`: whole numbers without leading zeros that fit 64 bits. 12.0 (what pandas writes after a gap) is 12, 1e+05
  (what R writes) is 100000, and, once the form is known, 00905 is 905.
* `padded`: digits, all of one width, some with leading zeros (00905): 905 is 00905, which a spreadsheet has harmed.
* `text`: anything else, every letter kept. 007 and 7 in one file are two IDs. 12.0 is 12 unless other values have
  digits behind the point (as versions do).
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.data.readers.arrow_types import text_of, with_one_dictionary

_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_WITH_POINT = r"^-?[0-9]+(\.[0-9]+|,[0-9]{1,2})$"
_WHOLE_WITH_POINT = r"^-?[0-9]+(\.0+|,0)$"  # 12,0 is pandas' for Europe; 12,000 may be twelve thousand
_DIGITS = r"^[0-9]+$"
_POWER = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]{2}$"
_EXCEL = r"^-?[0-9]\.[0-9]{1,5}[eE]\+[0-9]+$"
_EXACT_POWER = 10  # Spreadsheets write a number of more digits with few of them; R and NumPy write all that count.
_SHORTENED_FROM = 9  # Times of programs may be 8.64e+04: numbers that short spreadsheets leave as they are.
_THOUSANDS = r"^-?[0-9]{1,3}(,[0-9]{3})+$"
_UUID = r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"
_FEW_WORDS, _FEW_OF = 5, 10  # At most so many, each among so many times as many IDs.
_SAMPLE = 1_000  # of known IDs: a follower looks at them with each batch
_NOBODY = ("-", "--", ".", "?", "(none)", "(not set)", "(null)", "[null]", "anon", "anonymous", "empty", "guest")
_NOBODY += ("missing", "n/a", "na", "nan", "nil", "none", "not set", "null", "undefined", "unknown")


class InexactIdsError(Exception):
    """IDs are floating point numbers so large that neighbours cannot be told apart."""


@dataclass(frozen=True)
class IdForm:
    """How the IDs of one side are written in a data set.

    Attributes:
        kind: see the module.
        width: of `padded`.
        whole_with_point: of `text`: whether 12.0 is 12.
    """

    kind: Literal["integer", "padded", "text"] = "text"
    width: int = 0
    whole_with_point: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Gives it as JSON has it."""
        return {"kind": self.kind, "width": self.width, "whole_with_point": self.whole_with_point}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> IdForm:
        """Reverses `to_dict`."""
        return IdForm(values["kind"], values["width"], values["whole_with_point"])


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Dictionary codes of a column.

    Args:
        column: any flat type [R].

    Returns:
        Index of each row's value in the distinct values, -1 where it is missing, int32 [R]; the distinct values.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = with_one_dictionary(column)
    if whole.dictionary.null_count:
        whole = pa.chunked_array([whole]).cast(column.type.value_type).dictionary_encode().combine_chunks()
        whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    indices = whole.indices.fill_null(-1) if whole.null_count else whole.indices
    return indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), whole.dictionary


def form_of(values: pa.Array, files: Sequence[np.ndarray] = ()) -> IdForm:
    """Returns the form of a data set's IDs.

    Args:
        values: its distinct IDs [V], text or numbers, none missing.
        files: which of them each file holds, where there are several files: a file that has lost its leading zeros and
            one that has them are told from one file that has both.

    Raises:
        InexactIdsError: floats of 2^53 and more.
    """
    if pa.types.is_integer(values.type):
        return IdForm("integer")
    text = _text(values)
    whole_with_point = not _any(pc.and_(_is(text, _WITH_POINT), pc.invert(_is(text, _WHOLE_WITH_POINT))))
    if whole_with_point:
        text = _without_point(text)
    if pc.all(_is(text, _INTEGER)).as_py() and _fits(text) is not None:
        return IdForm("integer")
    parts = [text.take(pa.array(np.flatnonzero(one) if one.dtype == bool else one)) for one in files] or [text]
    width = _padded_width(parts)
    return IdForm("padded", width) if width else IdForm("text", whole_with_point=whole_with_point)


def normal(values: pa.Array, form: IdForm) -> pa.Array:
    """IDs as a data set of this form writes them: int64, or string where any of them is no such number [V].

    Raises:
        InexactIdsError: floats of 2^53 and more.
    """
    if form.kind == "integer" and pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    text = _text(values)
    if form.whole_with_point or form.kind != "text":
        text = _without_point(text)
    if form.kind == "text":
        return text
    if form.kind == "padded":
        short = pc.and_(_is(text, _DIGITS), pc.less(pc.utf8_length(text), form.width))
        return pc.if_else(short, pc.utf8_lpad(text, form.width, "0"), text)
    text = pc.if_else(_is(text, _DIGITS), pc.replace_substring_regex(text, r"^0+([0-9])", r"\1"), text)
    number = _fits(text) if pc.all(_is(text, _INTEGER)).as_py() is not False else None
    return text if number is None else number


def encode_ids(
    column: pa.ChunkedArray,
    form: IdForm | None = None,
    rows: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> tuple[np.ndarray, pa.Array, IdForm]:
    """IDs in ascending order and the place of each row's ID among them.

    Args:
        column: IDs [R], text or numbers.
        form: that they get; None: their own.
        rows: places of the rows that count (others have no ID); None: all.
        starts: the first row of each file and the end of the last [F + 1]; None: one file.

    Returns:
        Place of each row's ID, -1 where it is missing, int32 [R]; the IDs, int64 or string [E]; their form.

    Raises:
        InexactIdsError: floats of 2^53 and more.
    """
    index, values = codes(column)
    if rows is not None:
        kept = np.full_like(index, -1)
        kept[rows] = index[rows]
        index = kept
    used = np.zeros(len(values) + 1, dtype=bool)
    used[index] = True  # -1, the last place, collects the missing ones.
    there = np.flatnonzero(used[:-1])
    of_there = np.full(len(values) + 1, -1, dtype=np.int32)
    of_there[there] = np.arange(len(there), dtype=np.int32)
    index, values = of_there[index], values.take(pa.array(there))
    if form is None:
        files = [] if starts is None or len(starts) < 3 else _of_files(index, len(values), starts)
        form = form_of(values, files)
    again = normal(values, form).dictionary_encode()
    order = pc.array_sort_indices(again.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    of_value = np.append(rank[again.indices.to_numpy(zero_copy_only=False)], np.int32(-1))
    return of_value[index], again.dictionary.take(pa.array(order)), form


def find(ids: pa.Array, known: pa.Array, form: IdForm | None = None) -> np.ndarray:
    """Place of each of `ids` [n] among known ones, -1 where it is none of them; int32 [n].

    Args:
        ids: written in any way.
        known: those of a data set or a run.
        form: of the known ones; None: theirs.
    """
    form = form or form_of(known)
    ids, known = normal(ids, form), normal(known, form)
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    return pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32)


def find_rows(column: pa.ChunkedArray, known: pa.Array, form: IdForm | None = None) -> np.ndarray:
    """Place of each row's ID among known ones, -1 where it is missing or unknown; int32 [R]."""
    index, values = codes(column)
    return np.append(find(values, known, form), np.int32(-1))[index]


def nobody(found: pa.Array) -> list[str]:
    """Returns the IDs that may stand for nobody.

    They are usual words for it (`undefined`, `-`), few words where all others are numbers, and one number below 0.
    """
    if pa.types.is_integer(found.type):
        below = found.filter(pc.less(found, 0))
        return [str(below[0])] if len(below) == 1 and len(found) > _FEW_OF else []
    if not pa.types.is_string(found.type):
        return []
    usual = found.filter(pc.is_in(pc.utf8_lower(found), value_set=pa.array(_NOBODY)))
    words = found.filter(pc.invert(_is(found, _INTEGER)))
    few = words if len(words) <= _FEW_WORDS and len(found) >= _FEW_OF * len(words) else words[:0]
    return pc.unique(pa.concat_arrays([usual, few])).to_pylist()


def alike(found: pa.Array) -> tuple[int, list[str]]:
    """Counts IDs that differ from another one in how the same thing is written alone.

    That is: in letter case, in how a letter is coded (UTF-8 read as Latin-1, too), or by a plus sign, quotes, brackets,
    commas between thousands or the dashes of a UUID. Second: two such IDs, empty where there are none.
    """
    if not pa.types.is_string(found.type):
        return 0, []
    folded = found
    if not pc.all(pc.string_is_ascii(found)).as_py():
        folded = pa.array([_decoded(one) for one in found.to_pylist()], pa.string())
        folded = pc.utf8_normalize(folded, form="NFKC")
    folded = pc.replace_substring_regex(pc.utf8_lower(folded), r"^[+'\"{(\[]+|['\")}\]]+$", "")
    folded = pc.if_else(_is(folded, _THOUSANDS), pc.replace_substring(folded, ",", ""), folded)
    folded = pc.if_else(_is(folded, _UUID), pc.replace_substring(folded, "-", ""), folded)
    code = folded.dictionary_encode().indices.to_numpy()
    counts = np.bincount(code)
    again = np.flatnonzero(counts[code] > 1)
    if not len(again):
        return 0, []
    both = np.flatnonzero(code == code[again[0]])[:2]
    return len(again) - int((counts > 1).sum()), found.take(pa.array(both)).to_pylist()


def _decoded(text: str) -> str:
    """Returns the text that has been read in the wrong encoding, else itself."""
    try:
        return text.encode("cp1252").decode() if not text.isascii() else text
    except UnicodeError:
        return text


def like_a_list(found: pa.Array) -> str:
    """Returns one of the IDs that look like lists written as text, [1, 2] or a|b|c; empty if most do not."""
    if not pa.types.is_string(found.type) or not len(found):
        return ""
    for form in (r"^[\[({].*,.*[\])}]$", r"^[^|]+(\|[^|]+){2,}$", r"^[^,]+(,[^,]+){2,}$", r"^[^;]+(;[^;]+){2,}$"):
        which = pc.and_(_is(found, form), pc.invert(_is(found, _THOUSANDS)))
        if 2 * pc.sum(which).as_py() > len(found):
            return found.filter(which)[0].as_py()
    return ""


def in_quotes(found: pa.Array) -> str:
    """Returns one of IDs with quotes around them, which most have; empty: they have none."""
    if not pa.types.is_string(found.type) or not len(found):
        return ""
    which = _is(found, "^(['`‘].*['`’]|[“„”].*[“”]|«.*»|\".*\")$")
    return found.filter(which)[0].as_py() if 2 * pc.sum(which).as_py() > len(found) else ""


def written_otherwise(found: pa.Array, known: pa.Array) -> np.ndarray:
    """Says which IDs [n] look as none of the known ones does; bool [n].

    That is: other kinds of characters, another beginning, or a length that is farther than two from all of theirs, by a
    sample of the known ones (those that are null do not count).
    """
    every = max(1, len(known) // _SAMPLE)
    known = text_of(known.take(pa.array(np.arange(0, len(known), every)))).drop_null()
    found = text_of(found)
    if not len(known) or not len(found):
        return np.zeros(len(found), dtype=bool)
    lengths, bounds = pc.utf8_length(found), pc.min_max(pc.utf8_length(known)).as_py()
    odd = [pc.less(lengths, bounds["min"] - 2), pc.greater(lengths, bounds["max"] + 2)]
    for characters in ("[A-Z]", "[a-z]", "[0-9]", "[^A-Za-z0-9]"):
        had, has = _is(known, characters), _is(found, characters)
        odd += [] if _any(had) else [has]
        odd += [pc.invert(has)] if pc.all(had).as_py() else []
    ends = pc.min_max(known).as_py()
    both = itertools.takewhile(
        lambda pair: pair[0] == pair[1] and not pair[0].isdigit(), zip(*ends.values(), strict=False)
    )
    odd.append(pc.invert(pc.starts_with(found, "".join(one for one, _ in both))))
    return np.any([one.to_numpy(zero_copy_only=False) for one in odd], axis=0)


def from_spreadsheets(values: pa.Array) -> list[str]:
    """Returns those of distinct IDs that have lost their last digits to a spreadsheet (1.23457E+11)."""
    if not pa.types.is_string(values.type):
        return []
    cut = values.filter(_is(values, _EXCEL)).to_pylist()
    return [one for one in cut if int(one[-2:]) >= _SHORTENED_FROM and _without_power(one) == one]


def _text(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type) and _any(pc.greater_equal(pc.abs(values), 2.0**53)):
        raise InexactIdsError
    return text_of(values)


def _is(text: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(text, pattern)


def _any(mask: pa.Array) -> bool:
    return pc.any(mask).as_py() is True


def _without_point(text: pa.Array) -> pa.Array:
    if _any(power := _is(text, _POWER)):
        whole = [
            _without_power(one) if is_it else one
            for one, is_it in zip(text.to_pylist(), power.to_pylist(), strict=True)
        ]
        text = pa.array(whole, pa.string())
    return (
        pc.replace_substring_regex(text, r"^(-?[0-9]+)(\.0+|,0)$", r"\1")
        if _any(_is(text, _WHOLE_WITH_POINT))
        else text
    )


def _without_power(text: str) -> str:
    """Returns the digits of a whole number that is written with a power of ten and has lost none, else the text.

    It has lost none if all digits are there, or if it is shorter so than in full, which is when R writes a number so.
    """
    number, power, fraction = Decimal(text), int(text[-2:]), len(text.partition(".")[2].rpartition("+")[0][:-1])
    is_exact = fraction >= power or (power <= _EXACT_POWER and len(text.lstrip("-")) < power + 1)
    return f"{int(number)}" if is_exact and number == int(number) else text


def is_whole_number(text: pa.Array) -> pa.Array:
    """Says of each ID, as `normal` has left it, whether it is a whole number that fits 64 bits [V]."""
    digits = pc.replace_substring_regex(text, r"^-", "")
    most = pc.if_else(pc.starts_with(text, "-"), str(2**63), str(2**63 - 1))
    is_short = pc.less(pc.utf8_length(digits), 19)
    fits = pc.or_(is_short, pc.and_(pc.equal(pc.utf8_length(digits), 19), pc.less_equal(digits, most)))
    return pc.and_(_is(text, _INTEGER), fits)


def _fits(text: pa.Array) -> pa.Array | None:
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _of_files(index: np.ndarray, num: int, starts: np.ndarray) -> list[np.ndarray]:
    """Returns the positions of the values that each file holds."""
    out = []
    for start, stop in itertools.pairwise(starts):
        there = np.zeros(num + 1, dtype=bool)
        there[index[start:stop]] = True
        out.append(np.flatnonzero(there[:-1]))
    return out


def _padded_width(files: Sequence[pa.Array]) -> int:
    """Returns the one width of IDs with leading zeros, 0 where they have none or are no such IDs."""
    widths, longest = set(), 0
    for text in files:
        if not len(text):
            continue
        if not pc.all(_is(text, _DIGITS)).as_py():
            return 0
        lengths = pc.min_max(pc.utf8_length(text)).as_py()
        longest = max(longest, lengths["max"])
        if _any(_is(text, r"^0[0-9]")):
            if lengths["min"] != lengths["max"]:
                return 0
            widths.add(lengths["max"])
    return widths.pop() if len(widths) == 1 and longest in widths else 0


def refuse_inexact(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """Refuses IDs that are floats of 32 bits (or 16) so large that neighbours are one number."""
    kind = column.type
    if not (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        return
    largest = pc.max(pc.abs(column.cast(pa.float32()))).as_py()
    if largest is not None and largest >= (2**24 if pa.types.is_float32(kind) else 2**11):
        raise UserError(
            f"{path}: column {name!r} holds numbers of type {kind} up to {largest:.0f}, whose last digits are lost: "
            "different IDs may have become one; write it as int64 or as text"
        )
