"""What every section of the configuration is made of: the strict dataclass and the ranges of its values."""

from __future__ import annotations

from typing import Annotated, TypeVar, dataclass_transform

import pydantic
from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")


class UserError(ValueError):
    """The user's input is wrong: the message says what, where and what to do. No traceback, exit code 2."""


STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# The upper bounds are beyond what anybody needs, and below what no memory or clock can hold.
Count = Annotated[int, Ge(1), Le(2_147_483_647)]
CountOrZero = Annotated[int, Ge(0), Le(2_147_483_647)]
Negatives = Annotated[int, Ge(0), Le(1_000)]
Threads = Annotated[int, Ge(0), Le(4_096)]
Rows = Annotated[int, Ge(1), Le(1 << 40)]
Width = Annotated[int, Ge(1), Le(16_384)]
Depth = Annotated[int, Ge(1), Le(1_000)]
Seconds = Annotated[int, Ge(1), Le(31_536_000)]
Seed = Annotated[int, Ge(0), Lt(1 << 63)]
Positive = Annotated[float, Gt(0), Le(1e9)]
NonNegative = Annotated[float, Ge(0), Le(1e9)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Makes a class a section: frozen, by keyword only, no unknown key, no value of a wrong type."""
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=STRICT)  # pyright: ignore
