"""Values of any library as Python's own, and as short text for errors."""

from __future__ import annotations

import math
import numbers
import reprlib
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 100  # characters of a value in an error

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 4
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2


def number_of(value: Any) -> int | float | None:
    """The number that a value is, in the form of any library; None if it is none.

    A bool, for example, is none.

    >>> number_of(np.float32(0.5)), number_of(torch.tensor(3)), number_of("3")
    (0.5, 3, None)
    """
    if isinstance(value, Tensor):
        real = value.ndim == 0 and not (value.is_complex() or value.is_meta)
        return number_of(value.item()) if real else None
    if isinstance(value, np.ndarray):
        return number_of(value.item()) if value.ndim == 0 else None
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return as_float(value) if isinstance(value, numbers.Real | Decimal) else None


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple."""
    return isinstance(value, list | tuple)


def as_float(value: Any) -> float:
    """As float does it, but for numbers beyond its range: infinity, with their sign."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)
    except ValueError:  # a signalling NaN of decimal
        return math.nan


def plain(value: Any) -> Any:
    """The same in Python's own numbers, strings, lists and dicts, with tensors on the CPU.

    Anything else stays as it is. `torch.load(weights_only=True)` can read the result.

    >>> plain({"lr": np.float64(3), "betas": (np.int64(1), torch.tensor(2.0))})
    {'lr': 3.0, 'betas': (1, 2.0)}
    """
    if type(value) in (float, int, bool, str, type(None)):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return str.__str__(value)
    if (number := number_of(value)) is not None:
        return number
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {plain(key): plain(x) for key, x in value.items()}
    if type(value) is list:
        return [plain(x) for x in value]
    return tuple(plain(x) for x in value) if type(value) is tuple else value


def brief(value: Any) -> str:
    """Any value for an error: one line of at most 100 characters.

    >>> brief(list(range(1000)))
    '[0, 1, 2, 3, ...]'
    """
    if isinstance(value, Decimal | Fraction):
        text = str(as_float(value))
    else:
        try:
            text = _short.repr(value)
        except Exception:  # its own, or of an int with more digits than Python prints
            text = f"<{type(value).__name__}>"
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
