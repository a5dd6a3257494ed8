"""The parts that the rules of `claims` are made of.

They are methods, runs that are compared, scores, and numbers in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dopaminergic.lab import statistics
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import Cells, Method, compact, final_error, method_title, solved_at

DOPAMINE: Method = ("dopamine", "default")
DOPAMINE2: Method = ("dopamine2", "default")
VECTOR: Method = ("vector", "default")
NODE: Method = ("node", "default")
WP: Method = ("wp", "tuned")
SGD: Method = ("sgd", "tuned")
ADAM: Method = ("adam", "tuned")

Tasks = dict[str, Cells]


def tasks_with(
    tasks: Tasks, methods: tuple[Method, ...], wanted: Callable[[str], bool]
) -> list[tuple[str, Cells]]:
    """Tasks of a kind on which all of `methods` were run."""

    def name(cells: Cells) -> str:
        return next(iter(cells.values()))[0]["task"]

    return [
        (title, cells)
        for title, cells in tasks.items()
        if wanted(name(cells)) and set(methods) <= set(cells)
    ]


def scores(score: Callable[[Record], float], runs: list[Record]) -> list[float]:
    """Score of each run."""
    return [score(run) for run in runs]


def median_error(runs: list[Record]) -> float:
    """Median of the final test errors."""
    return float(statistics.median(scores(final_error, runs)))


def middle(score: Callable[[Record], float], runs: list[Record]) -> str:
    """The median score, as it is printed."""
    return compact(float(statistics.median(scores(score, runs))))


def name_of(method: Method) -> str:
    """A method's name, without its variant where that is the default."""
    return method_title(method, bare=method[1] == "default")


def best_of(cells: Cells, methods: tuple[Method, ...]) -> Method | None:
    """The method with the lowest median error.

    On a task with a threshold, the largest share of solved runs comes first.
    """
    present = [method for method in methods if method in cells]
    if not present:
        return None
    solved = {method: np.isinf(scores(solved_at, cells[method])).mean() for method in present}
    return min(present, key=lambda method: (solved[method], median_error(cells[method])))


def sign_of(chance: statistics.Estimate) -> int:
    """1 if the interval lies above .5, -1 if below, 0 otherwise.

    It is 0 for single runs too, whose interval is open.
    """
    return 1 if chance.low > 0.5 else -1 if chance.high < 0.5 else 0


def with_interval(chance: statistics.Estimate) -> str:
    """A probability with its interval."""
    bounds = "one run" if math.isnan(chance.low) else f"{chance.low:.2f} to {chance.high:.2f}"
    return f"{chance.value:.2f} ({bounds})"


def interval_of(difference: statistics.Estimate) -> str:
    """The interval of a median difference, in words; "" where one run leaves it open."""
    if math.isnan(difference.low):
        return ""
    return f", median difference {_signed(difference.low)} to {_signed(difference.high)}"


def _signed(value: float) -> str:
    return compact(value) if value >= 0 else f"−{compact(-value)}"  # noqa: RUF001


def passes_to(record: Record, error: float) -> float:
    """Forward passes after which a run's curve first is at or below an error; infinity if never."""
    curve = zip(record["curve"]["passes"], record["curve"]["error"], strict=True)
    return next(
        (float(passes) for passes, value in curve if value is not None and value <= error), math.inf
    )


def speed(ours: list[Record], theirs: list[Record]) -> str:
    """How soon the first runs are at the final error of the others, which are runs of WP."""
    needed = float(statistics.median([passes_to(run, median_error(theirs)) for run in ours]))
    budget = compact(float(theirs[0]["budget"]))
    if math.isinf(needed):
        return f"does not reach WP's final error in {budget} passes"
    return f"reaches WP's final error after {compact(needed)} of {budget} passes"


def is_unstable(record: Record) -> bool:
    """Whether a run diverged, or ended at more than twice its own best error."""
    errors = [value for value in record["curve"]["error"] if value is not None]
    return not errors or not final_error(record) <= 2 * min(errors)


def cost_rows(costs: Mapping[str, Any], optimizer: str, other: str) -> list[Mapping[str, Any]]:
    """Rows of one optimizer on the models that were measured with the other too."""
    rows = costs.get("rows", [])
    shared = {row["task"] for row in rows if row["optimizer"] == other}
    return [row for row in rows if row["optimizer"] == optimizer and row["task"] in shared]


def cost(rows: list[Mapping[str, Any]], key: str) -> float:
    """The median over the models that have it; NaN if none has."""
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return float(np.median(values)) if values else math.nan
