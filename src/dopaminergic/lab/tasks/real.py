"""Forecasting of real series, beside persistence and a linear autoregression; yearly sunspots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dopaminergic.lab.networks import GATES
from dopaminergic.lab.tasks.forecasting import OUTPUTS, SequenceTask
from dopaminergic.lab.tasks.scaling import Series
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
    fitted = Linear(series, train_rows, order, series.shape[1])
    starts = np.arange(order - 1, len(series) - 1)
    return fitted.errors(starts, 1)[:, 0]


class Linear:
    """A linear autoregression, fitted by least squares.

    Args:
        series: shape `(n, columns)`.
        train_rows: rows to fit on; from each, the targets are predicted from the `order` rows
            before, its own other columns, which are known ahead, and a constant.
        order: lags, at least 1.
        targets: how many columns are forecast, the first ones.
    """

    def __init__(self, series: Series, train_rows: int, order: int, targets: int) -> None:
        self.series = series
        self.order = order
        self.targets = targets
        rows = np.arange(order - 1, train_rows - 1)
        lags = self._lags(rows)
        wanted = series[rows + 1, :targets]
        self.weights = np.linalg.lstsq(self._regressors(lags, rows), wanted, rcond=None)[0]

    def errors(self, starts: NDArray[np.int64], steps: int) -> Series:
        """Errors of forecasts that run on by themselves from these rows.

        They have shape `(starts, steps, targets)`.
        """
        lags = self._lags(starts)
        errors = []
        for step in range(steps):
            now = self._regressors(lags, starts + step) @ self.weights
            truth = self.series[starts + step + 1]
            errors.append(now - truth[:, : self.targets])
            following = np.concatenate((now, truth[:, self.targets :]), axis=1)
            lags = np.concatenate((following[:, None], lags[:, :-1]), axis=1)
        return np.stack(errors, axis=1)

    def _lags(self, rows: NDArray[np.int64]) -> Series:
        """Each row and those before it, the newest first: `(rows, order, columns)`."""
        return self.series[rows[:, None] - np.arange(self.order)]

    def _regressors(self, lags: Series, rows: NDArray[np.int64]) -> Series:
        known = self.series[rows + 1, self.targets :]
        return np.concatenate((lags.reshape(len(rows), -1), known, np.ones((len(rows), 1))), axis=1)


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
        series = self.series.to(torch.float64)[:, : self.targets]
        linear = self.linear()
        results: dict[str, Tensor] = {}
        for name, (first, last) in self.parts.items():
            suffix = name.removeprefix(self.metric)
            results[f"persistence{suffix}"] = self._error(
                (series[first:last] - series[first - 1 : last - 1]) ** 2, 0
            )
            errors = linear.errors(np.arange(first - 1, last - 1), 1)
            results[f"linear_ar{suffix}"] = self._error(torch.from_numpy(errors) ** 2, 0)
        return self._for_all(model, results)

    def linear(self) -> Linear:
        """The linear rival, fitted to the rows before the test parts."""
        rows = min(first for first, _ in self.parts.values())
        series = self.series.to(torch.float64).numpy()
        return Linear(series, rows, self.settings["order"], self.targets)

    def _for_all(self, model: Model, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same numbers for each replica."""
        return {
            name: value if model.replicas is None else value.expand(model.replicas)
            for name, value in results.items()
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
        unit = (
            "mean square over the variance"
            if task.squared
            else "root mean square in deviations of training"
        )
        said.append(
            f"{name}: error one row ahead on rows {first + 1} to {last} of {len(task.series)}, "
            f"which training has not seen; {unit}; lower is better."
        )
        said += _beaten(metrics, name, name.removeprefix(task.metric))
    ahead = f"{task.metric}_horizon"
    if ahead in metrics:
        rivals = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name in RIVALS
            if (value := metrics.get(f"{name}_horizon")) is not None
        )
        said.append(
            f"{ahead}: the same over {task.settings['horizon']} rows ahead, running on by itself; "
            f"{rivals}."
        )
        said += _beaten(metrics, ahead, "_horizon")
    if any("better than" in line for line in said):
        said.append(
            "Use the better one, or try more passes, another --optimizer, --set output=delta, or "
            "`compare`."
        )
    return said


def _beaten(metrics: Mapping[str, float | None], name: str, suffix: str) -> list[str]:
    """A sentence on the rivals with a smaller error than the network's, if there are any."""
    own = metrics.get(name)
    better = [
        f"{words} ({value:.4g})"
        for rival, words in RIVALS.items()
        if (value := metrics.get(rival + suffix)) is not None and (own is None or value < own)
    ]
    if not better:
        return []
    network = "not finite" if own is None else f"{own:.4g}"
    who = " and ".join(better)
    verb = "is" if len(better) == 1 else "are"
    return [f"{who[:1].upper()}{who[1:]} {verb} better than this network ({network})."]
