"""Results as a ranking: for each task the methods by their median error, with what they cost.

The same numbers go to the terminal, and as JSON to programs.
"""

from __future__ import annotations

import math
import statistics as middle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from dopaminergic.lab import statistics
from dopaminergic.lab.records import Record
from dopaminergic.lab.references import REFERENCES
from dopaminergic.lab.results import (
    Cells,
    by_task,
    final_error,
    method_title,
    metric_name,
    metric_title,
)

CURVE_POINTS = 12


class Place(NamedTuple):
    """A method on a task.

    Attributes:
        method: its name for readers.
        optimizer: its name in `METHODS`.
        variant: "default" or "tuned".
        error: the median of final errors, with its interval and the number of runs.
        passes: forward passes of the median run.
        seconds: of one run: the time of its process, shared among the runs beside it.
        curve: medians of the test error at equal distances of passes; infinity where it diverged.
        best: whether no other method shows a smaller median.
    """

    method: str
    optimizer: str
    variant: str
    error: statistics.Estimate
    passes: float
    seconds: float
    curve: tuple[float, ...]
    best: bool


class Standing(NamedTuple):
    """The methods on one task, the best first, and the references beside them.

    Attributes:
        task: its name in `TASKS`.
        title: for readers.
        measure: the words for the error; lower is better.
        places: the methods.
        references: (name, words, error) of forecasts without an optimizer.
    """

    task: str
    title: str
    measure: str
    places: tuple[Place, ...]
    references: tuple[tuple[str, str, float], ...]


def standings(records: Iterable[Record]) -> list[Standing]:
    """One for each task that has runs of role "report", in the order of tables."""
    return [_standing(title, cells) for title, cells in by_task(records).items()]


def short(value: float) -> str:
    """A number of three digits in few columns of a terminal.

    >>> [short(each) for each in (0.0123456, 20000.0, 1.2e-5, float("inf"))]
    ['0.0123', '20,000', '1.2e-05', 'diverges']
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "diverges"
    if abs(value) >= 1000 and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _standing(title: str, cells: Cells) -> Standing:
    runs = [run for each in cells.values() for run in each]
    both = {name for name, _ in cells if sum(name == other for other, _ in cells) > 1}
    found = [
        Place(
            method_title(method, bare=method[0] not in both),
            *method,
            statistics.estimate([final_error(run) for run in each]),
            float(middle.median(run.get("forward_passes", run["budget"]) for run in each)),
            float(
                middle.median(
                    run.get("seconds", math.nan) / max(1, run.get("replicas", 1)) for run in each
                )
            ),
            _curve(each),
            best=False,
        )
        for method, each in cells.items()
    ]
    found.sort(key=lambda place: place.error.value)
    first = found[0].error.value
    places = tuple(
        place._replace(
            best=len(found) > 1
            and math.isfinite(first)
            and short(place.error.value) == short(first)
        )
        for place in found
    )
    if runs[0]["task"] == "series":
        title = _own_title(runs[0].get("task_settings", {}), title)
    return Standing(runs[0]["task"], title, f"test {metric_title(runs)}", places, _references(runs))


def _own_title(settings: Mapping[str, Any], title: str) -> str:
    """The file and the columns of a series of one's own, and how the title says it differs."""
    names = settings.get("column")
    columns = ", ".join(map(str, names)) if isinstance(names, list) else str(names or "")
    path = PurePath(str(settings.get("path", ""))).name
    differs = title.partition("(")[2]
    return f"{path}: {columns}" + (f" ({differs}" if differs else "")


def _references(runs: Sequence[Record]) -> tuple[tuple[str, str, float], ...]:
    """The errors of references on the part of the series that the curve's error is of."""
    own = metric_name(runs)
    found = []
    for name, words in REFERENCES.items():
        values = [value for run in runs if (value := run.get("metrics", {}).get(name)) is not None]
        if values and own != name:
            found.append((name, words, float(middle.median(values))))
    return tuple(found)


def _curve(runs: Sequence[Record]) -> tuple[float, ...]:
    """Medians over runs at equal distances of passes, each the last error known by then."""
    longest = max((run["curve"]["passes"][-1] for run in runs if run["curve"]["passes"]), default=0)
    if not longest:
        return ()
    grid = [longest * i / (CURVE_POINTS - 1) for i in range(CURVE_POINTS)]
    return tuple(float(middle.median(_error_by(run, passes) for run in runs)) for passes in grid)


def _error_by(run: Record, passes: float) -> float:
    known = [
        error
        for at, error in zip(run["curve"]["passes"], run["curve"]["error"], strict=True)
        if at <= passes
    ]
    last = known[-1] if known else None
    return math.inf if last is None else float(last)


def as_json(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """The standings for programs: the numbers that the terminal shows."""
    return [
        {
            "task": standing.task,
            "title": standing.title,
            "measure": standing.measure,
            "methods": [
                {
                    "method": place.method,
                    "optimizer": place.optimizer,
                    "variant": place.variant,
                    "error": place.error._asdict(),
                    "passes": place.passes,
                    "seconds": place.seconds,
                    "best": place.best,
                }
                for place in standing.places
            ],
            "references": {name: value for name, _, value in standing.references},
        }
        for standing in found
    ]
