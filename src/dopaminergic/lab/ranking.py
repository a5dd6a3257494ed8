"""Standings on a terminal: a table of 80 columns, or two lines for each method on a narrow one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dopaminergic.lab.standings import Place, Standing, short
from dopaminergic.lab.terminal import clean, columns, fill

BARS = "▁▂▃▄▅▆▇█"
WIDE = 78  # columns that the table takes


def lines_of(found: Sequence[Standing]) -> list[str]:
    """The lines that show results; none is longer than the terminal is wide."""
    lines: list[str] = []
    for standing in found:
        lines += [*_standing(standing), ""]
    if not found:
        return lines
    notes = "Passes and seconds are those of one run."
    if any(place.optimizer in ("sgd", "adam") for each in found for place in each.places):
        notes += " A step of SGD or Adam counts as 3 passes: forward, and backward as two."
    if any(place.best for each in found for place in each.places):
        notes = f"* the lowest median. {notes}"
    return [*lines, *fill(notes).splitlines()]


def _standing(standing: Standing) -> list[str]:
    sizes = sorted({place.error.n for place in standing.places})
    count = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    runs = f"median of {count} seeds" if sizes[-1] > 1 else "1 seed"
    lines = fill(f"{standing.title}: {standing.measure}, lower is better; {runs}").splitlines()
    width = columns()
    lowest, highest = _reach(standing)
    if width >= WIDE:
        lines.append(
            f"  {'method':19} {'median':>8}  {'95 % interval':17} {'passes':>7} {'seconds':>7}"
            "  curve"
        )
        lines += [_row(place, lowest, highest) for place in standing.places]
    else:
        for place in standing.places:
            lines += _paragraph(place, width, lowest, highest)
    for _, words, value in standing.references:
        name = f"({words.lower()})"
        lines += (
            [f"  {name:19} {short(value):>8}"]
            if len(name) <= 19
            else [f"  {name:{max(19, min(len(name), width - 12))}} {short(value)}"]
        )
    return lines


def _row(place: Place, lowest: float, highest: float) -> str:
    mark = "*" if place.best else " "
    return (
        f"{mark} {clean(place.method)[:19]:19} {short(place.error.value):>8}  "
        f"{_interval(place):17} {short(place.passes):>7} {short(place.seconds):>7}  "
        f"{spark(place.curve, lowest, highest)}"
    ).rstrip()


def _paragraph(place: Place, width: int, lowest: float, highest: float) -> list[str]:
    mark = "*" if place.best else " "
    interval = _interval(place)
    cost = f"{short(place.passes)} passes, {short(place.seconds)} s"
    below = [f"    {interval}", f"    {cost}"] if interval else [f"    {cost}"]
    if interval and len(below[0]) + 2 + len(cost) <= width:
        below = [f"    {interval}, {cost}"]
    head = f"{mark} {clean(place.method)[:19]:19} {short(place.error.value):>8}"
    curve = f"    {spark(place.curve, lowest, highest)}".rstrip()
    return [line[:width] for line in (head, *below, *([curve] if curve else []))]


def _interval(place: Place) -> str:
    low, high = short(place.error.low), short(place.error.high)
    return "" if math.isnan(place.error.low) else low if low == high else f"{low} to {high}"


def _reach(standing: Standing) -> tuple[float, float]:
    """The least and largest error of all curves that are to be told apart.

    A curve that runs away is cut at the error of networks that have learned nothing yet.
    """
    starts = [place.curve[0] for place in standing.places if place.curve]
    every = [error for place in standing.places for error in place.curve if 0 < error < math.inf]
    return min(every, default=1.0), max((s for s in starts if math.isfinite(s)), default=1.0)


def spark(curve: Sequence[float], lowest: float, highest: float) -> str:
    """A learning curve in one line: bars of the logarithm of the error.

    >>> spark([1.0, 0.1, 0.01], 0.01, 1.0)
    '█▅▁'
    """
    if not highest > lowest > 0:
        return ""
    span = math.log(highest / lowest)
    shown = []
    for error in curve:
        share = 0.0 if error <= 0 else 1.0
        if 0 < error < math.inf:
            share = min(1.0, max(0.0, math.log(error / lowest) / span))
        shown.append(BARS[round(share * (len(BARS) - 1))])
    return "".join(shown)
