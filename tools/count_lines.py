"""Counts lines of Python without blank lines, comments and docstrings.

python tools/count_lines.py FOLDER...
"""

from __future__ import annotations

import sys
import tokenize
from pathlib import Path

_NOTHING = {tokenize.COMMENT, tokenize.NL}
_BETWEEN = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(path: Path) -> int:
    """Counts the lines of one file on which a token stands that is neither a comment nor a docstring."""
    found: set[int] = set()
    before = tokenize.ENCODING
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in _NOTHING:
                continue
            is_docstring = token.type == tokenize.STRING and before in _BETWEEN
            if token.type not in _BETWEEN and not is_docstring:
                found |= set(range(token.start[0], token.end[0] + 1))
            before = token.type
    return len(found)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(folder, sum(lines_of_code(path) for path in sorted(Path(folder).rglob("*.py"))))
