"""Forecasting by recurrent networks, one step ahead, on chaotic series and any others.

The quick protocol is for chaotic series, and sequences are cut from any series.

A network answers directly with the next state, or (`output="delta"`) with the change of the state
in units of the change's standard deviation. Errors are always those of the state, in the units of
the normalised series.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dopaminergic.lab.networks import GATES, Recurrent, Seeds, State
from dopaminergic.lab.tasks.series import Series, quick_series
from dopaminergic.lab.tasks.task import (
    Batch,
    Draws,
    Model,
    Task,
    choose,
    counted,
    mean_over_samples,
)
from dopaminergic.outcomes import Outcome, squared_error

OUTPUTS = ("direct", "delta")
TITLES = {
    "lorenz": "Lorenz",
    "rossler": "Rössler",
    "mackey-glass": "Mackey-Glass",
    "henon": "Hénon",
    "logistic": "logistic map",
}


class SequenceTask(Task):
    """Base of the forecasting tasks: one step ahead on sequences cut from a normalised series.

    Attributes:
        series: the normalised series, shape `(n, columns)`.
        train_rows: the first rows, from which batches are cut.
        targets: how many of its columns are forecast, the first ones; the others are known ahead,
            and a network sees them one row before.
        change: standard deviation of the change from one sample to the next over the training rows,
            `(targets,)`.
    """

    series: Tensor
    train_rows: int
    targets: int
    change: Tensor
    batch_size: int
    length: int
    washout: int
    starts: Draws

    def _use(
        self,
        series: Series,
        train_rows: int,
        *,
        batch_size: int,
        length: int,
        washout: int,
        targets: int | None = None,
    ) -> None:
        self.series = torch.tensor(series, dtype=self.dtype)
        self.train_rows = train_rows
        self.batch_size = batch_size
        self.length = length
        self.washout = washout
        self.targets = series.shape[1] if targets is None else targets
        train = series[:train_rows, : self.targets]
        self.starts = Draws(batch_size, train_rows - length - 2)
        self.change = torch.tensor(np.diff(train, axis=0).std(0), dtype=self.dtype)

    def build(self, seeds: Seeds) -> Recurrent:  # noqa: D102
        columns = self.series.shape[1]
        hidden = self.settings["hidden"]
        cell = self.settings["cell"]
        return Recurrent(columns, hidden, self.targets, cell=cell, seeds=seeds, dtype=self.dtype)

    def cut(self, starts: Tensor) -> Batch:
        """Sequences of `length` inputs from each start, and the states that follow them.

        Args:
            starts: row numbers of any shape `(..., B)`.

        Returns:
            Two tensors of shape `(..., B, length, columns)` and `(..., B, length, targets)`.
        """
        # Gathered with time before batch, the order in which the network computes.
        rows = starts[..., None, :] + torch.arange(self.length + 1)[:, None]
        states = (
            self.series.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(-3, -2)
        )
        now = states[..., :-1, :]
        following = states[..., 1:, :]
        if self.targets == states.shape[-1]:
            return now, following
        known = following[..., self.targets :]
        return torch.cat((now[..., : self.targets], known), -1), following[..., : self.targets]

    def seen(self, rows: Tensor) -> Tensor:
        """The inputs of a network that stands at these rows, shape `(*rows.shape, columns)`.

        Columns that are known ahead are those of the next row.
        """
        states = self.series[rows]
        if self.targets == states.shape[-1]:
            return states
        following = self.series[(rows + 1).clamp(max=len(self.series) - 1), self.targets :]
        return torch.cat((states[..., : self.targets], following), -1)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        return self.cut(self.starts(seeds, step))

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        inputs, targets = (part[..., self.washout :, :] for part in batch)
        prediction = model(batch[0])[0][..., self.washout :, :]
        direct = self.settings["output"] == "direct"
        goal = targets if direct else (targets - inputs[..., : self.targets]) / self.change
        return squared_error(prediction, goal.expand_as(prediction))

    def predict(
        self, model: Model, inputs: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """The next state after every time step, in the units of the series.

        The network's state after the last one comes with it.
        """
        out, final = model(inputs, state)
        if self.settings["output"] == "direct":
            return out, final
        return inputs[..., : self.targets] + self.change * out, final

    def squared_errors(self, model: Model, batch: Batch) -> Tensor:
        """Squared errors of the predicted states after the washout.

        They have shape `([R,] B, length - washout, targets)`.
        """
        prediction = self.predict(model, batch[0])[0]
        return ((prediction - batch[1]) ** 2)[..., self.washout :, :]

    def one_step_errors(
        self, model: Model, first: int, last: int, *, warm_up: int = 100, piece: int = 500
    ) -> Tensor:
        """Errors of the one-step predictions of rows `first` to `last - 1`.

        They have shape `([R,] last - first, targets)`. The rows are predicted in pieces side by
        side, each after `warm_up` samples (or as many as there are).
        """
        warm_up = min(warm_up, first - 1)
        piece = min(piece, last - first)
        rows = torch.arange(first, last, piece)[:, None] + torch.arange(-1 - warm_up, piece - 1)
        prediction = self.predict(model, self.seen(rows.clamp(max=len(self.series) - 1)))[0]
        return (
            prediction[..., warm_up:, :].flatten(-3, -2)[..., : last - first, :]
            - self.series[first:last, : self.targets]
        )

    def free_errors(
        self, model: Model, first: int, last: int, steps: int, *, most: int = 200
    ) -> Tensor:
        """Errors of forecasts that run on by themselves, over rows `first` to `last - 1`.

        They have shape `([R,] starts, steps, targets)`. A network sees 100 rows (or as many as
        there are), then nothing but its own forecasts and the columns that are known ahead.

        Args:
            model: the network.
            first: the first row that may be forecast, at least 1.
            last: the row after the last one, at least `first + steps`.
            steps: rows of each forecast.
            most: forecasts, evenly spread.
        """
        count = min(most, last - first - steps + 1)
        starts = torch.linspace(first - 1, last - 1 - steps, count).round().long()
        warm_up = min(100, first - 1)
        rows = starts[:, None] + torch.arange(-warm_up, 1)
        prediction, state = self.predict(model, self.seen(rows))
        now = prediction[..., -1:, :]
        errors = []
        for step in range(1, steps + 1):
            errors.append(now - self.series[starts + step, None, : self.targets])
            inputs = self.seen(starts + step)[:, None].expand(*now.shape[:-1], -1)
            inputs = torch.cat((now, inputs[..., self.targets :]), -1)
            now, state = self.predict(model, inputs, state)
        return torch.cat(errors, -2)


class QuickForecasting(SequenceTask):
    """The quick protocol on a chaotic series of 4,000 samples, 70 % of it for training.

    The series is normalised as a whole. The test error is the root mean square of one-step errors
    over 48 sequences of 50 steps after the training part. The first 5 steps are not scored. The
    series has unit variance, so it is the NRMSE.

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
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        settings = {
            "cell": cell,
            "hidden": hidden,
            "output": output,
            "batch_size": batch_size,
            "dtype": dtype,
        }
        self._define(name, TITLES[name], 20_000, 500, settings)
        raw = quick_series(name)
        series = (raw - raw.mean(0)) / raw.std(0)
        train_rows = int(0.7 * len(raw))
        self._use(series, train_rows, batch_size=batch_size, length=50, washout=5)
        # Spread evenly: 48 random starts, as in the experiments this protocol is compared with,
        # would let the error of one and the same network vary by a tenth with the draw.
        self.test = self.cut(torch.linspace(train_rows + 10, len(raw) - 60, 48).long())

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        return {"nrmse": mean_over_samples(self.squared_errors(model, self.test), model).sqrt()}
