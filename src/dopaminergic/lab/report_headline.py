"""The first table of a report: the best of this library's rules, Adam, and the best other method.

Each task is one row. All methods, with their intervals, are in the tables further down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dopaminergic.lab.drawing import OURS
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import LABELS, compact
from dopaminergic.lab.standings import Place, Standing, standings
from dopaminergic.lab.tables import Cell

NEWEST = ("node", "vector")


class Headline(NamedTuple):
    """The first table.

    Attributes:
        columns: names of the columns.
        rows: the name, the unit and the cells of each task.
        references: by the number of a row, the forecasts without a network that belong below it.
        left: tasks that have no row, as fewer of the columns have run there.
    """

    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    references: dict[int, str]
    left: int


def headline(records: Iterable[Record]) -> Headline | None:
    """The first table; None where no task has two of its columns.

    The columns are NodeDopamine and VectorDopamine, or the best Dopamine rule where neither has
    run, then Adam, then the best of all other methods.
    """
    found = standings(records)
    ran = {place.optimizer for standing in found for place in standing.places}
    newest = [name for name in NEWEST if name in ran]
    cells_of = [_row(standing, newest, "adam" in ran) for standing in found]
    filled = [sum(bool(cell.text) for cell in cells) for cells in cells_of]
    rows = []
    references = {}
    for standing, cells, count in zip(found, cells_of, filled, strict=True):
        if count < max(2, *filled):
            continue
        if standing.references:
            told = [f"{words.lower()} {compact(error)}" for _, words, error in standing.references]
            references[len(rows)] = f"Without a network: {', '.join(told)}."
        rows.append((standing.title, standing.measure.removeprefix("test "), _marked(cells)))
    if not rows:
        return None
    columns = [LABELS[name] for name in newest] or ["Best Dopamine rule"]
    columns += ["Adam"] if "adam" in ran else []
    return Headline([*columns, "Best other"], rows, references, len(found) - len(rows))


def _row(standing: Standing, newest: Sequence[str], has_adam: bool) -> list[Cell]:
    ours = [_cell(_of(standing.places, (name,)), False) for name in newest]
    ours = ours or [_cell(_of(standing.places, OURS), True)]
    adam = [_cell(_of(standing.places, ("adam",)), False)] if has_adam else []
    taken = {*(newest or OURS), "adam"}
    others = [place.optimizer for place in standing.places if place.optimizer not in taken]
    return [*ours, *adam, _cell(_of(standing.places, others), True)]


def _of(places: Sequence[Place], optimizers: Sequence[str]) -> Place | None:
    """The best of these optimizers on a task; places are in the order of their errors."""
    return next((place for place in places if place.optimizer in optimizers), None)


def _cell(place: Place | None, named: bool) -> Cell:
    if place is None:
        return Cell("")
    error = place.error.value
    text = compact(error) if math.isfinite(error) else "diverges"
    return Cell(text, place.method if named else "", value=error)


def _marked(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the best in bold: all those that show the least error's text."""
    finite = [(cell.value, cell.text) for cell in cells if math.isfinite(cell.value)]
    best = min(finite)[1] if len(finite) > 1 else None
    return [cell._replace(best=bool(cell.text) and cell.text == best) for cell in cells]
