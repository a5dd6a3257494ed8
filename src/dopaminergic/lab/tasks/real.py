"""Forecasting of real series: yearly sunspots, and the user's own.

Beside them stand persistence and a linear autoregression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dopaminergic.lab.networks import GATES
from dopaminergic.lab.tasks.cells import tail
from dopaminergic.lab.tasks.forecasting import OUTPUTS, SequenceTask
from dopaminergic.lab.tasks.reading import Series, check_changes, normalised, read_data
from dopaminergic.lab.tasks.series import sunspots
from dopaminergic.lab.tasks.task import MOST, Model, Task, choose, counted


def linear_errors(series: Series, train_rows: int, order: int) -> Series:
    """One-step errors of a linear autoregression fitted by least squares to the training rows.

    Args:
        series: shape `(n, columns)`.
        train_rows: rows to fit on; from each, all columns are predicted from the `order` rows
            before and a constant.
        order: lags, at least 1.

    Returns:
        Shape `(n - order, columns)`: the errors of rows `order` and on.
    """
    n, columns = series.shape
    lags = np.concatenate(
        [series[order - 1 - k : n - 1 - k] for k in range(order)] + [np.ones((n - order, 1))],
        axis=1,
    )
    weights = np.linalg.lstsq(lags[: train_rows - order], series[order:train_rows], rcond=None)[0]
    return (lags @ weights - series[order:]).reshape(n - order, columns)


RIVALS = {"linear_ar": "a linear autoregression", "persistence": "persistence, the last value,"}


class RealForecasting(SequenceTask):
    """One step ahead on a measured series, normalised by its training part.

    Test parts follow one another. `evaluate` gives the network's error on each test part. `finish`
    gives the same error of two rivals beside it: `persistence` (tomorrow is like today) and
    `linear_ar` (a linear autoregression, `linear_errors`).
    """

    parts: dict[str, tuple[int, int]]
    squared: bool

    def _parts(self, parts: dict[str, tuple[int, int]], *, squared: bool, scale: float) -> None:
        """Names and rows of the test parts, and whether errors are mse / scale² or rmse / scale."""
        self.parts = parts
        self.squared = squared
        self.scale = scale

    def _error(self, squares: Tensor, lead: int) -> Tensor:
        mean = squares.to(torch.float64).flatten(lead).mean(-1) / self.scale**2
        return mean if self.squared else mean.sqrt()

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        lead = 0 if model.replicas is None else 1
        return {
            name: self._error(self.one_step_errors(model, first, last) ** 2, lead)
            for name, (first, last) in self.parts.items()
        }

    def finish(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        series = self.series.to(torch.float64)
        order = self.settings["order"]
        linear = torch.from_numpy(linear_errors(series.numpy(), self.train_rows, order))
        results: dict[str, Tensor] = {}
        for name, (first, last) in self.parts.items():
            suffix = name.removeprefix(self.metric)
            results[f"persistence{suffix}"] = self._error(
                (series[first:last] - series[first - 1 : last - 1]) ** 2, 0
            )
            results[f"linear_ar{suffix}"] = self._error(
                linear[first - order : last - order] ** 2, 0
            )
        return {
            k: v if model.replicas is None else v.expand(model.replicas) for k, v in results.items()
        }


class Sunspots(RealForecasting):
    """Yearly sunspot numbers of statsmodels: fitted to 1700-1920, tested on three later parts.

    The parts are 1921-55, 1956-79 and 1980-2008. Errors are mean squares over the variance of the
    whole series.

    Args:
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        batch_size: sequences of `length` years in a batch.
        length: years in a sequence, the first 10 not scored.
        order: lags of the linear rival.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "error"
    metric_label: ClassVar[str] = "mse / variance, 1921-55"

    def __init__(
        self,
        *,
        cell: str = "tanh",
        hidden: int = 8,
        output: str = "direct",
        batch_size: int = 8,
        length: int = 35,
        order: int = 12,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        # The longest sequence leaves one start in the 221 years of training.
        for name, value, least, most in (
            ("hidden", hidden, 1, MOST),
            ("batch_size", batch_size, 1, MOST),
            ("length", length, 11, 218),
            ("order", order, 1, 100),
        ):
            counted(name, value, least=least, most=most)
        settings: dict[str, Any] = {
            "cell": cell,
            "hidden": hidden,
            "output": output,
            "batch_size": batch_size,
        }
        settings |= {"length": length, "order": order, "dtype": dtype}
        self._define("sunspots", "yearly sunspots", 20_000, 500, settings)
        raw = sunspots()
        train = raw[:221]
        self._use(
            (raw - train.mean(0)) / train.std(0),
            221,
            batch_size=batch_size,
            length=length,
            washout=10,
        )
        years = {
            "error": (1921, 1956),
            "error_1956_1979": (1956, 1980),
            "error_1980_2008": (1980, 2009),
        }
        parts = {name: (first - 1700, last - 1700) for name, (first, last) in years.items()}
        self._parts(parts, squared=True, scale=float(raw.std() / train.std()))


class UserSeries(RealForecasting):
    """The user's own series from a CSV or Parquet file.

    The task trains on the first 70 % of its rows, and tests on the rest. Errors are root mean
    squares in units of the training part's standard deviation.

    Args:
        path: the file; see `read_series`.
        column: the name of a column, or several; all are forecast. None where the file has one
            only.
        contents: the hash that the values must have, as a record has it; None for any.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        batch_size: sequences of `length` rows in a batch.
        length: rows in a sequence, at least 10, the first 5 not scored.
        order: lags of the linear rival.
        dtype: `"float32"` or `"float64"`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used (see `read_series`) or is not the one of `contents`, a
            column never changes, or a setting is out of range.
    """

    metric: ClassVar[str] = "nrmse"
    metric_label: ClassVar[str] = "one-step NRMSE on the last 30 %"

    def __init__(
        self,
        *,
        path: str | Path,
        column: str | Sequence[str] | None = None,
        contents: str | None = None,
        cell: str = "tanh",
        hidden: int = 16,
        output: str = "direct",
        batch_size: int = 8,
        length: int = 25,
        order: int = 12,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        counted("length", length, least=10)
        counted("order", order)
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        data = read_data(path, column)
        if contents not in (None, data.contents):
            raise ValueError(
                f"{tail(path)}: its contents are {data.contents}, but this run was begun with "
                f"{contents}; put the old "
                "file back, or begin a new run"
            )
        # The training part must hold a sequence to cut, and more equations than the linear rival
        # has unknowns.
        needed = max(length + 3, order * (len(data.names) + 1) + 2)
        raw = read_data(path, column, least=-(-10 * needed // 7) + 1).values
        settings: dict[str, Any] = {
            "path": str(path),
            "column": data.names,
            "contents": data.contents,
            "cell": cell,
        }
        settings |= {
            "hidden": hidden,
            "output": output,
            "batch_size": batch_size,
            "length": length,
            "order": order,
        }
        title = f"{Path(path).name}: {', '.join(data.names)}"
        self._define("series", title, 20_000, 500, settings | {"dtype": dtype})
        self.notes = data.notes
        self.pinned = {"column": data.names, "contents": data.contents}
        train_rows = int(0.7 * len(raw))
        check_changes(path, data.names, raw, train_rows)
        series = normalised(path, data.names, raw, train_rows)
        self._use(series, train_rows, batch_size=batch_size, length=length, washout=5)
        if output == "delta" and not (self.change > 1e-6).all():
            raise ValueError(
                "output: 'delta' needs a column whose change changes, got a straight line; use "
                "'direct'"
            )
        self._parts({"nrmse": (train_rows, len(raw))}, squared=False, scale=1.0)


def compare_with_rivals(task: Task, metrics: Mapping[str, float | None]) -> list[str]:
    """Sentences on the metrics of a real series, and plainly the rivals that beat the network.

    Args:
        task: the task; of others than `RealForecasting` there is nothing to say.
        metrics: those of a record; None where a number was not finite.

    Returns:
        Sentences for the user.
    """
    if not isinstance(task, RealForecasting):
        return []
    said = []
    for name, (first, last) in task.parts.items():
        own = metrics.get(name)
        suffix = name.removeprefix(task.metric)
        unit = (
            "mean square over the variance"
            if task.squared
            else "root mean square in deviations of training"
        )
        said.append(
            f"{name}: error one step ahead on rows {first + 1} to {last} of {len(task.series)}, "
            "which training has not "
            f"seen; {unit}; lower is better."
        )
        beaten = [
            f"{words} ({value:.4g})"
            for rival, words in RIVALS.items()
            if (value := metrics.get(rival + suffix)) is not None and (own is None or value < own)
        ]
        if beaten:
            network = "not finite" if own is None else f"{own:.4g}"
            verb = "is" if len(beaten) == 1 else "are"
            who = " and ".join(beaten)
            said.append(f"{who[:1].upper()}{who[1:]} {verb} better than this network ({network}).")
    if any("better than" in line for line in said):
        said.append(
            "Use the better one, or try more passes, another --optimizer, --set output=delta, or "
            "`compare`."
        )
    return said
