"""A trained network that forecasts a series of the user's own, with intervals from its own errors.

It sees the last rows, then runs on by itself. Its residuals on the test part, for each number of
rows ahead, give the intervals.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dopaminergic.lab.networks import GATES, Recurrent
from dopaminergic.lab.saved import ModelError, fill, weights_of
from dopaminergic.lab.tasks.own_series import UserSeries
from dopaminergic.lab.tasks.scaling import Scaling
from dopaminergic.lab.tasks.task import DTYPES, Model

Values = NDArray[np.float64]

CONTEXT = 100  # rows that a network sees before it forecasts, if there are as many
MEASURED = 50  # rows ahead for which residuals are kept, if the test part is long enough
MOST_STARTS = 500  # forecasts whose errors are taken, for each number of rows ahead
# Shares of residuals below, from which intervals of 50, 80, 90 and 95 % are made.
LEVELS = (0.025, 0.05, 0.1, 0.25, 0.75, 0.9, 0.95, 0.975)


class Forecast(NamedTuple):
    """Forecasts of the rows that follow, each of shape `(steps, targets)`.

    `low` and `high` are NaN for more rows ahead than residuals were kept for.
    """

    values: Values
    low: Values
    high: Values


def series_model(
    task: UserSeries, network: Model, run: str, about: dict[str, Any]
) -> dict[str, Any]:
    """The contents of the file of a network that learned a series of the user's own.

    Args:
        task: the series.
        network: a plain one.
        run: the name of the job.
        about: of the training, in plain types.
    """
    settings = task.settings
    data = task.data
    return {
        "kind": "series",
        "run": run,
        "about": {**about, "rows": len(data.values)},
        "network": {
            "cell": settings["cell"],
            "inputs": int(task.series.shape[1]),
            "hidden": settings["hidden"],
            "outputs": task.targets,
            "output": settings["output"],
            "dtype": settings["dtype"],
        },
        "weights": weights_of(network),
        "scaling": {
            name: torch.from_numpy(getattr(task.scaling, name).copy()) for name in Scaling._fields
        },
        "change": task.change.to(torch.float64),
        "columns": {
            "targets": list(data.names),
            "inputs": list(settings.get("inputs", [])),
            "time": data.times.about() if data.times else {},
        },
        "lags": settings["length"],
        "horizon": task.horizon,
        "residuals": {"levels": list(LEVELS), "quantiles": _residuals(task, network)},
        "last_rows": torch.from_numpy(data.values[-CONTEXT:].copy()),
        "future": torch.from_numpy(data.future.copy()),
    }


@torch.no_grad()
def _residuals(task: UserSeries, network: Model) -> Tensor:
    """Quantiles of truth - forecast on the test part, `(steps, targets, levels)`, in own units."""
    first, last = task.test_first, len(task.series)
    steps = min(max(task.horizon, MEASURED), (last - first) // 2)
    found: list[Values] = []
    # The fewer rows ahead, the more forecasts the test part has room for.
    for mark in sorted({1, max(1, steps // 4), max(1, steps // 2), steps}):
        errors = task.free_errors(network, first, last, mark, most=MOST_STARTS)
        residuals = -errors.to(torch.float64).numpy()
        for step in range(len(found), mark):
            own = task.scaling.undone_differences(residuals[:, step])
            found.append(quantiles(own))
    return torch.from_numpy(np.stack(found))


def quantiles(residuals: Values) -> Values:
    """Quantiles at `LEVELS`, each a residual itself, no further in than so few allow.

    A new residual lies between those of ranks k and n + 1 - k with probability 1 - 2 k / (n + 1).

    Args:
        residuals: shape `(n, targets)`.

    Returns:
        Shape `(targets, levels)`.
    """
    ordered = np.sort(np.where(np.isnan(residuals), np.inf, residuals), axis=0)
    n = len(ordered)
    ranks = []
    for level in LEVELS:
        share = min(level, 1 - level)
        rank = max(1, math.floor(share * (n + 1) + 1e-9))
        ranks.append(rank - 1 if level < 0.5 else n - rank)
    return ordered[ranks].T


class Forecaster:
    """A trained network of a series.

    Attributes:
        targets: names of the columns that are forecast.
        inputs: names of the columns that are known ahead.
        time: name of the column of times, "" without one.
        horizon: rows ahead that it was trained to be judged by.
        lags: the fewest rows that it needs to see.
        network: the network, a `torch.nn.Module`.
        settings: everything in the file but the weights.
    """

    def __init__(self, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.settings = settings
        columns = settings["columns"]
        self.targets: list[str] = columns["targets"]
        self.inputs: list[str] = columns["inputs"]
        self.time: str = columns["time"].get("name", "")
        self.horizon: int = settings["horizon"]
        self.lags: int = settings["lags"]
        self.scaling = Scaling(**{k: v.numpy() for k, v in settings["scaling"].items()})
        self.quantiles: Tensor = settings["residuals"]["quantiles"]
        kind = settings["network"]
        self.dtype = DTYPES[kind["dtype"]]
        self.network = Recurrent(
            kind["inputs"], kind["hidden"], kind["outputs"], cell=kind["cell"], dtype=self.dtype
        )
        fill(self.network, weights)

    def predict(self, values: Any, steps: int | None = None, *, known: Any = None) -> Values:
        """Forecasts of the rows that follow.

        Args:
            values: the last rows of the series in their own units, the oldest first, shape
                `(rows, columns)`: the targets, then the inputs, in the order of their names. A
                single column may have shape `(rows,)`. It takes at least `lags` rows, and looks at
                the last 100.
            steps: how many rows to forecast; None for the horizon of training.
            known: the inputs of the rows that are forecast, shape `(steps, inputs)`; only where
                there are inputs.

        Returns:
            Shape `(steps, targets)`.

        Raises:
            ValueError: a shape does not fit, a value is not finite, or there are too few rows.
        """
        return self.forecast(values, steps, known=known).values

    def forecast(
        self, values: Any, steps: int | None = None, *, known: Any = None, interval: int = 90
    ) -> Forecast:
        """Forecasts with intervals; see `predict`.

        Args:
            values: the last rows.
            steps: how many rows to forecast.
            known: the inputs of those rows.
            interval: 50, 80, 90 or 95 percent. Of the network's errors on rows that it was not
                trained on, so many lie within.
        """
        level = (100 - interval) / 200
        levels = self.settings["residuals"]["levels"]
        if level not in levels:
            raise ValueError(f"interval: expected 50, 80, 90 or 95 percent, got {interval!r:.20}")
        steps = self.horizon if steps is None else steps
        if type(steps) is not int or not 1 <= steps <= 1_000_000:
            raise ValueError(f"steps: expected a whole number from 1 on, got {steps!r:.40}; try 1")
        rows = self._rows("values", values, len(self.targets) + len(self.inputs), self.lags)
        ahead = self._known(known, steps)
        path = self.scaling.undone(self._run(rows, ahead, steps))
        if not np.isfinite(path).all():
            fault = int((~np.isfinite(path)).any(1).argmax()) + 1
            raise ValueError(
                f"steps: the network's own forecast runs away {fault} rows ahead; give fewer steps"
            )
        low = np.full_like(path, np.nan)
        high = low.copy()
        kept = min(steps, len(self.quantiles))
        spread = self.quantiles[:kept].numpy()
        low[:kept] = path[:kept] + spread[..., levels.index(level)]
        high[:kept] = path[:kept] + spread[..., levels.index(1 - level)]
        return Forecast(path, low, high)

    def _rows(self, what: str, values: Any, columns: int, least: int) -> Values:
        """The rows as float64, checked."""
        try:
            rows = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: expected rows of numbers ({str(error)[:60]})") from error
        rows = rows[:, None] if rows.ndim == 1 and columns == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != columns:
            names = ", ".join([*self.targets, *self.inputs])
            raise ValueError(
                f"{what}: expected shape (rows, {columns}), got {rows.shape}; its columns in "
                f"training: {names[:120]}"
            )
        if len(rows) < least:
            raise ValueError(
                f"{what}: {len(rows)} rows, but at least {least} are needed; give more of them"
            )
        if not np.isfinite(rows).all():
            row = int((~np.isfinite(rows)).any(1).argmax())
            raise ValueError(f"{what}: row {row} has a missing or infinite value; fill it first")
        return rows

    def _known(self, known: Any, steps: int) -> Values:
        if not self.inputs:
            if known is not None:
                raise ValueError("known: this network has no inputs beside its targets; leave it")
            return np.zeros((steps, 0))
        names = ", ".join(self.inputs)[:80]
        given = np.zeros((0, len(self.inputs))) if known is None else known
        rows = self._rows("known", given, len(self.inputs), 0)
        if len(rows) < steps:
            raise ValueError(
                f"steps: {names} must be known for each row ahead, and are for {len(rows)} of "
                f"{steps}; add rows with them and empty targets, or give fewer steps"
            )
        return rows[:steps]

    @torch.no_grad()
    def _run(self, rows: Values, ahead: Values, steps: int) -> Values:
        """The path of the targets in units of the training part, shape `(steps, targets)`."""
        targets = len(self.targets)
        seen = rows[-CONTEXT:]
        own = np.concatenate((seen, np.zeros((steps, seen.shape[1]))))
        own[len(seen) :, targets:] = ahead
        scaled = torch.tensor(self.scaling.applied(own), dtype=self.dtype)
        known = torch.cat((scaled[1:, targets:], scaled[-1:, targets:]))
        inputs = torch.cat((scaled[:, :targets], known), 1)
        out, state = self.network(inputs[None, : len(seen)])
        now = self._next(out[:, -1:], inputs[None, len(seen) - 1 : len(seen)])
        path = [now]
        for row in range(len(seen), len(seen) + steps - 1):
            following = torch.cat((now, inputs[None, row : row + 1, targets:]), -1)
            out, state = self.network(following, state)
            now = self._next(out, following)
            path.append(now)
        return torch.cat(path, 1)[0].to(torch.float64).numpy()

    def _next(self, out: Tensor, inputs: Tensor) -> Tensor:
        if self.settings["network"]["output"] == "direct":
            return out
        change = self.settings["change"].to(self.dtype)
        return inputs[..., : len(self.targets)] + change * out


def load_forecaster(whole: dict[str, Any], where: str) -> Forecaster:
    """The forecaster in a model's file.

    Raises:
        ModelError: its parts do not fit together.
    """
    settings = {key: value for key, value in whole.items() if key != "weights"}
    try:
        _check(settings, whole["weights"])
        return Forecaster(settings, whole["weights"])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:100]
        raise ModelError(
            f"{where}: its parts do not fit together ({type(error).__name__}: {said}); train again"
        ) from error


def _check(settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise unless sizes are those of the weights, before anything of these sizes is made."""
    kind, columns = settings["network"], settings["columns"]
    gates = GATES[kind["cell"]]
    every = [*columns["targets"], *columns["inputs"]]
    count = len(columns["targets"])
    sizes = {
        "input_weight": (len(every), gates * kind["hidden"]),
        "output_weight": (kind["hidden"], count),
    }
    wanted = {name: tuple(weights[name].shape) for name in sizes}
    levels = settings["residuals"]["levels"]
    shapes = {name: tuple(settings["scaling"][name].shape) for name in Scaling._fields}
    quantiles = settings["residuals"]["quantiles"]
    sound = (
        wanted == sizes
        and (kind["inputs"], kind["outputs"]) == (len(every), count)
        and all(isinstance(name, str) for name in every)
        and set(shapes.values()) == {(len(every),)}
        and tuple(quantiles.shape[1:]) == (count, len(levels))
        and tuple(settings["change"].shape) == (count,)
        and settings["last_rows"].shape[1] == len(every)
        and kind["output"] in ("direct", "delta")
        and min(settings["horizon"], settings["lags"]) >= 1
        and isinstance(columns["time"], dict)
    )
    if not sound:
        raise ValueError("sizes differ")
