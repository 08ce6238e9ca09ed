"""Methods from names and options that come as text."""

import dataclasses
from typing import Any

from vitcop.methods import METHODS
from vitcop.methods.base import Method

NONE = "none"


def make_method(name: str, **options: Any) -> Method | None:
    """The method called `name` with these options; None for "none".

    Raises ValueError for names and options that there are not.
    """
    if name == NONE:
        if options:
            raise ValueError(f"method: expected no options beside 'none', got {', '.join(options)}")
        return None
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join([NONE, *sorted(METHODS)])}, got {name!r}")
    kind: Any = METHODS[name]
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{unknown[0]}: expected an option of {name} ({', '.join(sorted(known))})")
    return kind(**{option: number(value) for option, value in options.items()})


def number(value: Any) -> Any:
    """Text that reads as a number, or as a fraction such as 1/9, as that number; anything else as it is."""
    if not isinstance(value, str):
        return value
    numerator, slash, denominator = value.partition("/")
    for kind in (int, float):
        try:
            return kind(numerator) / kind(denominator) if slash else kind(value)
        except (ValueError, ZeroDivisionError):
            continue
    return value
