"""What stands beside a source that is followed: tables that are read when they change, a watch on kinds of rows.

The position has what was read of a table (size and time of change), under names that no file has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mwuf_dist.serving.warm.alarms import alarms
from mwuf_dist.serving.warm.sources.interface import Position

ITEMS, RETIRE, WINDOW = "option/items", "option/retire", "option/window"
_WINDOW_ROWS = 10_000  # Rows whose fractions are compared with those before, as a job's are with the jobs before.


@dataclass(frozen=True)
class SideTables:
    """Names the tables, each a file that is written elsewhere and renamed into place; one may come later.

    Attributes:
        items: fields of items that the run has never seen.
        retire: IDs of items that leave.
    """

    items: Path | None = None
    retire: Path | None = None

    def changed(self, position: Position) -> Position:
        """Returns what the position is to say of the tables that are there and not as they were when they were read."""
        found: Position = {}
        for key, path in ((ITEMS, self.items), (RETIRE, self.retire)):
            if path is not None and path.is_file():
                about = path.stat()
                now = [about.st_size, about.st_mtime_ns]
                found |= {key: now} if position.get(key) != now else {}
        return found


def watched(
    position: Position,
    fractions: dict[str, float],
    num_rows: int,
    days: Sequence[dict[str, float]],
    of_run: Mapping[str, float],
) -> tuple[Position, list[dict[str, float]], list[str]]:
    """Adds a batch to the window of rows that is being counted.

    Args:
        position: of before, which holds the window.
        fractions: of the batch's rows, by kind.
        num_rows: of the batch.
        days: of windows (or jobs) before, each the fraction of its rows by kind.
        of_run: see `alarms`.

    Returns:
        The window for the next position; the windows that were completed, one or none; alarms about it.
    """
    before = position.get(WINDOW) or {"rows": 0, "of": {}}
    total = before["rows"] + num_rows
    # A kind that the window has not counted from its first row on is not counted.
    of = before["of"]
    kinds = of if before["rows"] else fractions
    sums = {kind: of.get(kind, 0.0) + fractions.get(kind, 0.0) * num_rows for kind in kinds}
    if total < _WINDOW_ROWS:
        return {WINDOW: {"rows": total, "of": sums}}, [], []
    day = {kind: value / total for kind, value in sums.items()}
    return {WINDOW: None}, [day], alarms(day, days, of_run, total)
