"""The order of the rows of a series in time, told by its dates.

Rows out of order are not learned unseen.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dopaminergic.lab.tasks.cells import place

Keys = NDArray[np.int64]

NAMES = re.compile(
    r"(date|datum|fecha|data|time|zeit|timestamp|datetime|year|jahr|ann[ée]e|ano|año|tag|day|hour|stunde)",
    re.IGNORECASE,
)
CLOCKS = re.compile(r".*(time|zeit|hour|stunde|minute|heure|hora).*", re.IGNORECASE)
TOTALS = re.compile(
    r"\W*(grand "
    r"|sub)?(total|totals|sum|summe|gesamt|gesamtsumme|insgesamt|totale|totaux|suma|average|mean|mittelwert"
    r"|durchschnitt|moyenne|count|eof|end)\b.*",
    re.IGNORECASE | re.DOTALL,
)
NUMBER = re.compile(r"\s*[+-]?[\d.,]+(?:[eE][+-]?\d+)?\s*")
DATE = re.compile(r"(?=.*\d)[\w .:/,+-]*[-/.: ][\w .:/,+-]*|\d{4}-?[QqWw]\d+")


def check_order(
    where: str, others: dict[str, Sequence[Any]], lines: Sequence[int] | None, notes: list[str]
) -> bool:
    """Whether the rows are in the opposite order of their dates, so that they must be turned round.

    Args:
        where: the file, for messages.
        others: the columns that are not forecast, by name.
        lines: the line of each row, None where the file has none.
        notes: gets a note where rows are to be turned round.

    Raises:
        ValueError: a line of totals, a date that cannot be read, goes back or comes twice; the
            message has the line.
    """
    for name, cells in others.items():
        _check_totals(where, name, cells, lines)
    clocks = [name for name in others if CLOCKS.fullmatch(name)]
    for name, cells in others.items():
        if are_dates(cells):
            keys = [each.keys for each in read_dates(where, name, cells, lines)]
            alone = not [clock for clock in clocks if clock != name]
            return _direction(
                f"{where}: the dates of column {name[:40]!r}", keys, cells, lines, alone, notes
            )
    for name, cells in others.items():
        if NAMES.fullmatch(name.strip()):
            _check_descent(where, name, cells, lines)
    return False


def _check_totals(where: str, name: str, cells: Sequence[Any], lines: Sequence[int] | None) -> None:
    """Check the last rows alone: a word in the midst of a column of words says nothing."""
    for row in range(max(1, len(cells) - 3), len(cells)):
        cell = cells[row]
        rare = (
            isinstance(cell, str)
            and TOTALS.fullmatch(cell)
            and not any(map(TOTALS.fullmatch, cells[:row]))
        )
        if rare:
            raise ValueError(
                f"{where}: column {name[:40]!r} holds {cell[:40]!r} in {place(row, lines)}: a line "
                "of totals? remove it"
            )


def are_dates(cells: Sequence[Any]) -> bool:
    """Whether a column holds dates, as text or as dates of pandas."""
    import pandas

    if not len(cells):
        return False
    if not isinstance(cells[0], str):
        return pandas.api.types.is_datetime64_any_dtype(cells)
    some = [cell for cell in cells[:: max(1, len(cells) // 50)] if cell.strip()]
    dates = [cell for cell in some if DATE.fullmatch(cell.strip()) and not NUMBER.fullmatch(cell)]
    return (
        bool(dates)
        and 10 * len(dates) >= 9 * len(some)
        and _parsed(dates[:1], False).keys is not None
    )


class Parsed(NamedTuple):
    """Dates as numbers in the order of time, or None and the first row that is no date.

    `per_second` is how many of their units a second has.
    """

    keys: Keys | None
    row: int
    per_second: int


UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _parsed(cells: Sequence[Any], day_first: bool) -> Parsed:
    """The dates as numbers; half of one format is no date either."""
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dates whose format pandas cannot infer
        try:
            found = pandas.Series(
                pandas.to_datetime(
                    pandas.Series(cells), errors="coerce", dayfirst=day_first, utc=True
                )
            )
        except (ValueError, OverflowError, TypeError):
            return Parsed(None, 0, 1)
    lost = found.isna().to_numpy()
    if lost.any():
        return Parsed(None, int(lost.argmax()), 1)
    return Parsed(found.astype("int64").to_numpy(), 0, UNITS[found.dt.unit])


def read_dates(
    where: str, name: str, cells: Sequence[Any], lines: Sequence[int] | None
) -> list[Parsed]:
    """The readings of the dates, month or day first, as numbers."""
    readings = [_parsed(cells, day_first) for day_first in (False, True)]
    whole = [reading for reading in readings if reading.keys is not None]
    if not whole:
        row = max(reading.row for reading in readings)
        raise ValueError(
            f"{where}: column {name[:40]!r} holds {str(cells[row])[:40]!r} in {place(row, lines)}, "
            "which is "
            "no date like those before it; correct or remove the row (a line of totals?)"
        )
    return whole


def _direction(
    what: str,
    readings: list[Keys | None],
    cells: Sequence[Any],
    lines: Sequence[int] | None,
    alone: bool,
    notes: list[str],
) -> bool:
    # Not by differences: those of dates that are centuries apart do not fit into 64 bits.
    steps = [
        (keys[1:] > keys[:-1]).astype(int) - (keys[1:] < keys[:-1])
        for keys in readings
        if keys is not None
    ]
    if any((step > 0).all() or (not alone and (step >= 0).all()) for step in steps):
        return False
    if any((step < 0).all() for step in steps):
        notes.append(f"{what} go from the newest to the oldest; the rows were turned round")
        return True
    step = max(steps, key=lambda each: int((each > 0).sum()))
    row = int((step < 0 if (step < 0).any() else step == 0).argmax()) + 1
    fault = "go back" if (step < 0).any() else "repeat"
    raise ValueError(
        f"{what} {fault} at {str(cells[row])[:40]!r} in {place(row, lines)}, after "
        f"{str(cells[row - 1])[:40]!r}; sort "
        "the rows by date and keep one row for each, or leave that column out of the file"
    )


def _check_descent(
    where: str, name: str, cells: Sequence[Any], lines: Sequence[int] | None
) -> None:
    """Check a column of times or years that are numbers.

    Those of a month or a day of the week may return.
    """
    import pandas

    keys = pandas.Series(pandas.to_numeric(pandas.Series(cells), errors="coerce"))
    lost = keys.isna().to_numpy()
    if 10 * lost.sum() > len(keys):
        return
    if lost.any():
        row = int(lost.argmax())
        raise ValueError(
            f"{where}: column {name[:40]!r} holds {str(cells[row])[:40]!r} in {place(row, lines)}, "
            "which is "
            "no number like the others; correct or remove the row (a line of totals?)"
        )
    step = np.diff(keys.to_numpy(dtype=np.float64))
    if len(step) and (step <= 0).all() and (step < 0).any():
        raise ValueError(
            f"{where}: column {name[:40]!r} goes down from {str(cells[0])[:40]} in "
            f"{place(0, lines)} to "
            f"{str(cells[-1])[:40]}: newest first? sort the rows with the oldest first, or leave "
            "that column out of "
            "the file"
        )
