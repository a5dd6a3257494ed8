"""The field's protocol on chaotic series: train on one step ahead, then forecast freely.

A free forecast sees nothing but own forecasts. Training on true states alone never tells a network
the way back when it is a little off the attractor. Data on a thin attractor do not, either. Errors
may then grow in a direction in which the system itself shrinks them. So a network sees a part of
its own forecasts in training, unless `forcing` is 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dopaminergic.lab.networks import GATES
from dopaminergic.lab.tasks.forecasting import OUTPUTS, SequenceTask
from dopaminergic.lab.tasks.series import SYSTEMS, long_series
from dopaminergic.lab.tasks.task import (
    Batch,
    Model,
    choose,
    counted,
    limited,
    mean_over_samples,
    single,
)
from dopaminergic.noise.reference import gaussian, integers
from dopaminergic.outcomes import Outcome, squared_error

# Input noise draws where no parameter's direction does: no model has this many parameters. Forcing,
# beside the starts.
INPUT_NOISE = 0xFFFFFFFF
FORCING = 1


class LongForecasting(SequenceTask):
    """The field's protocol: train on 5,000 samples, then forecast freely from 50 starts.

    There are 12,000 test samples. The series is normalised by its training part; 3,000 validation
    samples lie between the two. `evaluate` gives the one-step NRMSE on 32 test sequences. `finish`
    gives over the whole test part:

    - `test_nrmse`: one step ahead, teacher-forced;
    - `vpt`: the valid prediction time in Lyapunov times, mean over the starts. After 100 samples of
      warm-up the network runs on its own predictions until |prediction - truth| / sqrt(mean
      |truth|²)
      first exceeds 0.4; at most 15;
    - `nrmse_one_lyapunov_time`: of the free runs over the first Lyapunov time;
    - `diverged_share`: of the starts, those whose free run leaves 10 standard deviations within 15
      Lyapunov times.

    Args:
        system: a key of `SYSTEMS`.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        input_noise: standard deviation of the normal noise added to the inputs in training, at
            least 0.
        forcing: share in [0, 1] of the inputs after the washout that are true states in training,
            drawn at random. Each of the others is the network's own forecast. 1 is teacher forcing.
            The source is Bengio, Vinyals, Jaitly and Shazeer, "Scheduled sampling for sequence
            prediction with recurrent neural networks", 2015, at a constant share.
        batch_size: sequences of 100 steps in a batch.
        washout: first outputs of a sequence that are not scored.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "nrmse"
    metric_label: ClassVar[str] = "one-step NRMSE on test sequences"

    TRAIN = 5000
    VALIDATION = 3000
    TEST = 12_000
    WARM_UP = 100
    STARTS = 50
    TOLERANCE = 0.4
    CAP = 15.0
    BOUND = 10.0

    def __init__(
        self,
        system: str,
        /,
        *,
        cell: str = "tanh",
        hidden: int = 32,
        output: str = "delta",
        input_noise: float = 0.0,
        forcing: float = 0.3,
        batch_size: int = 64,
        washout: int = 20,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        counted("washout", washout, least=0, most=99)
        limited("input_noise", input_noise, 0, 1e6)
        limited("forcing", forcing, 0, 1)
        settings: dict[str, Any] = {
            "cell": cell,
            "hidden": hidden,
            "output": output,
            "input_noise": input_noise,
        }
        settings |= {
            "forcing": float(forcing),
            "batch_size": batch_size,
            "washout": washout,
            "dtype": dtype,
        }
        self.system = SYSTEMS[system]
        self._define(f"{system}-vpt", f"{self.system.title}, free-running", 12_000, 600, settings)
        raw = long_series(system, self.TRAIN + self.VALIDATION + self.TEST)
        series = (raw - raw[: self.TRAIN].mean(0)) / raw[: self.TRAIN].std(0)
        self._use(series, self.TRAIN, batch_size=batch_size, length=100, washout=washout)
        self.input_noise = input_noise
        self.forcing = forcing
        self.first_test = self.TRAIN + self.VALIDATION
        self.test = self.cut(self.spread(32, self.length))
        test = self.series[self.first_test :].to(torch.float64)
        self.scale = float((test**2).sum(-1).mean().sqrt())  # sqrt(mean |truth|^2)
        self.steps = int(self.CAP * self.system.lyapunov_time / self.system.sample_time)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:
        """See `Task`; an input that is NaN is to be the network's own forecast."""
        inputs, targets = super().batch(seeds, step)
        if self.input_noise:
            n = inputs.shape[-3:].numel()
            noise = gaussian(n, seed=seeds, step=step, parameter=INPUT_NOISE).reshape(inputs.shape)
            inputs = inputs + self.input_noise * noise.to(self.dtype)
        if self.forcing < 1:
            n = self.batch_size * self.length
            draws = integers(n, 1 << 24, seed=seeds, step=step, parameter=FORCING).reshape(
                *inputs.shape[:-1], 1
            )
            later = torch.arange(self.length) >= max(1, self.washout)
            free = (draws >= self.forcing * (1 << 24)) & later[:, None]
            inputs = inputs.masked_fill(free, torch.nan)
        return inputs, targets

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        if self.forcing == 1:
            return super().outcome(model, batch)
        inputs, targets = batch
        last = inputs[..., :1, :]
        state = None
        found = []
        if self.washout:
            last, state = self.predict(model, inputs[..., : self.washout, :])
            last = last[..., -1:, :]
        for step in range(self.washout, self.length):
            given = inputs[..., step : step + 1, :]
            last, state = self.predict(model, torch.where(given.isnan(), last, given), state)
            found.append(last)
        unit = 1.0 if self.settings["output"] == "direct" else self.change
        error = (torch.cat(found, -2) - targets[..., self.washout :, :]) / unit
        return squared_error(error, torch.zeros_like(error))

    def spread(self, n: int, room: int) -> Tensor:
        """Row numbers of n starts spread evenly over the test part.

        Each has `room` more rows after it.
        """
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
        """The metrics of free runs from all starts; see the class.

        The runs have shape `([R,] starts, steps, columns)`.
        """
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
            "diverged_share": (~(forecast.abs() <= self.BOUND))
            .any(-1)
            .any(-1)
            .to(torch.float64)
            .mean(-1),
        }

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        columns = self.series.shape[1]
        error = mean_over_samples(self.squared_errors(model, self.test), model).sqrt()
        return {"nrmse": error / (self.scale / columns**0.5)}

    @torch.no_grad()
    def finish(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        errors = self.one_step_errors(
            model, self.first_test, len(self.series), warm_up=self.WARM_UP
        )
        error = mean_over_samples(errors**2, model).sqrt()
        forecast = self.free_run(model, self.spread(self.STARTS, self.steps), self.steps)
        return {
            "test_nrmse": error / (self.scale / self.series.shape[1] ** 0.5)
        } | self.forecast_metrics(forecast)

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
