"""The finding of each figure in words, computed from the data that it shows.

A reader who cannot see a figure hears them; the caption beside it says how to read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dopaminergic.lab import statistics
from dopaminergic.lab.curves import errors_by_rate, main_variants, metric
from dopaminergic.lab.pictures import departure_time
from dopaminergic.lab.plots import lowest_median, median_error
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import LABELS, Cells, compact, final_error, solved_at


def _name(optimizer: str) -> str:
    return LABELS.get(optimizer, optimizer)


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _error(value: float) -> str:
    return compact(value) if math.isfinite(value) else "infinity"


def ends(cells: Cells) -> str:
    """Of learning curves and final errors: the methods that end lowest and highest."""
    medians = {_name(name): median_error(runs) for (name, _), runs in main_variants(cells).items()}
    order = sorted(medians, key=lambda name: medians[name])
    first = compact(medians[order[0]])
    if math.isinf(medians[order[0]]):
        return "The median run of every method diverges."
    level = [name for name in order if compact(medians[name]) == first]
    found = f"{_joined(level)} end{'s' if len(level) == 1 else ''} lowest, at a median "
    found += f"{metric(cells)} of {first}"
    rest = [name for name in order if name not in level]
    if rest:
        found += f"; {rest[0]} follows with {_error(medians[rest[0]])}"
    if len(rest) > 1:
        found += f", and {rest[-1]} is last with {_error(medians[rest[-1]])}"
    lost = sum(math.isinf(final_error(run)) for runs in cells.values() for run in runs)
    return found + (f". Runs that diverged: {lost}." if lost else ".")


def solved(cells: Cells) -> str:
    """Of the shares of runs that met the threshold: the most and the fewest."""
    times = {
        _name(name): [solved_at(run) for run in runs]
        for (name, _), runs in main_variants(cells).items()
    }
    shares = {name: float(np.isfinite(each).mean()) for name, each in times.items()}
    passes = {name: float(statistics.median(each)) for name, each in times.items()}
    order = sorted(shares, key=lambda name: (-shares[name], passes[name]))
    best, worst = order[0], order[-1]
    found = f"{best} met the threshold in {shares[best]:.0%} of its runs"
    if math.isfinite(passes[best]):
        found += f", the median run after {compact(passes[best])} passes"
    if worst != best:
        found += f"; {worst} did in {shares[worst]:.0%}"
        if math.isfinite(passes[worst]):
            found += f", the median run after {compact(passes[worst])}"
    return found + "."


def profile(tasks: Mapping[str, Cells]) -> str:
    """Of a performance profile: the share of runs within twice the lowest median."""
    methods = [
        method
        for method in main_variants(next(iter(tasks.values())))
        if all(method in cells for cells in tasks.values())
    ]
    shares = {
        _name(method[0]): float(
            np.mean([
                np.mean([
                    final_error(run) <= 2 * lowest_median(cells) for run in cells[method]
                ])
                for cells in tasks.values()
            ])
        )
        for method in methods
    }  # fmt: skip
    order = sorted(shares, key=lambda name: -shares[name])
    told = [f"{shares[name]:.0%} of {name}" for name in order]
    return f"Within twice the lowest median are {_joined(told)} runs."


def free_runs(pictures: Sequence[Record]) -> str:
    """Of forecasts that run free: the longest and the shortest that stay with the truth."""
    times = {_name(str(each["optimizer"])): departure_time(each) for each in pictures}
    order = sorted(times, key=lambda name: -times[name])
    told = {
        name: f"for {compact(time, 2)} Lyapunov times" if math.isfinite(time) else "to the end"
        for name, time in times.items()
    }
    found = f"The forecast of {order[0]} stays with the truth {told[order[0]]}"
    return found + (
        f", the longest; that of {order[-1]} {told[order[-1]]}, the shortest."
        if len(order) > 1
        else "."
    )


def boundaries(pictures: Sequence[Record]) -> str:
    """Of decision boundaries: the share of the plane that is classed as the two axes divide it."""
    shares = {}
    for picture in pictures:
        probability = np.array(picture["probability"], dtype=float)
        rows, columns = (np.linspace(-1, 1, size) for size in probability.shape)
        split = np.outer(rows, columns) > 0
        agrees = float(np.mean((probability > 0.5) == split))
        shares[_name(str(picture["optimizer"]))] = max(agrees, 1 - agrees)
    order = sorted(shares, key=lambda name: -shares[name])
    found = f"{order[0]} classes {shares[order[0]]:.0%} of the plane as the axes divide it"
    return found + (
        f", the most; {order[-1]} {shares[order[-1]]:.0%}, the least." if len(order) > 1 else "."
    )


def sensitivity(cells: Cells) -> str:
    """Of learning rates: the best of each method, the best method first."""
    best = {}
    for (name, _), runs in cells.items():
        rows = errors_by_rate(runs)
        if len(rows) > 1:
            best[_name(name)] = min((row[2], row[0]) for row in rows)
    told = [
        f"{name} {_error(error)} at {compact(rate, 2)}"
        for name, (error, rate) in sorted(best.items(), key=lambda item: item[1])
    ]
    return f"The lowest median and its learning rate: {', '.join(told)}."


def traces(runs: Sequence[Record]) -> str:
    """Of learning rates in time: the first and the last of each rule's first run."""
    told = {}
    for run in runs:
        rates = [rate for rate in run["traces"]["learning_rate"] if rate is not None]
        if rates:
            change = f"from {compact(rates[0], 2)} to {compact(rates[-1], 2)}"
            told.setdefault(_name(run["optimizer"]), change)
    words = [f"{name}'s {change}" for name, change in told.items()]
    return f"Learning rates go: {', '.join(words)}." if words else "There are no learning rates."


def costs(rows: Sequence[Record]) -> str:
    """Of costs: the medians of passes and memory of each method."""
    told = []
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        own = [row for row in rows if row["optimizer"] == name]
        passes = float(np.median([row["passes_per_step"] for row in own]))
        sizes = [row.get("peak_memory_over_inference") for row in own]
        known = [size for size in sizes if size is not None]
        memory = f" and {compact(float(np.median(known)), 2)} times" if known else ""
        told.append(f"{_name(name)} {compact(passes)}{memory}")
    return f"Passes of a step, and the peak memory of inference: {'; '.join(told)}."
