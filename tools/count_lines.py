"""Counts lines of Python without blank lines, comments and docstrings; for `benchmarks.fast_paths` those of C++ too.

python tools/count_lines.py FOLDER...
"""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

_NOTHING = {tokenize.COMMENT, tokenize.NL}
_BETWEEN = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(path: Path) -> set[int]:
    """Finds the lines of one file, from 1, on which something stands that is neither a comment nor a docstring."""
    if path.suffix != ".py":  # this project's C++ has no other comments
        lines = path.read_text(encoding="utf-8").splitlines()
        return {number for number, line in enumerate(lines, 1) if line.partition("//")[0].strip()}
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
    return found


def lines_of(path: Path, name: str) -> set[int]:
    """Finds those of one definition, such as `Class.method` in Python; in C++ a function's, which begins a line.

    Raises:
        ValueError: there is no such definition.
    """
    text = path.read_text(encoding="utf-8")
    first, last = (_in_python if path.suffix == ".py" else _in_cpp)(text, name) or (0, 0)
    if not last:
        raise ValueError(f"{path} defines no {name}")
    return lines_of_code(path) & set(range(first, last + 1))


def _in_python(text: str, name: str) -> tuple[int, int] | None:
    found: ast.Module | ast.stmt = ast.parse(text)
    for part in name.split("."):
        inside = [node for node in getattr(found, "body", []) if part in _names(node)]
        if not inside:
            return None
        found = inside[0]
    assert isinstance(found, ast.stmt)
    first = min([found.lineno, *(one.lineno for one in getattr(found, "decorator_list", []))])
    return first, found.end_lineno or found.lineno


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", "")}


def _in_cpp(text: str, name: str) -> tuple[int, int] | None:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if line[:1].isalpha() and f" {name}(" in line:
            return number, lines.index("}", number) + 1
    return None


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(folder, sum(len(lines_of_code(path)) for path in sorted(Path(folder).rglob("*.py"))))
