"""Text from data or configs, made harmless where it is shown: a terminal, Markdown, LaTeX.

HTML has `html.escape`, the console tables `rich.markup.escape`, and pictures are drawn without mathtext.
"""

from __future__ import annotations

import re

# What moves the cursor, colours, or turns the direction of what follows; C1 is what some terminals take for ESC [.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    """Returns the text in which nothing but new lines and tabs steers a terminal: such signs are written as escapes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """Escapes a text into one line."""
    return " ".join(printable(text).split())


def markdown(text: object) -> str:
    """Returns text as one line of Markdown that shows it as it is: no markup, link, image, HTML or table in it."""
    escaped = re.sub(r"([\\`*_|<>\[\]#~&$])", r"\\\1", one_line(text))
    # What begins a list or a heading at the start of a line, and addresses that become links by themselves.
    escaped = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped)
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", lambda found: f"{found[0]}\u200b", escaped)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "†": r"$\dagger$",
    "−": "$-$", "–": "--",
}  # fmt: skip


def latex(text: object) -> str:
    """Returns text as one line of LaTeX that shows it as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))
