"""Forecasts without an optimizer, which a network must beat.

They are persistence and a linear autoregression. A task's records hold them as measures,
`persistence` and `linear_ar`, one for each test part. They are a property of the series, so a
report shows them once, and names the methods that end above them.
"""

from __future__ import annotations

import math

from dopaminergic.lab import statistics
from dopaminergic.lab.results import Cells, Method, compact, method_title, metric_name

REFERENCES = {"persistence": "Persistence", "linear_ar": "Linear autoregression"}


def is_reference(measure: str) -> bool:
    """Whether a measure is the error of a reference, on whichever test part.

    >>> is_reference("linear_ar_1956_1979"), is_reference("error_1956_1979")
    (True, False)
    """
    return any(measure == name or measure.startswith(f"{name}_") for name in REFERENCES)


def reference_rows(cells: Cells) -> list[tuple[str, list[str]]]:
    """A row for each test part of a task: the measure that equals it, and the texts of three cells.

    The cells are the errors of the two references, and the methods whose median ends above the
    linear autoregression. A task without references has no rows.
    """
    runs = [run for each in cells.values() for run in each]
    measures = dict.fromkeys(name for run in runs for name in run.get("metrics", {}))
    first = next(iter(REFERENCES))
    parts = [
        name.removeprefix(first)
        for name in measures
        if name == first or name.startswith(f"{first}_")
    ]
    return [_row(cells, metric_name(runs), part) for part in parts]


def _row(cells: Cells, metric: str, part: str) -> tuple[str, list[str]]:
    runs = [run for each in cells.values() for run in each]
    errors = [
        _median([run["metrics"].get(name + part) for run in runs if run.get("metrics")])
        for name in REFERENCES
    ]
    worse = [method for method in cells if _of(cells, method, metric + part) > errors[-1]]
    names = ", ".join(dict.fromkeys(_name(method, cells) for method in worse))
    return metric + part, [*(compact(error) for error in errors), names or "none"]


def _of(cells: Cells, method: Method, measure: str) -> float:
    return _median([run.get("metrics", {}).get(measure) for run in cells[method]])


def _median(values: list[float | None]) -> float:
    return float(statistics.median([math.inf if value is None else value for value in values]))


def _name(method: Method, cells: Cells) -> str:
    both = sum(name == method[0] for name, _ in cells) > 1
    return method_title(method, bare=not both)
