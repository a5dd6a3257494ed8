"""Standings on a terminal: a table of 80 columns, or two lines for each method on a narrow one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dopaminergic.lab.standings import Place, Standing, short
from dopaminergic.lab.terminal import clean, columns, fill

BARS = "▁▂▃▄▅▆▇█"
WIDE = 70  # columns that a table takes
FEWEST_BARS = 4  # of a curve; a shorter one says nothing
HEAD: tuple[str, ...] = ("  method", "median", "95 % interval", "passes", "seconds")
HEAD_OF_ONE: tuple[str, ...] = ("  method", "error", "passes", "seconds")


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
    return [*lines, *(_table(standing) if columns() >= WIDE else _paragraphs(standing))]


def _table(standing: Standing) -> list[str]:
    """A row for each method, and for each reference."""
    rows = [HEAD] if any(_interval(place) for place in standing.places) else [HEAD_OF_ONE]
    for place in standing.places:
        interval = [_interval(place)] if rows[0] is HEAD else []
        name = f"{'*' if place.best else ' '} {clean(place.method)[:20]}"
        cost = [short(place.passes), short(place.seconds)]
        rows.append((name, short(place.error.value), *interval, *cost))
    for _, words, value in standing.references:
        rows.append((f"  ({words.lower()})", short(value), *[""] * (len(rows[0]) - 2)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 or (i == 2 and rows[0] is HEAD) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    room = columns() - len(lines[0]) - 2
    if room >= FEWEST_BARS:
        lowest, highest = _reach(standing)
        lines[0] += "  curve"
        for i, place in enumerate(standing.places, 1):
            lines[i] += f"  {spark(_thinned(place.curve, room), lowest, highest)}"
    return [line.rstrip() for line in lines]


def _thinned(curve: Sequence[float], most: int) -> list[float]:
    """At most so many points of a curve, its ends among them."""
    count = min(most, len(curve))
    return [curve[round(i * (len(curve) - 1) / max(1, count - 1))] for i in range(count)]


def _paragraphs(standing: Standing) -> list[str]:
    """A few short lines for each method, and one for each reference."""
    width = columns()
    lowest, highest = _reach(standing)
    lines: list[str] = []
    for place in standing.places:
        mark = "*" if place.best else " "
        lines.append(f"{mark} {clean(place.method)[:19]:19} {short(place.error.value):>8}")
        cost = f"{short(place.passes)} passes, {short(place.seconds)} s"
        interval = _interval(place)
        lines += [f"    {interval}", f"    {cost}"] if interval else [f"    {cost}"]
        lines.append(f"    {spark(_thinned(place.curve, width - 4), lowest, highest)}")
    for _, words, value in standing.references:
        name = f"({words.lower()})"
        short_name = f"  {name:19} {short(value):>8}"
        lines.append(short_name if len(name) <= 19 else f"  {name} {short(value)}")
    return [line[:width].rstrip() for line in lines if line.strip()]


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
