"""Values of options as people write them, checked."""

from __future__ import annotations

import argparse
import math
import re

MOST = (1 << 32) - 1  # steps, and so passes, are counted in 32 bits
MOST_SEED = (1 << 63) - 1
WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*(\.[0-9]*)?([eE]\+?[0-9]{1,3})?")


def number(text: str) -> int:
    """A whole number as people write it: 10000, 10_000 or 1e4."""
    value = float(text) if WHOLE.fullmatch(text.strip()) else math.nan
    if not math.isfinite(value) or value != int(value):
        raise argparse.ArgumentTypeError(
            f"expected a whole number, such as 10000 or 1e4, got {text[:40]!r}"
        )
    plain = text.strip().replace("_", "")
    return int(plain) if plain.lstrip("+-").isdigit() else int(value)


def count(text: str) -> int:
    """A whole number of at least 1, such as of forward passes."""
    value = number(text)
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(
            f"must be {'>= 1' if value < 1 else f'<= {MOST}'}, got {text[:40]}; try 10000"
        )
    return value


def seed(text: str) -> int:
    """A whole number in [0, 2^63)."""
    value = number(text)
    if not 0 <= value <= MOST_SEED:
        raise argparse.ArgumentTypeError(f"must be >= 0 and below 2^63, got {text[:40]}; try 0")
    return value


def _float(text: str) -> float:
    """The number that a text says; NaN if it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def rate(text: str) -> float:
    """A finite number of at least 0."""
    value = _float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected a finite number >= 0, such as 0.01, got {text[:40]!r}"
        )
    return value


def share(text: str) -> float:
    """A number from 0 to 0.5."""
    value = _float(text)
    if not 0 <= value <= 0.5:
        raise argparse.ArgumentTypeError(
            f"expected a number from 0 to 0.5, such as 0.1, got {text[:40]!r}"
        )
    return value


def names(text: str) -> list[str]:
    """Names with commas between."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(
            f"expected names with commas between, such as units,price, got {text[:40]!r}"
        )
    return found
