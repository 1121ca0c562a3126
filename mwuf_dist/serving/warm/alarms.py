"""Kinds of rows whose fraction should change slowly from day to day, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from mwuf_dist.config import WARM_SETS
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.warm.change import ALMOST_ALL, NOT_TRAINED, OTHERWISE, POSITIVE

# A fraction of the rows that differs by more from the days before is no chance.
_ALARM = 0.3
# Rows: where so many positive ones were likely, that there is none is no chance. Rows of other kinds come together: all
# those of a user, or of an item.
_MANY_LIKELY = 20.0


def usual_fractions(prepared: Prepared) -> dict[str, float]:
    """Returns fractions of kinds of rows in the run's warm sets: of positive ones where rows were not drawn."""
    usual = {OTHERWISE: 0.0}
    if prepared.negatives_per_positive:
        return usual
    splits = [prepared.manifest["splits"][name] for name in WARM_SETS]
    num_rows = sum(one["rows"] for one in splits)
    if not num_rows or any("positives" not in one for one in splits):
        return usual
    return usual | {POSITIVE: sum(one["positives"] for one in splits) / num_rows}


def alarms(
    fractions: dict[str, float],
    days: Sequence[dict[str, float]],
    of_run: Mapping[str, float] = MappingProxyType({}),
    num_rows: int = 0,
) -> list[str]:
    """Says which kinds of rows are much more, or much fewer, than on the days before.

    Args:
        fractions: of the rows, by kind.
        days: of the days before.
        of_run: of the run's own rows, for kinds of which no day has any.
        num_rows: how many rows there are: that none is positive says something where many were likely.
    """
    found = []
    for kind, now in fractions.items():
        before = [day[kind] for day in days if kind in day]
        when = "on the days before" if before else "in the run's own sets"
        before = before or [usual for name, usual in of_run.items() if name == kind]
        usual = float(np.mean(before)) if before else 0.0
        none_left = num_rows * ((now == 0) * usual + (now == 1) * (1 - usual)) >= _MANY_LIKELY
        if before and (abs(now - usual) > _ALARM or (kind == POSITIVE and none_left)):
            found.append(f"ALARM: {now:.0%} of the rows are {kind}, {usual:.0%} {when}")
        elif not before and kind == "of users never seen" and now > 0.5:
            found.append(f"ALARM: {now:.0%} of the rows are {kind}: are IDs written as in the run's own logs?")
        elif not before and kind == NOT_TRAINED and now > ALMOST_ALL:  # as is right on a day of new items
            found.append(f"{now:.0%} of the rows are {kind}")
    return found
