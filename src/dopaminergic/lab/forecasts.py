"""Forecasts of kept networks as files: CSV for programs, a drawing of forecast against truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dopaminergic.files import shown
from dopaminergic.lab.forecaster import Forecast, Forecaster
from dopaminergic.lab.records import within, write_whole
from dopaminergic.lab.tasks.cells import tail
from dopaminergic.lab.tasks.forecasting import SequenceTask
from dopaminergic.lab.tasks.own_series import UserSeries
from dopaminergic.lab.tasks.reading import read_data
from dopaminergic.lab.tasks.task import Model
from dopaminergic.lab.tasks.times import check_spacing, following

Values = NDArray[np.float64]

MOST_DRAWN = 200  # rows of the test part, its last ones


class Table(NamedTuple):
    """Rows for a CSV file."""

    names: list[str]
    rows: list[list[str]]


def number(value: float) -> str:
    """A number of a CSV file; nothing where there is none."""
    return "" if np.isnan(value) else f"{value:.9g}"


def write_csv(path: Path, table: Table) -> None:
    """Write a table in one step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.names)
    writer.writerows(table.rows)
    write_whole(path, text.getvalue())


class Ahead(NamedTuple):
    """A forecast of rows after the last one, with their labels."""

    labels: list[str]
    forecast: Forecast


def ahead(model: Forecaster, csv: str | None, steps: int | None, interval: int) -> Ahead:
    """The forecast after the rows of a file, or after those that a network was trained on.

    Args:
        model: the network.
        csv: a file with the same columns; None for the end of the file of training.
        steps: rows ahead; None for the horizon of training, or as many as inputs are known for.
        interval: percent.

    Raises:
        ValueError: the file lacks a column, has another spacing or too few rows.
    """
    settings = model.settings
    about = settings["columns"]["time"]
    rows, future = settings["last_rows"].numpy(), settings["future"].numpy()
    last = about
    first_row = settings["about"].get("rows", len(rows))
    if csv is not None:
        data = read_data(
            csv,
            model.targets,
            inputs=model.inputs or None,
            time=model.time or None,
            least=model.lags,
        )
        rows, future, first_row = data.values, data.future, len(data.values)
        if data.times is not None:
            last = data.times.about()
            check_spacing(tail(csv), about, last)
    if steps is None:
        steps = min(model.horizon, len(future)) if len(future) else model.horizon
    known = future if model.inputs else None
    found = model.forecast(rows, steps, known=known, interval=interval)
    if about:
        # With rows of the future the last time of a file is theirs.
        labels = _labels(last, len(future), steps, csv)
    else:
        labels = [str(first_row + i) for i in range(1, steps + 1)]
    return Ahead(labels, found)


def _labels(about: dict[str, Any], future: int, steps: int, csv: str | None) -> list[str]:
    known = list(about.get("future", []))[:steps]
    return [*known, *following(about, steps - len(known))]


def table_ahead(model: Forecaster, found: Ahead) -> Table:
    """A row for each row ahead: its label, and for each target the forecast and its interval."""
    names = [model.time or "row"]
    for name in model.targets:
        names += [name, f"{name}_low", f"{name}_high"]
    rows = []
    for i, label in enumerate(found.labels):
        cells = [label]
        for k in range(len(model.targets)):
            cells += [number(float(part[i, k])) for part in found.forecast]
        rows.append(cells)
    return Table(names, rows)


class Tested(NamedTuple):
    """One-step forecasts of the test part.

    Attributes:
        names: of the columns.
        labels: of the rows.
        truth: shape `(rows, columns)`.
        forecast: the same shape.
        low: lower ends of intervals of 90 %, NaN where there are none.
        high: upper ends.
    """

    names: list[str]
    labels: list[str]
    truth: Values
    forecast: Values
    low: Values
    high: Values


@torch.no_grad()
def tested(task: SequenceTask, network: Model, model: Any) -> Tested:
    """One-step forecasts of the rows that training has not seen, in the units of the series.

    Args:
        task: a task on a series.
        network: a plain one.
        model: the same one, as it was kept.
    """
    last = len(task.series)
    first = task.test_first if isinstance(task, UserSeries) else task.train_rows
    first = max(first, last - 10_000)
    errors = task.one_step_errors(network, first, last).to(torch.float64).numpy()
    truth = task.series[first:last, : task.targets].to(torch.float64).numpy()
    names = [f"column {i + 1}" for i in range(task.targets)]
    labels = [str(row + 1) for row in range(first, last)]
    forecast = truth + errors
    low = np.full_like(forecast, np.nan)
    high = low.copy()
    if isinstance(task, UserSeries):
        names = list(task.data.names)
        if task.data.times:
            labels = task.data.times.labels[first:last]
        forecast = task.scaling.undone(forecast)
        truth = task.data.values[first:last, : task.targets]
        levels = model.settings["residuals"]["levels"]
        spread = model.quantiles[0].numpy()
        low = forecast + spread[:, levels.index(0.05)]
        high = forecast + spread[:, levels.index(0.95)]
    return Tested(names, labels, truth, forecast, low, high)


def table_tested(time: str, found: Tested) -> Table:
    """A row for each row of the test part: truth, the forecast one row before, and its interval."""
    names = [time or "row"]
    for name in found.names:
        names += [name, f"{name}_forecast", f"{name}_low", f"{name}_high"]
    parts = (found.truth, found.forecast, found.low, found.high)
    rows = [
        [label, *(number(float(part[i, k])) for k in range(len(found.names)) for part in parts)]
        for i, label in enumerate(found.labels)
    ]
    return Table(names, rows)


def appended(table: Table, time: str, found: Ahead, columns: int) -> Table:
    """The table with the rows after the last one, whose truth is not known."""
    rows = [
        [
            label,
            *(
                cell
                for k in range(columns)
                for cell in ("", *(number(float(part[i, k])) for part in found.forecast))
            ),
        ]
        for i, label in enumerate(found.labels)
    ]
    return Table(table.names, [*table.rows, *rows])


def write_all(folder: Path, task: SequenceTask, network: Model, model: Any, hue: str) -> list[Path]:
    """Write `forecast.csv` and `forecast.png` of a finished run; their paths.

    Args:
        folder: of the run.
        task: its task.
        network: its network, a plain one.
        model: the same, as it was kept.
        hue: the colour of the optimizer.
    """
    from dopaminergic.lab.drawing import save
    from dopaminergic.lab.forecast_figure import against_truth

    found = tested(task, network, model)
    time = model.time if isinstance(model, Forecaster) else ""
    table = table_tested(time, found)
    next_rows: Ahead | None = None
    if isinstance(model, Forecaster) and not (model.inputs and not len(model.settings["future"])):
        next_rows = ahead(model, None, None, 90)
        table = appended(table, time, next_rows, len(found.names))
    write_csv(within(folder, "forecast.csv"), table)
    figure = against_truth(found, next_rows, shown(task.title, 60), hue, MOST_DRAWN)
    save(figure, within(folder, "forecast.png"))
    return [folder / "forecast.csv", folder / "forecast.png"]


def told(model: Forecaster, found: Ahead, interval: int, most: int = 12) -> list[str]:
    """The first rows of a forecast as lines for a terminal."""
    lines = []
    for k, name in enumerate(model.targets):
        lines.append(f"{shown(name, 40)}, with intervals of {interval} %:")
        wide = max(len(label) for label in found.labels[:most])
        for i, label in enumerate(found.labels[:most]):
            value, low, high = (float(part[i, k]) for part in found.forecast)
            spread = "" if np.isnan(low) else f"  {low:.4g} to {high:.4g}"
            lines.append(f"  {label:{wide}}  {value:.4g}{spread}")
        if len(found.labels) > most:
            lines.append(f"  ... {len(found.labels) - most} rows more")
    return lines


def widest(values: Sequence[Values]) -> tuple[float, float]:
    """The least and the largest finite number."""
    every = np.concatenate([each[np.isfinite(each)] for each in values])
    return float(every.min()), float(every.max())
