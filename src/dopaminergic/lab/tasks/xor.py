"""XOR and its relatives: two inputs whose product decides the class.

All networks answer with one logit. `loss="mse"` compares its sigmoid with the class under the
squared error, `loss="bce"` is the binary cross-entropy of the logit.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.lab.networks import ACTIVATIONS, GATES, Perceptron, Recurrent, Seeds
from dopaminergic.lab.tasks.task import (
    Batch,
    Draws,
    Model,
    Task,
    choose,
    counted,
    limited,
    mean_over_samples,
    single,
)
from dopaminergic.noise.reference import integers
from dopaminergic.outcomes import Outcome, outcome, squared_error

# Random signs come as the bits of numbers below 2^16.
BITS = 16


def binary_cross_entropy(logits: Tensor, classes: Tensor) -> Outcome:
    """The predictions of one logit under the binary cross-entropy, in nats.

    Args:
        logits: of any shape.
        classes: 0 or 1, real, of a shape that can be expanded to that of the logits.
    """
    target = classes.expand_as(logits)
    return outcome(
        logits, lambda v: functional.binary_cross_entropy_with_logits(v, target, reduction="none")
    )


def error_rate(logits: Tensor, classes: Tensor, model: Model) -> Tensor:
    """The share of samples on the wrong side of 0, in [0, 1].

    A logit of 0 or NaN counts as wrong.
    """
    wrong = ~(logits * (2 * classes - 1) > 0)
    return mean_over_samples(wrong, model)


def deviations(hidden: int) -> list[float]:
    """The start of all perceptrons here: inputs N(0, 1), readout N(0, 1/hidden)."""
    return [1.0, 1 / math.sqrt(hidden)]


def boundary(
    model: Model, half_width: float, dtype: torch.dtype, points: int = 40
) -> list[dict[str, Any]]:
    """The probability of class 1 on a square grid.

    Row i is the i-th smallest y, column j the j-th smallest x.
    """
    single(model)
    axis = torch.linspace(-half_width, half_width, points, dtype=dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        logits = model(torch.stack([x, y], -1).reshape(-1, 2))
    probability = torch.sigmoid(logits).reshape(points, points)
    return [
        {
            "name": "decision_boundary",
            "extent": [-half_width, half_width],
            "probability": probability.tolist(),
        },
    ]


class Xor(Task):
    """The four patterns of XOR, inputs +1 and -1, every batch all of them.

    It is solved when the MSE is below 0.01.

    Args:
        hidden_units: units of the hidden layer.
        hidden: their activation.
        loss: the loss to minimise, `"mse"` or `"bce"`; the metric is the MSE in both cases.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "mse"
    metric_label: ClassVar[str] = "mean squared error on the four patterns"
    threshold = 0.01

    def __init__(
        self, hidden_units: int, *, hidden: str = "tanh", loss: str = "mse", dtype: str = "float32"
    ) -> None:
        choose("hidden", hidden, tuple(ACTIVATIONS))
        choose("loss", loss, ("mse", "bce"))
        size = f"2-{hidden_units}-1"
        self._define(
            f"xor-{size}", f"XOR {size}", 5000, 10, {"hidden": hidden, "loss": loss, "dtype": dtype}
        )
        self.hidden_units = hidden_units
        self.inputs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=self.dtype)
        self.targets = torch.tensor([[0], [1], [1], [0]], dtype=self.dtype)

    def build(self, seeds: Seeds) -> Perceptron:  # noqa: D102
        n = self.hidden_units
        hidden = self.settings["hidden"]
        return Perceptron(
            (2, n, 1), hidden=hidden, seeds=seeds, deviations=deviations(n), dtype=self.dtype
        )

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        return self.inputs, self.targets

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        inputs, targets = batch
        logits = model(inputs)
        if self.settings["loss"] == "bce":
            return binary_cross_entropy(logits, targets)
        return squared_error(torch.sigmoid(logits), targets.expand_as(logits))

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        logits = model(self.inputs)
        return {
            "mse": mean_over_samples((torch.sigmoid(logits) - self.targets) ** 2, model),
            "error_rate": error_rate(logits, self.targets, model),
        }

    def picture(self, model: Model) -> list[dict[str, Any]]:  # noqa: D102
        return boundary(model, 1.5, self.dtype)


class PlaneXor(Task):
    """Base of the next two tasks: a fixed training set in the plane, and a large test set.

    Batches are minibatches of the training set.
    """

    metric: ClassVar[str] = "error_rate"
    metric_label: ClassVar[str] = "error rate on the test points"
    half_width: float
    hidden_units: int
    batch_size: int
    train: Batch
    test: Batch
    draws: Draws

    def build(self, seeds: Seeds) -> Perceptron:  # noqa: D102
        n = self.hidden_units
        return Perceptron((2, n, 1), seeds=seeds, deviations=deviations(n), dtype=self.dtype)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        chosen = self.draws(seeds, step)
        return self.train[0][chosen], self.train[1][chosen]

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        return binary_cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        logits = model(self.test[0])
        classes = self.test[1]
        return {
            "error_rate": error_rate(logits, classes, model),
            "loss": mean_over_samples(binary_cross_entropy(logits, classes).losses, model),
            "train_error_rate": error_rate(model(self.train[0]), self.train[1], model),
        }

    def picture(self, model: Model) -> list[dict[str, Any]]:  # noqa: D102
        return boundary(model, self.half_width, self.dtype)


class ContinuousXor(PlaneXor):
    """Points drawn evenly from [-1, 1]², of class 1 where x y > 0; the network is tanh 2-16-1.

    There are 256 points to train on and 1,000 to test.

    Args:
        hidden: units of the hidden layer.
        batch_size: training points in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    threshold = 0.05
    half_width = 1.5

    def __init__(self, *, hidden: int = 16, batch_size: int = 32, dtype: str = "float32") -> None:
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        settings = {"hidden": hidden, "batch_size": batch_size, "dtype": dtype}
        self._define("continuous-xor", "continuous XOR", 20_000, 100, settings)
        self.hidden_units = hidden
        self.batch_size = batch_size
        points = (
            2 * torch.rand(1256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            - 1
        )
        classes = (points.prod(-1, keepdim=True) > 0).to(self.dtype)
        points = points.to(self.dtype)
        self.train = (points[:256], classes[:256])
        self.test = (points[256:], classes[256:])
        self.draws = Draws(batch_size, 256)


class ClusterXor(PlaneXor):
    """Gaussian clusters at (±1, ±1), of class 1 where the centre's x y > 0.

    There are few points to train on, and 10,000 to test. `bayes_error` is the error of the best
    classifier: 1 - (p² + (1 - p)²), p = Phi(1/sd).

    Args:
        sd: standard deviation of a cluster in each coordinate.
        train_points: points to train on, a multiple of 4, as many from each cluster.
        hidden: units of the hidden layer.
        batch_size: training points in a batch, drawn with replacement.
        data_seed: seed of the training points; the test points stay.
        dtype: `"float32"` or `"float64"`.
    """

    half_width = 3.0

    def __init__(
        self,
        *,
        sd: float = 0.5,
        train_points: int = 32,
        hidden: int = 16,
        batch_size: int = 32,
        data_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        limited("sd", sd, 0, 1e6)
        if not sd > 0:
            raise ValueError(f"sd: expected a positive number, got {sd!r}")
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        counted("data_seed", data_seed, least=0, most=1 << 62)
        if counted("train_points", train_points, least=4) % 4:
            raise ValueError(
                f"train_points: expected a positive multiple of 4, got {train_points!r}"
            )
        p = (1 + math.erf(1 / sd / math.sqrt(2))) / 2
        settings: dict[str, Any] = {
            "sd": sd,
            "train_points": train_points,
            "hidden": hidden,
            "batch_size": batch_size,
        }
        settings |= {"data_seed": data_seed, "dtype": dtype}
        self.bayes_error = 1 - (p**2 + (1 - p) ** 2)
        self._define("cluster-xor", f"cluster XOR, sd {sd}", 20_000, 100, settings)
        self.hidden_units = hidden
        self.batch_size = batch_size
        self.train, self.test = self._points(train_points, 2 * data_seed), self._points(10_000, 1)
        self.draws = Draws(batch_size, train_points)

    def _points(self, n: int, seed: int) -> Batch:
        centres = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64).repeat(
            n // 4, 1
        )
        noise = torch.randn(
            n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        points = centres + self.settings["sd"] * noise
        return points.to(self.dtype), (centres.prod(-1, keepdim=True) > 0).to(self.dtype)


class TemporalXor(Task):
    """Streams of random signs; after each, the class of a product of two signs.

    They are the sign and the one `delay` steps before.

    Args:
        delay: steps between the two signs, at least 1; the network must remember as many signs.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        batch_size: streams in a batch.
        length: scored steps of a stream; `delay` more come before them.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "error_rate"
    metric_label: ClassVar[str] = "error rate on test streams"
    threshold = 0.05

    def __init__(
        self,
        *,
        delay: int = 1,
        cell: str = "tanh",
        hidden: int = 8,
        batch_size: int = 16,
        length: int = 20,
        dtype: str = "float32",
    ) -> None:
        counted("delay", delay)
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        counted("length", length)
        choose("cell", cell, tuple(GATES))
        settings = {
            "delay": delay,
            "cell": cell,
            "hidden": hidden,
            "batch_size": batch_size,
            "length": length,
        }
        self._define(
            "temporal-xor", f"temporal XOR, delay {delay}", 20_000, 100, settings | {"dtype": dtype}
        )
        self.draws = Draws(-(-batch_size * (length + delay) // BITS), 1 << BITS)
        self.test = self._streams(
            integers(64 * (length + delay), 1 << BITS, seed=0, step=0, parameter=1), 64
        )

    def _streams(self, numbers: Tensor, n: int) -> Batch:
        delay = self.settings["delay"]
        length = self.settings["length"] + delay
        bits = (numbers[..., None] >> torch.arange(BITS)).flatten(-2)[..., : n * length] & 1
        signs = (2 * bits - 1).unflatten(-1, (n, length))[..., None].to(self.dtype)
        return signs, (signs[..., delay:, :] * signs[..., :-delay, :] > 0).to(self.dtype)

    def build(self, seeds: Seeds) -> Recurrent:  # noqa: D102
        return Recurrent(
            1, self.settings["hidden"], 1, cell=self.settings["cell"], seeds=seeds, dtype=self.dtype
        )

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        return self._streams(self.draws(seeds, step), self.settings["batch_size"])

    def _logits(self, model: Model, inputs: Tensor) -> Tensor:
        return model(inputs)[0][..., self.settings["delay"] :, :]

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        return binary_cross_entropy(self._logits(model, batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        logits = self._logits(model, self.test[0])
        classes = self.test[1]
        return {
            "error_rate": error_rate(logits, classes, model),
            "loss": mean_over_samples(binary_cross_entropy(logits, classes).losses, model),
        }
