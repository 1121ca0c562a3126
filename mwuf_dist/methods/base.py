"""The method `base`: none."""

from __future__ import annotations

from mwuf_dist.methods.interface import Method


class Base(Method):
    """Leaves a new item's row as it is: a fresh draw, updated like any other (the paper's baselines)."""
