"""What the texts of a column are, where they are more than words: vectors, objects, lists of several values."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.data.readers import encode

_SIGNS = (",", ";", "|")  # between values of a list in brackets
_SEPARATORS = ("|", ";", ",", " ")  # of values without brackets
_EMPTY = r"^\s*(\[\s*\]|\(\s*\)|\{\s*\}|set\(\))\s*$"
# NumPy writes 1. and 1e-05, several blanks, line ends, and three points for what it leaves out.
_NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
_PART = rf"({_NUMBER}|nan|\.\.\.)"
_BETWEEN = r"(\s*[,;|]\s*|\s+)"
_VECTOR = rf"^\s*[\[({{]?\s*{_PART}({_BETWEEN}{_PART}){{2,}}\s*[\])}}]?\s*$"
_PAIR = rf"{_NUMBER}{_BETWEEN}{_NUMBER}"
_PLACE = rf"^\s*[\[(]\s*{_PAIR}\s*[\])]\s*$"
_RANGE = rf"^\s*(\[\s*{_PAIR}\s*\)|\(\s*{_PAIR}\s*\])\s*$"
_WITH_POINT = r"[0-9]+\.[0-9]*|\.[0-9]+"
# Of JSON or Python, quoted or not; a:b and 12:30 are words.
_OBJECT = r"""\{\s*("[^"]*"\s*:|'[^']*'\s*:|[\w.-]+\s*:[\s"'\[{])"""
_NESTED = r"^\s*[\[({]\s*[\[({][\s\S]*[\])}]\s*,?\s*[\])}]\s*$"
_SQUARE = r"^\s*\[[\s\S]*\]\s*$"
_LIST = r"^\s*(\[[\s\S]*\]|\([\s\S]*\)|\{[\s\S]*\})\s*$"
_QUOTED = r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\""""
_ALL_QUOTED = r'^\s*[\[({]\s*("(\s*[,;|]\s*"|\s+")*)?\s*[\])}]\s*$'  # a quote for each value


def why_no_field(texts: pa.Array) -> str:
    """Says why distinct texts [V] are no words: they are vectors, objects or lists of lists; empty: nothing says so."""
    filled = texts.filter(pc.invert(pc.match_substring_regex(texts, _EMPTY)))
    if _are_vectors(filled):
        return "it looks like vectors; in Parquet, as lists of numbers, it could be a field"
    for pattern, what in ((_OBJECT, "objects"), (_NESTED, "lists of lists")):
        found = pc.match_substring_regex(filled, pattern)
        if _are_most(found):
            example = filled.filter(found)[0].as_py()[:60]
            return (
                f"its values are {what} written as text, as {example!r} is; as lists in Parquet, or as words with a "
                "sign between them, it could be a field"
            )
    return ""


def separator_of(texts: pa.Array) -> tuple[str, int] | None:
    """Finds what divides distinct texts [V] into several values, and its `min_count`; None: each is one value."""
    if _are_pairs(texts):
        return None
    inside = texts.filter(pc.match_substring_regex(texts, _LIST))
    is_list = 2 * len(inside) > len(texts)
    if is_list and (separator := _of_lists(inside)):
        return separator, 1
    for separator in _SEPARATORS:
        parts = encode.split(texts, separator)
        lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
        words = len(pc.unique(encode.words_of(parts.flatten())))
        # Values put together from a smaller set; the words of a title count when they come back.
        if (lengths > 1).mean() > 0.2 and words < 0.7 * lengths.sum():
            return separator, 2 if separator == " " else 1
    return (",", 1) if _are_most(pc.match_substring_regex(texts, _SQUARE)) else None


def _are_most(mask: pa.Array) -> bool:
    return 2 * (pc.sum(mask).as_py() or 0) > len(mask)


def _are_vectors(texts: pa.Array) -> bool:
    """Says whether all are numbers with signs between, most of them decimals, and as many in each text.

    Of other lengths they are vectors where each number is a decimal: 7|7.5|8 are sizes.
    """
    if not len(texts) or not pc.all(pc.match_substring_regex(texts, _VECTOR)).as_py():
        return False
    num, num_decimals = (pc.count_substring_regex(texts, one) for one in (_NUMBER, _WITH_POINT))
    if pc.all(pc.equal(num, num_decimals)).as_py():
        return True
    return len(pc.unique(num)) == 1 and _are_most(pc.greater(num_decimals, 0))


def _are_pairs(texts: pa.Array) -> bool:
    """Says whether all are a place, [48.85, 2.35], or a range, (10, 20], which is one value."""
    place, is_range, has_point = (pc.match_substring_regex(texts, one) for one in (_PLACE, _RANGE, _WITH_POINT))
    return bool(pc.all(pc.or_(pc.and_(place, has_point), is_range)).as_py())


def _of_lists(lists: pa.Array) -> str:
    """Finds the separator of lists in brackets: a sign that stands outside quotes, or a blank; empty: there is none.

    `','` and `' '` stand between quoted values (`mwuf_dist.data.readers.encode.split`).
    """
    bare = pc.replace_substring_regex(lists, _QUOTED, '"')
    num_with = {sign: pc.sum(pc.match_substring(bare, sign)).as_py() for sign in _SIGNS}
    sign = max(_SIGNS, key=num_with.__getitem__)
    if num_with[sign]:
        within = pc.greater(pc.count_substring(lists, sign), pc.count_substring(bare, sign))
        is_quoted = pc.any(within).as_py() and pc.all(pc.match_substring_regex(bare, _ALL_QUOTED)).as_py()
        return f"'{sign}'" if is_quoted else sign
    if pc.any(pc.match_substring_regex(bare, r'"\s+"')).as_py():
        return "' '"
    return " " if pc.any(pc.match_substring_regex(bare, rf"{_NUMBER}\s+{_NUMBER}")).as_py() else ""
