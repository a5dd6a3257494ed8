"""Figures of lines: errors and other measures against forward passes or learning rates.

A figure of one task is sized to stay legible on a phone. Its caption has the content and the n, see
`dopaminergic.lab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from dopaminergic.lab import statistics
from dopaminergic.lab.drawing import (
    OURS,
    SMALL,
    STYLE,
    WIDE,
    clip_at,
    colour,
    label_lines,
    legend_below,
    line_style,
    mark,
    new_figure,
    passes_axis,
    readable_log,
    spaced_marks,
    symmetric_log,
    thousands,
    zero_place,
)
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import (
    LABELS,
    Cells,
    final_error,
    has_threshold,
    metric_title,
    solved_at,
)


def main_variants(cells: Cells) -> Cells:
    """One variant of each optimizer: the default set where there is one, else the tuned set."""
    return {
        method: runs
        for method, runs in cells.items()
        if method[1] == "default" or (method[0], "default") not in cells
    }


def _quartiles(runs: Sequence[Record]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Passes (T,) common to all runs and the quartiles (3, T) of their errors.

    The quartiles are infinity where those diverged.
    """
    passes = sorted(set.intersection(*(set(run["curve"]["passes"]) for run in runs)))
    tables = [dict(zip(run["curve"]["passes"], run["curve"]["error"], strict=True)) for run in runs]
    errors = statistics.as_errors([[table[at] for at in passes] for table in tables])
    return np.array(passes, dtype=float), np.quantile(
        errors, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf"
    )


def worst_shown(cells: Cells) -> float:
    """The highest error that axes show: twice that of untrained networks; infinity if unknown.

    The errors before training are the first of each curve that has more than one.
    """
    curves = [run["curve"]["error"] for runs in cells.values() for run in runs]
    first = [curve[0] for curve in curves if len(curve) > 1 and curve[0] is not None]
    known = [error for error in first if 0 < error < math.inf]
    return 2 * float(np.median(known)) if known else math.inf


def metric(cells: Cells) -> str:
    """The name of the measure of a task's runs."""
    return metric_title([run for runs in cells.values() for run in runs])


def learning_curves(cells: Cells) -> Figure:
    """Median test error against forward passes with the interquartile band, one line per optimizer.

    Args:
        cells: the runs of one task by method. A line stops where its median diverges.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(*SMALL)
        curves = {
            optimizer: _quartiles(runs) for (optimizer, _), runs in main_variants(cells).items()
        }
        zero = zero_place(
            error for _, quartiles in curves.values() for error in quartiles[:2].ravel()
        )
        ends = []
        for optimizer, (passes, quartiles) in curves.items():
            end = _draw_curve(axes, optimizer, passes, np.maximum(quartiles, zero or 0))
            if end is not None:
                ends.append((end, LABELS.get(optimizer, optimizer), colour(optimizer)))
        axes.set_yscale("log")
        start = min(passes[passes > 0][0] for passes, _ in curves.values())
        budget = max(run["budget"] for runs in cells.values() for run in runs)
        passes_axis(
            axes, start, budget, has_threshold(run for runs in cells.values() for run in runs)
        )
        clip_at(axes, "y", worst_shown(cells))
        readable_log(axes, "y", zero)
        axes.set_ylabel(f"Test {metric(cells)}")
        label_lines(axes, ends)
        return figure


def _draw_curve(
    axes: Axes, optimizer: str, passes: NDArray[np.float64], quartiles: NDArray[np.float64]
) -> float | None:
    """Draw one optimizer's line and band, and return the line's end.

    None where the line has no end to be labelled, since it diverges or there is none.
    """
    low, middle, high = quartiles
    there = np.isfinite(middle)
    if not there.any():
        return None
    hue = colour(optimizer)
    ceiling = np.where(np.isfinite(high), high, middle)
    axes.fill_between(passes[there], low[there], ceiling[there], color=hue, alpha=0.13, linewidth=0)
    width = 2.6 if optimizer in OURS else 1.7
    look: dict[str, Any] = {"color": hue, "linewidth": width, **spaced_marks(optimizer)}
    axes.plot(passes[there], middle[there], line_style(optimizer), **look)
    if there[-1]:
        return middle[-1]
    last = (passes[there][-1], middle[there][-1])
    axes.plot(*last, "x", color=hue, markersize=8, markeredgewidth=2)
    axes.annotate(
        f"{LABELS.get(optimizer, optimizer)} diverges",
        last,
        xytext=(0, -18),
        ha="center" if last[0] > 0.3 * passes[-1] else "left",
        textcoords="offset points",
        color=hue,
        fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
    )
    return None


def solved_shares(cells: Cells) -> Figure:
    """Share of runs that have met the task's threshold against forward passes (logarithmic).

    Args:
        cells: the runs of one task by method.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(*SMALL)
        budget = max(run["budget"] for runs in cells.values() for run in runs)
        times = {
            method: np.sort([solved_at(run) for run in runs])
            for method, runs in main_variants(cells).items()
        }
        earliest = min(float(np.min(each)) for each in times.values())
        for (optimizer, _), each in times.items():
            steps = np.concatenate([[earliest / 1.5], each[np.isfinite(each)], [budget]])
            shares = np.concatenate(
                [[0], np.arange(1, np.isfinite(each).sum() + 1), [np.isfinite(each).sum()]]
            ) / len(each)
            width = 2.6 if optimizer in OURS else 1.7
            axes.step(
                steps,
                100 * shares,
                line_style(optimizer),
                where="post",
                color=colour(optimizer),
                linewidth=width,
                **spaced_marks(optimizer),
            )
        passes_axis(axes, earliest / 1.5, budget, True)
        axes.set_ylim(-1, 103)
        axes.set_ylabel("Runs that met the threshold (%)")
        legend_below(figure, axes, [optimizer for optimizer, _ in times])
        return figure


def sensitivity(cells: Cells, worst: float = math.inf) -> Figure:
    """Median final error of the tuning runs against the learning rate.

    A band is the interquartile range.

    Args:
        cells: runs of role "tuning" of one task by method. Where other settings varied too, the
            best of them is shown for each learning rate. A learning rate whose median run diverged
            is a cross at the upper edge.
        worst: errors above it are crosses too, so that one cannot flatten all others.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(*SMALL)
        curves = {}
        for (optimizer, _), runs in cells.items():
            found = errors_by_rate(runs)
            if len(found) > 1:
                curves[optimizer] = found
        finite = [row[2] for rows in curves.values() for row in rows if math.isfinite(row[2])]
        ceiling = min(1.6 * max(finite, default=1.0) or 1.0, worst)
        zero = zero_place(error for rows in curves.values() for row in rows for error in row[1:3])
        for optimizer, rows in curves.items():
            rates = np.array(rows)[:, 0]
            quartiles = np.maximum(np.array(rows)[:, 1:], zero or 0).T
            _draw_sensitivity(axes, optimizer, rates, quartiles, ceiling)
        axes.set_xscale("log")
        axes.set_yscale("log")
        readable_log(axes, "y", zero)
        readable_log(axes, "x")
        axes.set_xlabel("Learning rate")
        axes.set_ylabel(f"Final test {metric(cells)}")
        legend_below(figure, axes, list(curves))
        return figure


def _draw_sensitivity(
    axes: Axes,
    optimizer: str,
    rates: NDArray[np.float64],
    quartiles: NDArray[np.float64],
    ceiling: float,
) -> None:
    """Draw one optimizer's line and band, and crosses at the ceiling where it left or diverged."""
    low, middle, high = quartiles
    there = middle <= ceiling
    look: dict[str, Any] = {"color": colour(optimizer)}
    top = np.minimum(high, ceiling)
    axes.fill_between(rates[there], low[there], top[there], alpha=0.1, linewidth=0, **look)
    width = 2.4 if optimizer in OURS else 1.6
    style = line_style(optimizer)
    look |= {"marker": mark(optimizer), "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.plot(rates[there], middle[there], style, markersize=6, linewidth=width, **look)
    lost = rates[~there]
    cross: dict[str, Any] = {"markersize": 7, "markeredgewidth": 2, "color": look["color"]}
    axes.plot(lost, np.full(len(lost), ceiling), "x", **cross)


def errors_by_rate(runs: Iterable[Record]) -> list[tuple[float, float, float, float]]:
    """(learning rate, quartile, median, quartile) of the best other settings, by learning rate."""
    groups: dict[float, dict[str, list[float]]] = {}
    for run in runs:
        settings = dict(run["settings"])
        rate = settings.pop("lr", None)
        if rate is not None:
            groups.setdefault(float(rate), {}).setdefault(
                repr(sorted(settings.items())), []
            ).append(final_error(run))
    rows = []
    for rate, others in sorted(groups.items()):
        quartiles = [
            np.quantile(errors, [0.25, 0.5, 0.75], method="inverted_cdf")
            for errors in others.values()
        ]
        low, middle, high = min(quartiles, key=lambda each: (each[1], each[2]))
        rows.append((rate, float(low), float(middle), float(high)))
    return rows


def traces(runs: Sequence[Record]) -> Figure:
    """Reward prediction error and learning rate of single runs, for each rule that has them.

    Args:
        runs: runs of one task with `traces`, of one or two optimizers.
    """
    with matplotlib.rc_context(STYLE):
        names = list(dict.fromkeys(run["optimizer"] for run in runs))
        figure, panels = new_figure(WIDE, 5.0, 2, len(names), sharex=True)
        panels = np.asarray(panels).reshape(2, len(names))
        for column, name in enumerate(names):
            upper, lower = panels[:, column]
            mine = [run for run in runs if run["optimizer"] == name]
            for rank, run in enumerate(mine):
                trace = run["traces"]
                style = {
                    "color": colour(name),
                    "alpha": 0.9 if rank == 0 else 0.35,
                    "linewidth": 1.2,
                }
                passes = np.array(trace["passes"], dtype=float)
                if rank == 0:
                    upper.plot(
                        passes, np.array(trace["rpe"], dtype=float), **style | {"linewidth": 0.6}
                    )
                lower.plot(passes, np.array(trace["learning_rate"], dtype=float), **style)
            upper.set_title(f"{LABELS.get(name, name)}", color=colour(name))
            upper.axhline(0, color="#999999", linewidth=0.8)
            symmetric_log(
                upper,
                [value for run in mine for value in run["traces"]["rpe"] if value is not None],
            )
            lower.set_yscale("log")
            readable_log(lower, "y")
            lower.set_xlabel("Forward passes")
            lower.xaxis.set_major_formatter(FuncFormatter(thousands))
            lower.set_xlim(left=0)
        panels[0, 0].set_ylabel("RPE (units of loss)")
        panels[1, 0].set_ylabel("Learning rate")
        return figure
