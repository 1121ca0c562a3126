"""The mark of made-up raw files: a file beside them, so that they never pass for the real data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mwuf_dist.config import UserError

MARK = "synthesized.json"


def write_mark(folder: Path, options: dict[str, Any]) -> None:
    """Writes what the files were made with."""
    (folder / MARK).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def mark_of(folder: Path) -> dict[str, Any]:
    """Returns `{"synthesized": options}` of a folder of made-up files, for the fingerprint; empty for real ones.

    Raises:
        UserError: the mark is there and cannot be read.
    """
    path = folder / MARK
    if not path.exists():
        return {}
    try:
        return {"synthesized": json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the folder again with `mwuf synthesize`") from None
