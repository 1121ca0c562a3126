"""What is known of the split of a public data set, held against what its raw files give."""

from __future__ import annotations

import sys

import numpy as np


def report_split(name: str, counts: np.ndarray, old_above: int, warm_rows: int, known: dict[str, int]) -> None:
    """Says on stderr whether the raw files give the split that is known of them.

    Args:
        name: the data set.
        counts: rows of each item.
        old_above: N.
        warm_rows: K.
        known: the published counts.
    """
    ours = split_counts(counts, old_above, warm_rows)
    differing = [f"{what} {ours[what]:,} (published {count:,})" for what, count in known.items() if ours[what] != count]
    found = f"other counts than the published ones: {'; '.join(differing)}" if differing else "the published counts"
    print(f"{name}: these raw files give {found}", file=sys.stderr, flush=True)


def split_counts(counts: np.ndarray, old_above: int, warm_rows: int) -> dict[str, int]:
    """Returns sizes of the split, from the number of rows of each item alone."""
    is_old = counts > old_above
    of_new = counts[(counts >= 3 * warm_rows) & ~is_old]
    return {
        "pretrain": int(counts[is_old].sum()),
        "new items": len(of_new),
        "each warm set": warm_rows * len(of_new),
        "test": int(of_new.sum()) - 3 * warm_rows * len(of_new),
    }
