"""What every section of the configuration is made of: the strict dataclass and the ranges of its values."""

from __future__ import annotations

from typing import Annotated, TypeVar, dataclass_transform

import pydantic
from annotated_types import Ge, Gt, Lt

T = TypeVar("T")


class UserError(ValueError):
    """The user's input is wrong: the message says what, where and what to do. No traceback, exit code 2."""


STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(1 << 63)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Makes a class a section: frozen, by keyword only, no unknown key, no value of a wrong type."""
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=STRICT)  # pyright: ignore
