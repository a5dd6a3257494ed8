"""Arithmetic with terms: directions, each with a multiple of it for every group of parameters."""

from __future__ import annotations

import numpy as np

# A multiple of a direction: one number, or float64 of shape (R,), one for each replica.
Multiple = float | np.ndarray
# A direction's number, in [0, 2^28), with a multiple of it for each group of parameters.
Term = tuple[int, list[Multiple]]

UPDATE = 0  # the random numbers that round 16-bit weights in an update


def perturbation(direction: int) -> int:
    """The random numbers that round 16-bit weights which are displaced along a direction.

    An update has others. Otherwise weights that were rounded up while the loss was measured would
    be rounded up again.
    """
    return 1 + direction


def scaled(terms: list[Term], scales: list[Multiple]) -> list[Term]:
    """Multiply terms by a number for each group."""
    return [
        (direction, [m * s for m, s in zip(ms, scales, strict=True)]) for direction, ms in terms
    ]


def negative(terms: list[Term]) -> list[Term]:
    """The terms that lead the way back."""
    return [(direction, [-m for m in multiples]) for direction, multiples in terms]


def along_one(some: list[Term], others: list[Term]) -> bool:
    """Whether each is one term, and both are along the same direction."""
    return len(some) == len(others) == 1 and some[0][0] == others[0][0]


def difference(some: list[Term], others: list[Term]) -> list[Term]:
    """The difference of terms along the same directions."""
    pairs = zip(some, others, strict=True)
    return [
        (direction, [m - n for m, n in zip(ms, ns, strict=True)])
        for (direction, ms), (_, ns) in pairs
    ]


def nonzero(terms: list[Term]) -> list[Term]:
    """Leave out the directions that move nothing, which need not be drawn."""
    return [
        (direction, multiples) for direction, multiples in terms if any(map(_is_any, multiples))
    ]


def _is_any(multiple: Multiple) -> bool:
    # Numbers are asked for first, here and below: numpy would make arrays of them.
    return multiple != 0 if isinstance(multiple, float) else bool(np.any(multiple))


def equal(some: list[Term], others: list[Term]) -> bool:
    """Whether they have the same directions, in the same order, and the same multiples."""
    return len(some) == len(others) and all(
        a == b and all(map(_are_equal, old, new))
        for (a, old), (b, new) in zip(some, others, strict=True)
    )


def _are_equal(a: Multiple, b: Multiple) -> bool:
    return a == b if isinstance(a, float) and isinstance(b, float) else np.array_equal(a, b)
