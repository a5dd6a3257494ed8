"""The column of times of a series: its labels, the step between rows, and labels that follow.

For example, monthly dates go on with the first days of months, and years with the next number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dopaminergic.files import shown
from dopaminergic.lab.tasks.cells import numbers_of, place
from dopaminergic.lab.tasks.order import are_dates, read_dates

UNEQUAL = 4 / 3  # ratio of two steps from which on they are not the same; months differ by 31 / 28
FEW = 0.1  # share of steps that may be unequal before a reader is told


class Times(NamedTuple):
    """The times of rows.

    Attributes:
        name: of the column.
        kind: "dates" or "numbers".
        labels: the cells as they were written, the oldest first, of rows that are known.
        future: the cells of the rows after them.
        last: the last one of all, in the form that `following` takes.
        step: the median step, in seconds or in the unit of the numbers.
        frequency: pandas' name of the steps of dates, "" if there is none.
    """

    name: str
    kind: str
    labels: list[str]
    future: list[str]
    last: str
    step: float
    frequency: str

    def about(self) -> dict[str, Any]:
        """All but the labels, in plain types."""
        return {name: getattr(self, name) for name in self._fields if name != "labels"}


def read_times(
    where: str,
    name: str,
    cells: Sequence[Any],
    known: int,
    lines: Sequence[int] | None,
    notes: list[str],
) -> Times:
    """The times of a column; it is in the order of rows, or in the opposite one.

    Args:
        where: the file, for messages.
        name: of the column.
        cells: it.
        known: how many of its rows are known, the first ones.
        lines: the line of each row, None where the file has none.
        notes: gets a note where steps are not equal.

    Raises:
        ValueError: a cell is no date and no number, or times neither rise nor fall.
    """
    dated = are_dates(cells)
    if dated:
        readings = [
            each.keys / each.per_second
            for each in read_dates(where, name, cells, lines)
            if each.keys is not None
        ]
        keys = next((each for each in readings if _one_way(each)), readings[0])
    else:
        texts = [str(cell) for cell in cells]
        keys = numbers_of(f"{where}: column {name[:60]!r}", texts, lines, False, [])
    if len(keys) < 3:
        raise ValueError(f"{where}: column {name[:40]!r}: {len(keys)} times tell no step; give 3")
    if not _one_way(keys):
        fault = int((np.sign(np.diff(keys)) != np.sign(keys[-1] - keys[0])).argmax()) + 1
        raise ValueError(
            f"{where}: column {name[:40]!r} does not rise at {str(cells[fault])[:40]!r} in "
            f"{place(fault, lines)}; sort the rows by it and keep one row for each time"
        )
    labels = [shown(str(cell)).strip() for cell in cells]
    if keys[0] > keys[-1]:
        keys, labels = keys[::-1], labels[::-1]
    times = _times(name, keys, labels, dated, notes)
    return times._replace(labels=labels[:known], future=labels[known:])


def _one_way(keys: Any) -> bool:
    steps = np.diff(keys)
    return bool((steps > 0).all() or (steps < 0).all())


def _times(name: str, keys: Any, labels: list[str], dated: bool, notes: list[str]) -> Times:
    steps = np.diff(keys)
    step = float(np.median(steps))
    frequency = _frequency(keys) if dated else ""
    unequal = np.maximum(steps / step, step / steps) > UNEQUAL
    if not frequency and unequal.mean() > FEW:
        notes.append(
            f"the steps of column {name[:40]!r} are not equal ({_span(steps.min(), dated)} to "
            f"{_span(steps.max(), dated)}); each row counts as one step all the same"
        )
    last = _iso(int(keys[-1])) if dated else repr(float(keys[-1]))
    return Times(name, "dates" if dated else "numbers", labels, [], last, step, frequency)


def _frequency(seconds: Any) -> str:
    import pandas

    try:
        index = pandas.to_datetime(seconds[-200:].astype("int64"), unit="s")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the next pandas gives an offset in place of text
            found = pandas.infer_freq(pandas.DatetimeIndex(index))
        return str(getattr(found, "freqstr", found) or "")
    except (ValueError, OverflowError, TypeError):  # centuries that pandas' nanoseconds do not hold
        return ""


def _iso(seconds: int) -> str:
    text = str(np.datetime64(seconds, "s"))
    return text.removesuffix("T00:00:00").replace("T", " ")


def following(about: dict[str, Any], count: int) -> list[str]:
    """The labels of so many rows after the last one.

    >>> month = {"kind": "dates", "last": "2024-11-01", "step": 2.6e6, "frequency": "MS"}
    >>> following(month, 3)
    ['2024-12-01', '2025-01-01', '2025-02-01']
    >>> following({"kind": "numbers", "last": "2008.0", "step": 1.0, "frequency": ""}, 2)
    ['2009', '2010']
    """
    if about["kind"] == "numbers":
        last = float(about["last"])
        return [f"{last + about['step'] * i:.12g}" for i in range(1, count + 1)]
    if about["frequency"]:
        import pandas

        start = pandas.Timestamp(about["last"])
        dates = pandas.date_range(start, periods=count + 1, freq=about["frequency"])
        return [_iso(int(date.timestamp())) for date in dates if date > start][:count]
    first = np.datetime64(about["last"], "s").astype(np.int64)
    return [_iso(int(first + round(about["step"] * i))) for i in range(1, count + 1)]


def check_spacing(where: str, own: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise unless new rows are as far apart as those that a network was trained on.

    Args:
        where: the new file, for the message.
        own: `Times.about` of the training.
        theirs: of the new file.
    """
    if own["kind"] != theirs["kind"]:
        raise ValueError(
            f"{where}: column {theirs['name'][:40]!r} holds {theirs['kind']}, in training it held "
            f"{own['kind']}; give it in the same form"
        )
    ratio = theirs["step"] / own["step"]
    if max(ratio, 1 / ratio) > UNEQUAL:
        dated = own["kind"] == "dates"
        raise ValueError(
            f"{where}: rows are {_span(theirs['step'], dated)} apart, in training they were "
            f"{_span(own['step'], dated)}; give rows of that spacing, or train on these"
        )


def _span(step: float, dated: bool) -> str:
    """A step in words: days, hours or seconds of dates, else a number."""
    if not dated:
        return f"{step:g}"
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if step >= seconds:
            return f"{step / seconds:.3g} {unit}"
    return f"{step:.3g} seconds"
