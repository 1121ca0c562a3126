"""What every section of the configuration is made of: the strict dataclass and the ranges of its values."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, TypeVar, dataclass_transform

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


def range_of(hint: Any) -> str:
    """Returns the bounds of the numbers of a type in words, such as `1 to 16384`; nothing where it has none."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not Annotated:
        is_many = typing.get_origin(hint) in (tuple, typing.Union, types.UnionType)
        return next(filter(None, map(range_of, arguments)), "") if is_many else ""
    low = [_short(one.ge) for one in hint.__metadata__ if isinstance(one, Ge)]
    low += [f"above {_short(one.gt)}" for one in hint.__metadata__ if isinstance(one, Gt)]
    high = [_short(one.le) for one in hint.__metadata__ if isinstance(one, Le)]
    high += [f"below {_short(one.lt)}" for one in hint.__metadata__ if isinstance(one, Lt)]
    return " to ".join([*low, *high]) or range_of(arguments[0])


def is_within(value: Any, hint: Any) -> bool:
    """Says whether a number keeps the bounds of its type; what is none keeps them."""
    if not isinstance(value, int | float) or typing.get_origin(hint) is not Annotated:
        return True
    tests = {Ge: lambda b: value >= b.ge, Gt: lambda b: value > b.gt, Le: lambda b: value <= b.le}
    tests |= {Lt: lambda b: value < b.lt}
    return all(tests[type(one)](one) for one in hint.__metadata__ if type(one) in tests)


def _short(value: Any) -> str:
    exponent = int(value).bit_length() - 1
    if isinstance(value, int) and value >= 1 << 32 and value == 1 << exponent:
        return f"2^{exponent}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Makes a class a section: frozen, by keyword only, no unknown key, no value of a wrong type."""
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=STRICT)  # pyright: ignore
