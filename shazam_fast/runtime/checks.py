"""Checks of users' options: type, range and choice, with the option named in the error.

NumPy's scalars count as Python's; a bool is not a number, and a float is not a count.
"""

import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

from ..errors import ShazamError

Kind = TypeVar("Kind")


def require_count(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """The whole number `value` in [least, most]. Raises ShazamError naming the option.

    >>> require_count("epochs", 3)
    3
    """
    wanted = f"a whole number from {least}" + (f" to {most}" if most is not None else "")
    number = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if number is None or number < least or (most is not None and number > most):
        raise ShazamError(f"{name}: {wanted} expected, found {value!r}")
    return number


def require_number(
    name: str, value: object, least: float = -math.inf, below: float = math.inf, *, above: float | None = None
) -> float:
    """The finite number `value`: at least `least` (or more than `above`) and less than `below`.

    Raises ShazamError naming the option.

    >>> require_number("teacher_dropout", 0.5, 0.0, 1.0)
    0.5
    """
    limits = [f"more than {above:g}"] if above is not None else [f"at least {least:g}"] * (least > -math.inf)
    limits += [f"less than {below:g}"] * (below < math.inf)
    wanted = " ".join(["a number", " and ".join(limits)]).strip()
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not least <= number < below or (above is not None and number <= above):
        raise ShazamError(f"{name}: {wanted} expected, found {value!r}")
    return number


def require_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """`value`, one of `choices`. Raises ShazamError naming the option.

    >>> require_choice("block", "bare", ("bare", "residual"))
    'bare'
    """
    if not isinstance(value, str) or value not in choices:
        raise ShazamError(f"{name}: one of {', '.join(choices)} expected, found {value!r}")
    return value


def require_switch(name: str, value: object) -> bool:
    """`value`, True or False. Raises ShazamError naming the option.

    >>> require_switch("standardize", True)
    True
    """
    import numpy as np

    if not isinstance(value, bool | np.bool_):
        raise ShazamError(f"{name}: True or False expected, found {value!r}")
    return bool(value)


def require_name(name: str, value: object) -> str:
    """`value`, text with more than blanks in it. Raises ShazamError naming the option.

    >>> require_name("teachers", "uni")
    'uni'
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ShazamError(f"{name}: a name expected (text that is not empty and holds no zero byte), found {value!r}")
    return value


def require_loaded(name: str, value: object, kind: type[Kind], load: Callable[[str | Path], Kind]) -> Kind:
    """`value`, of type `kind`, or what `load` makes of it where it is a path. Raises ShazamError naming the option.

    >>> require_loaded("config", "3", int, int)
    3
    """
    if isinstance(value, str | Path):
        return load(value)
    if not isinstance(value, kind):
        wanted = f"a {kind.__name__} or the directory of one"
        raise ShazamError(f"{name}: {wanted} expected, found {type(value).__name__}")
    return value


def require_path(name: str, value: object) -> Path:
    """`value` as a Path. Raises ShazamError naming the option.

    >>> require_path("out", "job/features").name
    'features'
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str) or "\0" in text:
        raise ShazamError(f"{name}: a path expected (text without zero bytes, or a pathlib.Path), found {value!r}")
    if not text:
        raise ShazamError(f"{name}: a path expected, found an empty text; the directory that you are in is '.'")
    return Path(text)
