"""Where a step evaluates the closure: at the weights, and at either side of its directions.

    one-sided   W, W + sigma z_0, W + sigma z_1, ...
    two-sided   W + sigma z_0, W - sigma z_0, W + sigma z_1, ...

A rule of one's own may name others, for example the weights and both sides of each direction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One place at which the closure is evaluated.

    Attributes:
        direction: number k of the direction z_k; None: at the weights themselves.
        side: 1 or -1, for W + side sigma z_k; 0 at the weights.
    """

    direction: int | None
    side: int


BASE = Point(None, 0)
Plan = tuple[Point, ...]


@functools.lru_cache
def one_sided(directions: int) -> Plan:
    """The weights, then one side of each direction: K + 1 points."""
    return (BASE, *(Point(k, 1) for k in range(directions)))


@functools.lru_cache
def two_sided(directions: int) -> Plan:
    """Both sides of each direction: 2K points."""
    return tuple(Point(k, side) for k in range(directions) for side in (1, -1))


@functools.lru_cache
def check(plan: Plan, rule: str) -> None:
    """Raise unless a plan can be evaluated: the weights first if at all, and no point twice.

    Raises:
        ValueError: it cannot.
    """
    if BASE in plan[1:] or len(set(plan)) < len(plan) or not plan:
        raise ValueError(
            f"{rule}: points must be different, and BASE, if it is one of them, the first; got "
            f"{list(plan)[:6]}"
        )
    for direction, side in plan:
        if (direction is None) != (side == 0) or side not in (-1, 0, 1):
            raise ValueError(
                f"{rule}: a point is BASE or Point(k, 1) or Point(k, -1), got ({direction}, {side})"
            )


def directions(plan: Sequence[Point]) -> list[int]:
    """The directions of a plan, each once, in the order in which they come."""
    return list(dict.fromkeys(point.direction for point in plan if point.direction is not None))


def by_direction(plan: Plan) -> list[list[Point]]:
    """The points of each direction, which are only of use together, and the weights alone."""
    found: dict[int | None, list[Point]] = {}
    for point in plan:
        found.setdefault(point.direction, []).append(point)
    return list(found.values())
