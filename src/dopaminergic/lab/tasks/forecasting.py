"""Forecasting by recurrent networks, one step ahead: the quick protocol on chaotic series, and sequences of any series.

A network answers directly with the next state, or (`output="delta"`) with the change of the state in units of the
change's standard deviation. Errors are always those of the state, in the units of the normalised series.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dopaminergic.lab.networks import GATES, Recurrent, Seeds, State
from dopaminergic.lab.tasks.series import SYSTEMS, Series, long_series, quick_series
from dopaminergic.lab.tasks.task import Batch, Draws, Model, Task, choose, mean_over_samples, single
from dopaminergic.noise.reference import gaussian
from dopaminergic.outcomes import Outcome, squared_error

OUTPUTS = ("direct", "delta")
# Input noise draws where no parameter's direction does: no model has this many parameters.
INPUT_NOISE = 0xFFFFFFFF

TITLES = {
    "lorenz": "Lorenz",
    "rossler": "Rössler",
    "mackey-glass": "Mackey-Glass",
    "henon": "Hénon",
    "logistic": "logistic map",
}


class SequenceTask(Task):
    """One step ahead on sequences cut from a normalised series; the shared base of the forecasting tasks.

    Attributes:
        series: the normalised series, shape `(n, columns)`.
        train_rows: the first rows, from which batches are cut.
        change: standard deviation of the change from one sample to the next over the training rows, `(columns,)`.
    """

    series: Tensor
    train_rows: int
    change: Tensor
    batch_size: int
    length: int
    washout: int
    starts: Draws
    input_noise: float = 0.0

    def _use(self, series: Series, train_rows: int, *, batch_size: int, length: int, washout: int) -> None:
        self.series, self.train_rows = torch.tensor(series, dtype=self.dtype), train_rows
        self.batch_size, self.length, self.washout = batch_size, length, washout
        train = series[:train_rows]
        self.starts = Draws(batch_size, train_rows - length - 2)
        self.change = torch.tensor(np.diff(train, axis=0).std(0), dtype=self.dtype)

    def build(self, seeds: Seeds) -> Recurrent:  # noqa: D102
        columns, hidden, cell = self.series.shape[1], self.settings["hidden"], self.settings["cell"]
        return Recurrent(columns, hidden, columns, cell=cell, seeds=seeds, dtype=self.dtype)

    def cut(self, starts: Tensor) -> Batch:
        """Sequences of `length` inputs from each start, and the states that follow them.

        Args:
            starts: row numbers of any shape `(..., B)`.

        Returns:
            Two tensors of shape `(..., B, length, columns)`.
        """
        # Gathered with time before batch, the order in which the network computes.
        rows = starts[..., None, :] + torch.arange(self.length + 1)[:, None]
        states = self.series.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(-3, -2)
        return states[..., :-1, :], states[..., 1:, :]

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        starts = self.starts(seeds, step)
        inputs, targets = self.cut(starts)
        if not self.input_noise:
            return inputs, targets
        n = self.batch_size * self.length * self.series.shape[1]
        noise = gaussian(n, seed=seeds, step=step, parameter=INPUT_NOISE).reshape(inputs.shape)
        return inputs + self.input_noise * noise.to(self.dtype), targets

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        inputs, targets = (part[..., self.washout :, :] for part in batch)
        prediction = model(batch[0])[0][..., self.washout :, :]
        goal = targets if self.settings["output"] == "direct" else (targets - inputs) / self.change
        return squared_error(prediction, goal.expand_as(prediction))

    def predict(self, model: Model, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next state after every time step, in the units of the series, and the network's state after the last."""
        out, final = model(inputs, state)
        return (out if self.settings["output"] == "direct" else inputs + self.change * out), final

    def squared_errors(self, model: Model, batch: Batch) -> Tensor:
        """Squared errors of the predicted states after the washout, shape `([R,] B, length - washout, columns)`."""
        prediction = self.predict(model, batch[0])[0]
        return ((prediction - batch[1]) ** 2)[..., self.washout :, :]

    def one_step_errors(self, model: Model, first: int, last: int, *, warm_up: int = 100, piece: int = 500) -> Tensor:
        """Errors of the one-step predictions of rows `first` to `last - 1`, shape `([R,] last - first, columns)`.

        The rows are predicted in pieces side by side, each after `warm_up` samples (or as many as there are).
        """
        warm_up, piece = min(warm_up, first - 1), min(piece, last - first)
        rows = torch.arange(first, last, piece)[:, None] + torch.arange(-1 - warm_up, piece - 1)
        prediction = self.predict(model, self.series[rows.clamp(max=len(self.series) - 1)])[0]
        return prediction[..., warm_up:, :].flatten(-3, -2)[..., : last - first, :] - self.series[first:last]


class QuickForecasting(SequenceTask):
    """The quick protocol on a chaotic series of 4,000 samples, normalised as a whole, 70 % of it for training.

    Test error: the root mean square of one-step errors over 48 sequences of 50 steps after the training part, the
    first 5 not scored; the series has unit variance, so it is the NRMSE.

    Args:
        name: a name of `quick_series`.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        batch_size: sequences of 50 steps in a batch.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "nrmse"
    metric_label: ClassVar[str] = "one-step NRMSE on the test sequences"

    def __init__(
        self,
        name: str,
        /,
        *,
        cell: str = "tanh",
        hidden: int = 16,
        output: str = "direct",
        batch_size: int = 8,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        settings = {"cell": cell, "hidden": hidden, "output": output, "batch_size": batch_size, "dtype": dtype}
        self._define(name, TITLES[name], 20_000, 500, settings)
        raw = quick_series(name)
        series, train_rows = (raw - raw.mean(0)) / raw.std(0), int(0.7 * len(raw))
        self._use(series, train_rows, batch_size=batch_size, length=50, washout=5)
        # Spread evenly: 48 random starts, as in the experiments this protocol is compared with, would let the error of
        # one and the same network vary by a tenth with the draw.
        self.test = self.cut(torch.linspace(train_rows + 10, len(raw) - 60, 48).long())

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        return {"nrmse": mean_over_samples(self.squared_errors(model, self.test), model).sqrt()}


class LongForecasting(SequenceTask):
    """The field's protocol: train on 5,000 samples, then forecast freely from 50 starts in 12,000 test samples.

    The series is normalised by its training part; 3,000 validation samples lie between the two. `evaluate` gives the
    one-step NRMSE on 32 test sequences. `finish` gives over the whole test part:

    - `test_nrmse`: one step ahead, teacher-forced;
    - `vpt`: the valid prediction time in Lyapunov times, mean over the starts: after 100 samples of warm-up the network
      runs on its own predictions until |prediction - truth| / sqrt(mean |truth|²) first exceeds 0.4; at most 15;
    - `nrmse_one_lyapunov_time`: of the free runs over the first Lyapunov time;
    - `diverged_share`: of the starts, those whose free run leaves 10 standard deviations within 15 Lyapunov times.

    Args:
        system: a key of `SYSTEMS`.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        input_noise: standard deviation of the normal noise added to the inputs in training, at least 0.
        batch_size: sequences of 100 steps in a batch.
        washout: first outputs of a sequence that are not scored.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "nrmse"
    metric_label: ClassVar[str] = "one-step NRMSE on test sequences"

    TRAIN, VALIDATION, TEST = 5000, 3000, 12_000
    WARM_UP, STARTS, TOLERANCE, CAP, BOUND = 100, 50, 0.4, 15.0, 10.0

    def __init__(
        self,
        system: str,
        /,
        *,
        cell: str = "tanh",
        hidden: int = 32,
        output: str = "delta",
        input_noise: float = 0.0,
        batch_size: int = 64,
        washout: int = 20,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        if not input_noise >= 0:
            raise ValueError(f"input_noise: expected a number of at least 0, got {input_noise!r}")
        settings: dict[str, Any] = {"cell": cell, "hidden": hidden, "output": output, "input_noise": input_noise}
        settings |= {"batch_size": batch_size, "washout": washout, "dtype": dtype}
        self.system = SYSTEMS[system]
        self._define(f"{system}-vpt", f"{self.system.title}, free-running", 12_000, 600, settings)
        raw = long_series(system, self.TRAIN + self.VALIDATION + self.TEST)
        series = (raw - raw[: self.TRAIN].mean(0)) / raw[: self.TRAIN].std(0)
        self._use(series, self.TRAIN, batch_size=batch_size, length=100, washout=washout)
        self.input_noise = input_noise
        self.first_test = self.TRAIN + self.VALIDATION
        self.test = self.cut(self.spread(32, self.length))
        test = self.series[self.first_test :].to(torch.float64)
        self.scale = float((test**2).sum(-1).mean().sqrt())  # sqrt(mean |truth|^2)
        self.steps = int(self.CAP * self.system.lyapunov_time / self.system.sample_time)

    def spread(self, n: int, room: int) -> Tensor:
        """Row numbers of n starts spread evenly over the test part, each with `room` more rows after it."""
        first = self.first_test + self.WARM_UP
        return torch.linspace(first, len(self.series) - room - 1, n, dtype=torch.float64).long()

    def truth(self) -> Tensor:
        """The states that the free runs forecast, shape `(starts, steps, columns)`."""
        return self.series[self.spread(self.STARTS, self.steps)[:, None] + torch.arange(self.steps)]

    @torch.no_grad()
    def free_run(self, model: Model, starts: Tensor, steps: int) -> Tensor:
        """Forecasts of rows `start` to `start + steps - 1` from the rows before them alone.

        Args:
            model: plain or stacked.
            starts: row numbers, shape `(B,)`.
            steps: how many rows to forecast.

        Returns:
            Shape `([R,] B, steps, columns)`.
        """
        warm_up = self.series[starts[:, None] + torch.arange(-self.WARM_UP, 0)]
        out, state = self.predict(model, warm_up)
        forecast = [out[..., -1:, :]]
        for _ in range(steps - 1):
            out, state = self.predict(model, forecast[-1], state)
            forecast.append(out)
        return torch.cat(forecast, -2)

    def forecast_metrics(self, forecast: Tensor) -> dict[str, Tensor]:
        """The metrics of free runs from all starts, shape `([R,] starts, steps, columns)`; see the class."""
        difference = (forecast - self.truth()).to(torch.float64)
        distance = difference.square().sum(-1)
        # Written so that NaN counts as wrong.
        wrong = ~(distance.sqrt() <= self.TOLERANCE * self.scale)
        valid = torch.where(wrong.any(-1), wrong.to(torch.int8).argmax(-1), self.steps)
        per_step = self.system.sample_time / self.system.lyapunov_time
        one = round(1 / per_step)
        return {
            "vpt": (valid * per_step).clamp(max=self.CAP).mean(-1),
            "nrmse_one_lyapunov_time": distance[..., :one].mean((-2, -1)).sqrt() / self.scale,
            "diverged_share": (~(forecast.abs() <= self.BOUND)).any(-1).any(-1).to(torch.float64).mean(-1),
        }

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        columns = self.series.shape[1]
        error = mean_over_samples(self.squared_errors(model, self.test), model).sqrt()
        return {"nrmse": error / (self.scale / columns**0.5)}

    @torch.no_grad()
    def finish(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        errors = self.one_step_errors(model, self.first_test, len(self.series), warm_up=self.WARM_UP)
        error = mean_over_samples(errors**2, model).sqrt()
        forecast = self.free_run(model, self.spread(self.STARTS, self.steps), self.steps)
        return {"test_nrmse": error / (self.scale / self.series.shape[1] ** 0.5)} | self.forecast_metrics(forecast)

    def picture(self, model: Model) -> list[dict[str, Any]]:  # noqa: D102
        single(model)
        start = self.spread(self.STARTS, self.steps)[:1]
        steps = round(10 * self.system.lyapunov_time / self.system.sample_time)
        forecast = self.free_run(model, start, steps).reshape(steps, -1)
        finite = int(forecast.isfinite().all(-1).long().cumprod(0).sum())
        return [
            {
                "name": "free_run",
                "lyapunov_time": self.system.lyapunov_time,
                "sample_time": self.system.sample_time,
                "truth": self.series[int(start) : int(start) + steps].tolist(),
                "forecast": forecast[:finite].tolist(),
            }
        ]
