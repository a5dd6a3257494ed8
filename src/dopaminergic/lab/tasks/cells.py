"""Cells as numbers: decimal points or commas, thousands in groups.

A cell with two readings, such as `1,234`, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXPONENT = r"(?:[eE][+-]?[0-9]+)?"
BLANKS = " \u00a0\u202f\u2009'\u2019"
MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "nat"}
INFINITE = {sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")}
# A comma that no one writes between thousands: not three digits after it.
DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})\s*")


class Form(NamedTuple):
    """A way to write numbers.

    Attributes:
        pattern: a whole cell.
        thousands: characters between groups of digits, which are left out.
        comma: whether the decimal sign is a comma.
        words: for notes.
    """

    pattern: re.Pattern[str]
    thousands: str
    comma: bool
    words: str

    def fits(self, cell: str) -> bool:
        """Whether the cell is a number written so."""
        return self.pattern.fullmatch(cell) is not None

    def number(self, cell: str) -> float:
        """The number, correctly rounded."""
        plain = cell.translate({ord(sign): None for sign in self.thousands})
        return float(plain.replace(",", ".") if self.comma else plain)


def _form(group: str, decimal: str, words: str) -> Form:
    """Groups of three digits, or none, before the decimal sign."""
    whole = rf"(?:[0-9]{{1,3}}(?:[{group}][0-9]{{3}})+|[0-9]+)"
    part = rf"(?:{whole}(?:{decimal}[0-9]*)?|{decimal}[0-9]+)"
    comma = decimal == ","
    return Form(re.compile(rf"[+-]?{part}{EXPONENT}"), group.replace("\\", ""), comma, words)


PLAIN = Form(re.compile(rf"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+){EXPONENT}"), "", False, "")
AMERICAN = _form(",", r"\.", "commas between thousands")
EUROPEAN = _form(r"\.", ",", "decimal commas")
SPACED = _form(BLANKS, r"\.", "spaces or apostrophes between thousands")
SPACED_COMMA = _form(BLANKS, ",", "decimal commas and spaces between thousands")
FORMS = (PLAIN, AMERICAN, EUROPEAN, SPACED, SPACED_COMMA)


def has_decimal_comma(cells: Iterable[str]) -> bool:
    """Whether a cell is a number with a decimal comma and nothing else, such as `3,5`."""
    return any("," in cell and DECIMAL_COMMA.fullmatch(cell) for cell in cells)


def numbers_of(
    where: str, column: Sequence[str], lines: Sequence[int] | None, comma: bool, notes: list[str]
) -> NDArray[np.float64]:
    """The numbers of a column.

    Args:
        where: file and column, for messages.
        column: the cells.
        lines: the line of each, None where the file has none.
        comma: whether other cells of the file have decimal commas.
        notes: gets a note on how the numbers are written, where it is not the plain way.

    Raises:
        ValueError: a cell is not a number, has two readings, is missing, infinite, or too large or
            small for a float64.
    """
    cells = [cell.strip() for cell in column]
    gaps = [
        i for i, cell in enumerate(cells) if cell.lower() in MISSING or cell.lower() in INFINITE
    ]
    absent = set(gaps)
    present = [cell for i, cell in enumerate(cells) if i not in absent]
    form = _choose(where, present, comma, lambda i: place(i, lines), cells)
    wrong = [i for i, cell in enumerate(cells) if i not in absent and not form.fits(cell)]
    if wrong:
        raise ValueError(
            f"{where} has {len(wrong)} cells that are not numbers, the first "
            f"{cells[wrong[0]][:40]!r} in "
            f"{place(wrong[0], lines)}; correct or remove them"
        )
    if gaps:
        raise ValueError(gap_message(where, len(gaps), gaps[0], lines))
    if form.words and any(not PLAIN.fits(cell) for cell in cells):
        example = next(cell for cell in cells if not PLAIN.fits(cell))
        notes.append(
            f"{where.split(': ')[-1]}: read with {form.words}, {example!r} as "
            f"{form.number(example)!r}"
        )
    values = np.array([form.number(cell) for cell in cells], dtype=np.float64)
    for i in np.flatnonzero(~np.isfinite(values) | (values == 0)).tolist():
        if values[i] or re.search("[1-9]", re.split("[eE]", cells[i])[0]):
            raise ValueError(
                f"{where}: {cells[i][:40]!r} in {place(i, lines)} is too "
                f"{'large' if values[i] else 'small'} for a "
                "float64; give the column in other units"
            )
    return values


def _choose(
    where: str, present: list[str], comma: bool, say: Callable[[int], str], cells: list[str]
) -> Form:
    """The way in which most cells are written, the plain one where others fit as well."""
    counts = {form: sum(map(form.fits, present)) for form in FORMS}
    every = [form for form, count in counts.items() if count == len(present)]
    if comma and EUROPEAN in every:
        return EUROPEAN
    if PLAIN in every:
        return PLAIN
    if AMERICAN in every and EUROPEAN in every and not comma:
        cell = next(cell for cell in present if "," in cell)
        raise ValueError(
            f"{where}: {cell[:40]!r} in {say(cells.index(cell))} has two readings, with a comma "
            "between thousands or "
            "with a decimal comma; write it with a decimal point or without the comma"
        )
    return max(FORMS, key=counts.__getitem__)


def tail(path: object) -> str:
    """A path for messages, its end alone where it is long."""
    text = str(path)
    return text if len(text) <= 60 else f"...{text[-57:]}"


def place(row: int, lines: Sequence[int] | None) -> str:
    """Where a row is: its number, counted from 1 without the names, and its line in the file."""
    return f"row {row + 1}" + (f" (line {lines[row]})" if lines is not None else "")


def gap_message(where: str, count: int, row: int, lines: Sequence[int] | None) -> str:
    """The message of missing values."""
    return (
        f"{where} has {count} missing or infinite values, the first in {place(row, lines)}; fill "
        "them first, for "
        "example with pandas' Series.interpolate() or ffill()"
    )
