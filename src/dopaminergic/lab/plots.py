"""Figures of the lab, each a function from records or costs to a matplotlib figure.

A figure of one task is sized to stay legible on a phone. Its caption has the content and the n, see
`dopaminergic.lab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from dopaminergic.lab import statistics
from dopaminergic.lab.drawing import (
    OURS,
    SMALL,
    STYLE,
    WIDE,
    colour,
    label_lines,
    legend_below,
    line_style,
    new_figure,
    passes_axis,
    readable_log,
    symmetric_log,
    thousands,
    zero_place,
)
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import (
    LABELS,
    Cells,
    Method,
    compact,
    final_error,
    has_threshold,
    method_title,
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


def _metric(cells: Cells) -> str:
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
            low, middle, high = np.maximum(quartiles, zero or 0)
            there = np.isfinite(middle)
            if not there.any():
                continue
            hue = colour(optimizer)
            name = LABELS.get(optimizer, optimizer)
            ceiling = np.where(np.isfinite(high), high, middle)
            axes.fill_between(
                passes[there], low[there], ceiling[there], color=hue, alpha=0.13, linewidth=0
            )
            width = 2.6 if optimizer in OURS else 1.7
            axes.plot(
                passes[there], middle[there], line_style(optimizer), color=hue, linewidth=width
            )
            if there[-1]:
                ends.append((middle[-1], name, hue))
            else:
                axes.plot(
                    passes[there][-1],
                    middle[there][-1],
                    "x",
                    color=hue,
                    markersize=8,
                    markeredgewidth=2,
                )
                axes.annotate(
                    f"{name} diverges",
                    (passes[there][-1], middle[there][-1]),
                    xytext=(0, -18),
                    ha="center" if passes[there][-1] > 0.3 * passes[-1] else "left",
                    textcoords="offset points",
                    color=hue,
                    fontsize=11,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
                )
        axes.set_yscale("log")
        start = min(passes[passes > 0][0] for passes, _ in curves.values())
        budget = max(run["budget"] for runs in cells.values() for run in runs)
        passes_axis(
            axes, start, budget, has_threshold(run for runs in cells.values() for run in runs)
        )
        readable_log(axes, "y", zero)
        axes.set_ylabel(f"Test {_metric(cells)}")
        label_lines(axes, ends)
        return figure


def final_errors(cells: Cells) -> Figure:
    """Final test error of every run, the median, and its bootstrap 95 % interval, best at the top.

    The runs are dots, the median is a large dot, and the interval is a bar.

    Args:
        cells: the runs of one task by method. Runs that diverged are counted at the right.
    """
    with matplotlib.rc_context(STYLE):
        medians = {
            method: statistics.estimate([final_error(run) for run in runs])
            for method, runs in cells.items()
        }
        order = sorted(cells, key=lambda method: medians[method].value)
        zero = zero_place(final_error(run) for runs in cells.values() for run in runs)
        figure, axes = new_figure(SMALL[0], max(SMALL[1], 0.33 * len(order) + 1))
        for row, method in enumerate(order):
            hue = colour(method[0])
            found = medians[method]
            errors = statistics.as_errors([final_error(run) for run in cells[method]])
            finite = np.maximum(errors[np.isfinite(errors)], zero or 0)
            offsets = (
                np.linspace(-0.22, 0.22, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
            )
            axes.plot(
                finite, row + offsets, "o", color=hue, alpha=0.3, markersize=3, markeredgewidth=0
            )
            if math.isfinite(found.value):
                middle, low, high = (max(each, zero or 0) for each in found[:3])
                # An interval that reaches infinity is cut at the worst finite run; the count of
                # diverged runs says so.
                ends = (
                    [low, high if math.isfinite(high) else max(middle, *finite)]
                    if math.isfinite(low)
                    else []
                )
                axes.plot(ends, [row] * len(ends), color=hue, linewidth=3, alpha=0.9)
                face = (
                    "white"
                    if method == (method[0], "tuned") and (method[0], "default") in cells
                    else hue
                )
                axes.plot(
                    middle,
                    row,
                    "o",
                    color=hue,
                    markerfacecolor=face,
                    markersize=9,
                    markeredgewidth=2,
                )
            lost = int(np.isinf(errors).sum())
            if lost:
                axes.text(
                    0.99,
                    row,
                    f"{lost} of {len(errors)} diverged",
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=10,
                    color=hue,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
                )
        axes.set_xscale("log")
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_yticks(range(len(order)), [_row_name(method, cells) for method in order])
        for label, method in zip(axes.get_yticklabels(), order, strict=True):
            label.set_color(colour(method[0]))
            label.set_fontweight("bold" if method[0] in OURS else "normal")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        readable_log(axes, "x", zero)
        axes.set_xlabel(f"Final test {_metric(cells)}")
        return figure


def _row_name(method: Method, cells: Cells) -> str:
    both = (method[0], "default") in cells and (method[0], "tuned") in cells
    return method_title(method) if both else method_title(method, bare=True)


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
            )
        passes_axis(axes, earliest / 1.5, budget, True)
        axes.set_ylim(-1, 103)
        axes.set_ylabel("Runs that met the threshold (%)")
        legend_below(figure, axes, [optimizer for optimizer, _ in times])
        return figure


def sensitivity(cells: Cells) -> Figure:
    """Median final error of the tuning runs against the learning rate.

    A band is the interquartile range.

    Args:
        cells: runs of role "tuning" of one task by method. Where other settings varied too, the
            best of them is shown for each learning rate. A learning rate whose median run diverged
            is a cross at the upper edge.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(*SMALL)
        curves = {}
        for (optimizer, _), runs in cells.items():
            found = errors_by_rate(runs)
            if len(found) > 1:
                curves[optimizer] = found
        finite = [row[2] for rows in curves.values() for row in rows if math.isfinite(row[2])]
        ceiling = 1.6 * max(finite, default=1.0) or 1.0
        zero = zero_place(error for rows in curves.values() for row in rows for error in row[1:3])
        for optimizer, rows in curves.items():
            rates = np.array(rows)[:, 0]
            low, middle, high = np.maximum(np.array(rows)[:, 1:], zero or 0).T
            there = np.isfinite(middle)
            hue = colour(optimizer)
            axes.fill_between(
                rates[there],
                low[there],
                np.minimum(high, ceiling)[there],
                color=hue,
                alpha=0.1,
                linewidth=0,
            )
            width = 2.4 if optimizer in OURS else 1.6
            axes.plot(
                rates[there],
                middle[there],
                line_style(optimizer),
                color=hue,
                marker="o",
                markersize=4,
                linewidth=width,
            )
            axes.plot(
                rates[~there],
                np.full((~there).sum(), ceiling),
                "x",
                color=hue,
                markersize=7,
                markeredgewidth=2,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        readable_log(axes, "y", zero)
        readable_log(axes, "x")
        axes.set_xlabel("Learning rate")
        axes.set_ylabel(f"Final test {_metric(cells)}")
        legend_below(figure, axes, list(curves))
        return figure


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
        columns = (
            ("passes_per_step", "Forward passes\nper step"),
            ("time_of_pass", "Time per pass\n(a forward = 1)"),
            ("peak_memory_over_inference", "Peak memory\n(inference = 1)"),
        )
        for panel, (key, title) in zip(panels, columns, strict=True):
            if key == "passes_per_step":
                panel.set_xscale("log")
                panel.set_xlim(1, 10 * max(row[key] for row in rows))
            else:
                panel.axvline(1, color="#999999", linewidth=1, linestyle=(0, (4, 2)))
            for place, name in enumerate(names):
                values = [
                    float(row[key])
                    for row in rows
                    if row["optimizer"] == name and row.get(key) is not None
                ]
                if not values:
                    continue
                middle = float(np.median(values))
                panel.barh(place, middle, color=colour(name), alpha=0.85, height=0.62)
                if len(values) > 1 and np.ptp(values) > 0.02 * middle:
                    panel.plot(
                        values,
                        [place] * len(values),
                        "o",
                        color="white",
                        markeredgecolor=colour(name),
                    )
                panel.text(
                    max(values),
                    place,
                    f"  {compact(middle)}",
                    va="center",
                    fontsize=11,
                    color="#222222",
                )
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
            )
        axes.set_xscale("log")
        axes.set_xlim(factors[0], factors[-1])
        axes.set_ylim(-1, 103)
        readable_log(axes, "x")
        axes.set_xlabel("Final error over the lowest median on the task")
        axes.set_ylabel("Runs at or below (%)")
        handles = [
            axes.plot([], [], line_style(name), color=colour(name), linewidth=2.4)[0]
            for name, _ in methods
        ]
        figure.legend(
            handles,
            [LABELS.get(name, name) for name, _ in methods],
            loc="outside right center",
            frameon=False,
            fontsize=11.5,
            handlelength=1.6,
        )
        return figure


def median_error(runs: Sequence[Record]) -> float:
    """Median final error, infinity where the median run diverged."""
    return float(statistics.median([final_error(run) for run in runs]))


def lowest_median(cells: Cells) -> float:
    """The lowest of the methods' median final errors on a task."""
    return min(median_error(runs) for runs in cells.values())
