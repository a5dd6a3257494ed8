"""Figures that compare optimizers: final errors, costs, and profiles over several tasks.

A figure of one task is sized to stay legible on a phone. Its caption has the content and the n, see
`dopaminergic.lab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dopaminergic.lab import statistics
from dopaminergic.lab.curves import main_variants, metric, worst_shown
from dopaminergic.lab.drawing import (
    OURS,
    SMALL,
    STYLE,
    WIDE,
    clip_at,
    colour,
    line_style,
    mark,
    new_figure,
    readable_log,
    spaced_marks,
    zero_place,
)
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import (
    LABELS,
    Cells,
    Method,
    compact,
    final_error,
    method_title,
)


def final_errors(cells: Cells) -> Figure:
    """Final test error of every run, the median, and its bootstrap 95 % interval, best at the top.

    Runs are small dots, the median is a large dot, and the interval is a bar.

    Args:
        cells: the runs of one task by method. Runs that diverged are counted at the right.
    """
    with matplotlib.rc_context(STYLE):
        errors = {
            method: statistics.as_errors([final_error(run) for run in runs])
            for method, runs in cells.items()
        }
        medians = {method: statistics.estimate(each) for method, each in errors.items()}
        order = sorted(cells, key=lambda method: medians[method].value)
        zero, least = _least_shown(cells)
        figure, axes = new_figure(SMALL[0], max(SMALL[1], 0.33 * len(order) + 1))
        for row, method in enumerate(order):
            finite = np.maximum(errors[method][np.isfinite(errors[method])], zero or 0)
            _draw_runs(axes, row, colour(method[0]), finite)
            hollow = method == (method[0], "tuned") and (method[0], "default") in cells
            _draw_median(axes, row, colour(method[0]), medians[method], finite, zero or 0, hollow)
            _count_lost(axes, row, colour(method[0]), errors[method], worst_shown(cells))
        axes.set_xscale("log")
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_yticks(range(len(order)), [_row_name(method, cells) for method in order])
        for label, method in zip(axes.get_yticklabels(), order, strict=True):
            label.set_color(colour(method[0]))
            label.set_fontweight("bold" if method[0] in OURS else "normal")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        clip_at(axes, "x", worst_shown(cells))
        readable_log(axes, "x", zero, least=least)
        axes.set_xlabel(f"Final test {metric(cells)}")
        return figure


def smallest_shown(cells: Cells) -> float:
    """A thousandth of the lowest median above zero: errors below it would flatten all others."""
    medians = [median_error(runs) for runs in cells.values()]
    return min((median for median in medians if 0 < median < math.inf), default=0.0) / 1000


def _least_shown(cells: Cells) -> tuple[float | None, str]:
    """Where an axis puts errors that are too small for it, and the name of that place."""
    errors = [final_error(run) for runs in cells.values() for run in runs]
    smallest = smallest_shown(cells)
    if any(0 < error < smallest for error in errors):
        return smallest, "less"
    return zero_place(errors), "0"


def _draw_runs(axes: Axes, row: int, hue: str, errors: NDArray[np.float64]) -> None:
    """Draw a small dot for each run, one below the other."""
    several = len(errors) > 1
    offsets = np.linspace(-0.22, 0.22, len(errors)) if several else np.zeros(len(errors))
    axes.plot(errors, row + offsets, "o", color=hue, alpha=0.3, markersize=3, markeredgewidth=0)


def _draw_median(
    axes: Axes,
    row: int,
    hue: str,
    median: statistics.Estimate,
    errors: NDArray[np.float64],
    zero: float,
    hollow: bool,
) -> None:
    """Draw the median and its interval, unless the median run diverged.

    An interval that reaches infinity is cut at the worst finite run; the count of diverged runs
    says so.
    """
    if not math.isfinite(median.value):
        return
    middle, low, high = (max(each, zero) for each in median[:3])
    end = high if math.isfinite(high) else max(middle, *errors)
    ends = [low, end] if math.isfinite(low) else []
    axes.plot(ends, [row] * len(ends), color=hue, linewidth=3, alpha=0.9)
    face = "white" if hollow else hue
    axes.plot(middle, row, "o", color=hue, markerfacecolor=face, markersize=9, markeredgewidth=2)


def _count_lost(axes: Axes, row: int, hue: str, errors: NDArray[np.float64], worst: float) -> None:
    """Write the number of runs at the right that diverged, or end beyond the axis."""
    diverged = int(np.isinf(errors).sum())
    beyond = int((errors > worst).sum()) - diverged
    if not diverged + beyond:
        return
    told = [f"{diverged} of {len(errors)} diverged"] * bool(diverged)
    told += [f"{beyond} of {len(errors)} beyond"] * bool(beyond)
    axes.text(
        0.99,
        row - 0.12,
        ", ".join(told),
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",  # above the bar of the interval
        fontsize=9.5,
        color=hue,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
    )


def _row_name(method: Method, cells: Cells) -> str:
    both = (method[0], "default") in cells and (method[0], "tuned") in cells
    return method_title(method) if both else method_title(method, bare=True)


COLUMNS = (
    ("passes_per_step", "Forward passes\nper step"),
    ("time_of_pass", "Time per pass\n(a forward = 1)"),
    ("peak_memory_over_inference", "Peak memory\n(inference = 1)"),
)


def costs_of_steps(rows: Sequence[Record]) -> Figure:
    """Passes of a step, time of a pass, and memory of each optimizer.

    Bars are medians over models, and dots are models.

    Args:
        rows: of `costs.json`.
    """
    rows = [
        {**row, "time_of_pass": 2 * row["time_over_two_forwards"] / row["passes_per_step"]}
        for row in rows
    ]
    with matplotlib.rc_context(STYLE):
        present = {row["optimizer"] for row in rows}
        names = [name for name in LABELS if name in present] + sorted(present - set(LABELS))
        figure, panels = new_figure(WIDE, 1.1 + 0.36 * len(names), 1, 3, sharey=True)
        panels = np.asarray(panels).ravel()
        for panel, (key, title) in zip(panels, COLUMNS, strict=True):
            if key == "passes_per_step":
                panel.set_xscale("log")
                panel.set_xlim(1, 10 * max(row[key] for row in rows))
            else:
                panel.axvline(1, color="#999999", linewidth=1, linestyle=(0, (4, 2)))
            for place, name in enumerate(names):
                _draw_cost(panel, place, name, _values(rows, name, key))
            panel.set_title(title, fontsize=12)
            panel.grid(False)
            if key == "passes_per_step":
                readable_log(panel, "x")
            else:
                panel.set_xlim(0, 1.25 * panel.get_xlim()[1])
                panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            panel.tick_params(axis="y", length=0)
        panels[0].set_ylim(len(names) - 0.45, -0.55)
        panels[0].set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
        return figure


def _values(rows: Sequence[Record], optimizer: str, key: str) -> list[float]:
    """One optimizer's values of a cost, on the models where it was measured."""
    own = [row for row in rows if row["optimizer"] == optimizer]
    return [float(row[key]) for row in own if row.get(key) is not None]


def _draw_cost(axes: Axes, place: int, optimizer: str, values: list[float]) -> None:
    """Draw a bar up to the median, with its number, and dots where the values differ."""
    if not values:
        return
    hue = colour(optimizer)
    middle = float(np.median(values))
    axes.barh(place, middle, color=hue, alpha=0.85, height=0.62)
    if len(values) > 1 and np.ptp(values) > 0.02 * middle:
        axes.plot(values, [place] * len(values), "o", color="white", markeredgecolor=hue)
    words = f"  {compact(middle)}"
    axes.text(max(values), place, words, va="center", fontsize=11, color="#222222")


def profile(tasks: dict[str, Cells]) -> Figure:
    """Performance profile: share of runs at or below a multiple of the lowest median.

    It is the final error of a run that counts, and the lowest median of its task.

    Args:
        tasks: cells of the tasks to be joined; methods that lack one of them are left out.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(WIDE, 4.2)
        lowest = {title: lowest_median(cells) for title, cells in tasks.items()}
        factors = np.geomspace(0.5, 100, 400)
        methods = [
            method
            for method in main_variants(next(iter(tasks.values())))
            if all(method in each for each in tasks.values())
        ]
        for method in methods:
            strata: list[Any] = [
                [final_error(run) / lowest[title] for run in cells[method]]
                for title, cells in tasks.items()
            ]
            shares = statistics.performance_profile(strata, factors)
            width = 2.6 if method[0] in OURS else 1.7
            axes.plot(
                factors,
                100 * shares,
                line_style(method[0]),
                color=colour(method[0]),
                linewidth=width,
                **spaced_marks(method[0]),
            )
        axes.set_xscale("log")
        axes.set_xlim(factors[0], factors[-1])
        axes.set_ylim(-1, 103)
        readable_log(axes, "x")
        axes.set_xlabel("Final error over the lowest median on the task")
        axes.set_ylabel("Runs at or below (%)")
        handles = [
            axes.plot(
                [], [], line_style(name), color=colour(name), linewidth=2.2, marker=mark(name)
            )[0]
            for name, _ in methods
        ]
        figure.legend(
            handles,
            [LABELS.get(name, name) for name, _ in methods],
            loc="outside right center",
            frameon=False,
            fontsize=11.5,
            handlelength=2.4,
        )
        return figure


def median_error(runs: Sequence[Record]) -> float:
    """Median final error, infinity where the median run diverged."""
    return float(statistics.median([final_error(run) for run in runs]))


def lowest_median(cells: Cells) -> float:
    """The lowest of the methods' median final errors on a task."""
    return min(median_error(runs) for runs in cells.values())
