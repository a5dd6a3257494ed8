"""Tables of a report.

They show medians of all methods on all tasks, the shares that met a threshold, and the references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dopaminergic.lab import statistics
from dopaminergic.lab.drawing import GRADIENTS
from dopaminergic.lab.records import Record
from dopaminergic.lab.references import REFERENCES, is_reference, reference_rows
from dopaminergic.lab.results import (
    LABELS,
    METRICS,
    Cells,
    Method,
    by_task,
    compact,
    final_error,
    has_threshold,
    method_title,
    metric_name,
    metric_title,
    solved_at,
)

HIGHER_IS_BETTER = ("vpt", "accuracy")
# Those that a reader compares first; the others follow in the order of LABELS.
FIRST_COLUMNS = ("node", "vector", "adam")


class Cell(NamedTuple):
    """A number of a table: its text, the smaller text below, and whether it is its row's best."""

    text: str
    below: str = ""
    best: bool = False
    best_without_gradients: bool = False
    value: float = math.nan  # the number that sorts


class Table(NamedTuple):
    """A table of methods in columns.

    It has a heading, a note, names of the columns, and rows of (name, unit, cells).
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]


def _range(found: statistics.Estimate) -> str:
    if math.isnan(found.low):
        return ""
    low = compact(found.low)
    high = compact(found.high)
    return low if low == high else f"{low}–\u200b{high}"  # noqa: RUF001 (a zero-width space lets narrow columns break)


def _marked(
    cells: Sequence[Cell | None], ranks: Sequence[float], methods: Sequence[Method]
) -> list[Cell]:
    """The cells of a row with the best marked, the lowest rank being best.

    NaN is never best, and None is an empty cell. Numbers that look equal are equal: of cells that
    show the best one's text all are marked.
    """
    shown = [Cell("") if cell is None else cell for cell in cells]
    forward = [
        rank if name not in GRADIENTS else math.nan
        for rank, (name, _) in zip(ranks, methods, strict=True)
    ]
    best = _least(shown, ranks)
    best_forward = _least(shown, forward)
    return [
        cell._replace(
            best=math.isfinite(rank) and cell.text == best,
            best_without_gradients=math.isfinite(ahead) and cell.text == best_forward,
        )
        for cell, rank, ahead in zip(shown, ranks, forward, strict=True)
    ]


def _least(cells: Sequence[Cell], ranks: Sequence[float]) -> str | None:
    """The text of the best cell; None where fewer than two can be compared."""
    finite = [
        (rank, cell.text) for cell, rank in zip(cells, ranks, strict=True) if math.isfinite(rank)
    ]
    return min(finite)[1] if len(finite) > 1 else None


def tables(records: Iterable[Record]) -> list[Table]:
    """The tables of results: final errors, solved runs, other measures; empty ones are left out."""
    tasks = by_task(records)
    methods = sorted({method for cells in tasks.values() for method in cells}, key=rank_of)
    columns = [_column(method, methods) for method in methods]
    errors = []
    solved = []
    others = []
    references = []
    for title, cells in tasks.items():
        errors.append((title, first_of(cells, metric_title), _error_row(cells, methods)))
        if has_threshold(run for runs in cells.values() for run in runs):
            solved.append((title, "solved; median passes", _solved_row(cells, methods)))
        for name in dict.fromkeys(
            name for runs in cells.values() for run in runs for name in run.get("metrics", {})
        ):
            if name != metric_name(
                run for runs in cells.values() for run in runs
            ) and not is_reference(name):
                others.append((title, _measure(name), _metric_row(cells, methods, name)))
        references += [
            (title, _measure(name), [Cell(text) for text in texts])
            for name, texts in reference_rows(cells)
        ]
    bold = "Bold: the best of the row; underlined: the best without gradients."
    return [
        table
        for table in (
            Table(
                "Final test error",
                f"Median over seeds, below it the bootstrap 95 % interval. {bold}",
                columns,
                errors,
            ),
            Table(
                "Runs that met the task's threshold",
                "Share of runs, below it the median of forward passes to the threshold (∞: the "
                "median run never met "
                f"it). The 95 % intervals are in summary.json. {bold}",
                columns,
                solved,
            ),
            Table(
                "Forecasts without a network",
                "Errors in the unit of the task's own. Persistence repeats the last value; the "
                "autoregression is a "
                "linear fit to the training part. A network with a larger error is of no use "
                "there.",
                [*REFERENCES.values(), "Medians above the autoregression"],
                references,
            ),
            *_dense(f"Median over seeds. {bold}", columns, others, tasks, methods),
        )
        if table.rows
    ]


Row = tuple[str, str, list[Cell]]


def _dense(
    note: str,
    columns: list[str],
    rows: list[Row],
    tasks: dict[str, Cells],
    methods: Sequence[Method],
) -> list[Table]:
    """Tables of the other measures: tasks that the same methods ran share one, without the rest."""
    groups: dict[tuple[bool, ...], list[Row]] = {}
    for row in rows:
        ran = tuple(method in tasks[row[0]] for method in methods)
        groups.setdefault(ran, []).append(row)
    found = []
    for ran, same in groups.items():
        kept = [
            (task, unit, [cell for cell, there in zip(cells, ran, strict=True) if there])
            for task, unit, cells in same
        ]
        shown = [name for name, there in zip(columns, ran, strict=True) if there]
        title = "Other measures at the end of a run"
        if len(groups) > 1:
            title += f", {len(shown)} methods" if len(shown) > 3 else f", {' and '.join(shown)}"
        found.append(Table(title, note, shown, kept))
    return found


def rank_of(method: Method) -> tuple[int, str, str]:
    """The key that orders columns: the first ones, then the order of legends."""
    order = [*FIRST_COLUMNS, *(name for name in LABELS if name not in FIRST_COLUMNS), method[0]]
    return (order.index(method[0]), *method)


def _measure(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))


def _column(method: Method, methods: Sequence[Method]) -> str:
    both = sum(name == method[0] for name, _ in methods) > 1
    return method_title(method) if both else method_title(method, bare=True)


def first_of(cells: Cells, describe: Callable[[list[Record]], Any]) -> Any:
    """The value of a function of records for all runs of a task."""
    return describe([run for runs in cells.values() for run in runs])


def _error_row(cells: Cells, methods: Sequence[Method]) -> list[Cell]:
    found = [
        statistics.estimate([final_error(run) for run in cells[each]]) if each in cells else None
        for each in methods
    ]
    shown = [
        None
        if each is None
        else Cell(
            "diverges" if math.isinf(each.value) else compact(each.value),
            "" if math.isinf(each.value) else _range(each),
            value=each.value,
        )
        for each in found
    ]
    return _marked(shown, [math.nan if each is None else each.value for each in found], methods)


def _solved_row(cells: Cells, methods: Sequence[Method]) -> list[Cell]:
    shown: list[Cell | None] = []
    ranks = []
    for method in methods:
        if method not in cells:
            shown.append(None)
            ranks.append(math.nan)
            continue
        share = solved_share(cells[method])
        passes = float(statistics.median([solved_at(run) for run in cells[method]]))
        shown.append(Cell(f"{share.value:.0%}", compact(passes), value=share.value))
        ranks.append(-share.value)
    return _marked(shown, ranks, methods)


def _metric_row(cells: Cells, methods: Sequence[Method], name: str) -> list[Cell]:
    """Medians of a measure; a value that is missing from a run counts as the worst."""
    sign = -1 if name in HIGHER_IS_BETTER else 1
    shown: list[Cell | None] = []
    ranks = []
    for method in methods:
        values = [run.get("metrics", {}).get(name) for run in cells.get(method, [])]
        if all(value is None for value in values):
            shown.append(None)
            ranks.append(math.nan)
            continue
        middle = float(
            statistics.median([math.inf if value is None else sign * value for value in values])
        )
        text = compact(sign * middle) if math.isfinite(middle) else "diverges"
        shown.append(Cell(text, value=sign * middle))
        ranks.append(middle)
    return _marked(shown, ranks, methods)


def solved_share(runs: Sequence[Record]) -> statistics.Estimate:
    """The share of runs that met their threshold, with its interval."""
    return statistics.wilson_interval(sum(math.isfinite(solved_at(run)) for run in runs), len(runs))
