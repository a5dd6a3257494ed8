"""MNIST-1D: ten shapes of twelve numbers, hidden in noisy sequences of forty.

A stand-in for images on which networks of different kinds differ (Greydanus and Kobak 2024, arXiv
2011.14439). The data are generated here from that description. The shapes are this library's own,
drawn after digits. Published test accuracies, for the shapes of the paper, are logistic regression
32 %, perceptron 68 %, convolutional network 94 %, GRU 91 %.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dopaminergic.lab.convolution import Convolutional1d
from dopaminergic.lab.networks import Perceptron, Recurrent, Seeds
from dopaminergic.lab.tasks.classification import Classification
from dopaminergic.lab.tasks.task import Batch, Draws, Model, choose, counted

CLASSES, LENGTH = 10, 40
TRAIN_ROWS, TEST_ROWS = 4000, 1000
NETWORKS = {"mlp": "perceptron", "cnn": "convolutional", "gru": "GRU"}
# Where a pen is, left or right, while it draws the digit from top to bottom.
SHAPES = (
    (0.0, 1.0, 1.6, 1.9, 2.0, 2.0, 2.0, 2.0, 1.9, 1.6, 1.0, 0.0),
    (0.0, -1.0, -2.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.0),
    (0.0, 1.0, 1.5, 1.6, 1.2, 0.4, -0.4, -1.2, -1.8, -1.0, 0.5, 1.0),
    (0.0, 1.0, 1.5, 1.5, 1.0, 0.0, 0.0, 1.0, 1.5, 1.5, 1.0, 0.0),
    (0.0, -0.6, -1.2, -1.8, -2.4, -2.4, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, -2.0, -2.0, -2.0, -1.8, 0.0, 1.0, 1.5, 1.5, 1.0, 0.2, -0.8),
    (0.0, -0.8, -1.4, -1.8, -2.0, -2.0, -0.8, 0.8, 1.2, 0.8, 0.0, -1.0),
    (0.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0, -0.4, -0.8, -1.2, -1.6),
    (0.0, -1.0, -1.5, -1.5, -1.0, 0.0, 0.0, -1.0, -1.5, -1.5, -1.0, 0.0),
    (0.0, -1.0, -1.5, -1.5, -1.0, 0.0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0),
)
AMPLITUDE = 0.23  # standard deviation of a shape: perceptrons are then about as good as published
PADDED = (36, 60)  # numbers of a sequence before it is resampled
SCALING = 0.4  # width of the uniform factor about 1
SHIFT = 48  # numbers by which a sequence is rotated, less than this
NOISE = 0.25  # size of the noise, before it is smoothed, where there is no shape
SMOOTHING = 2.0  # standard deviation of its Gaussian filter, in numbers of a sequence
JITTER = 0.02  # size of the noise of every number
SHEAR = 0.75  # width of the uniform slope that is added


@cache
def make_data(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sequences `(5000, 40)` and their classes, as many of each, in random order."""
    draw = np.random.RandomState(seed)
    count = TRAIN_ROWS + TEST_ROWS
    classes = draw.permutation(np.arange(count) % CLASSES)
    shapes = np.array(SHAPES)
    shapes *= AMPLITUDE / shapes.std(1, keepdims=True)
    return np.stack([make_sequence(shapes[each], draw) for each in classes]), classes


def make_sequence(shape: NDArray[np.float64], draw: np.random.RandomState) -> NDArray[np.float64]:
    """One sequence of 40 numbers with a shape in it.

    The shape is padded, scaled and rotated. Smooth noise fills the other places. A slope is added,
    and all is resampled.
    """
    length = draw.randint(PADDED[0], PADDED[1] + 1)
    sequence = np.zeros(length)
    sequence[: len(shape)] = shape * (1 + SCALING * (draw.rand() - 0.5))
    taken = np.arange(length) < len(shape)
    shift = draw.randint(SHIFT)
    sequence, taken = np.roll(sequence, shift), np.roll(taken, shift)
    sequence += np.where(taken, 0.0, NOISE * smooth(draw.randn(length)))
    sequence += JITTER * draw.randn(length)
    sequence += SHEAR * (draw.rand() - 0.5) * np.linspace(-0.5, 0.5, length)
    return np.interp(np.linspace(0, length - 1, LENGTH), np.arange(length), sequence)


def smooth(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """White noise after a Gaussian filter of four standard deviations to each side."""
    reach = int(4 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    padded = np.pad(noise, reach, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), "valid").astype(np.float64)


class Mnist1d(Classification):
    """Tell ten noisy shapes apart: 4,000 sequences of 40 numbers to train on, 1,000 to test.

    Args:
        network: `"mlp"` (40-100-100-10, ReLU), `"cnn"` (three convolutions of 25 channels, ReLU) or
            `"gru"` (reads the numbers one by one).
        units: of each hidden layer of the perceptron, or channels, or units of the GRU; None: 100,
            25 or 24.
        batch_size: sequences in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(
        self,
        *,
        network: str = "mlp",
        units: int | None = None,
        batch_size: int = 100,
        dtype: str = "float32",
    ) -> None:
        choose("network", network, tuple(NETWORKS))
        units = {"mlp": 100, "cnn": 25, "gru": 24}[network] if units is None else units
        counted("units", units)
        counted("batch_size", batch_size)
        settings: dict[str, Any] = {"network": network, "units": units, "batch_size": batch_size}
        title = f"MNIST-1D, {NETWORKS[network]}"
        self._define("mnist1d", title, 30_000, 250, settings | {"dtype": dtype})
        sequences, classes = make_data()
        inputs = torch.tensor(sequences / sequences[:TRAIN_ROWS].std(), dtype=self.dtype)
        targets = torch.tensor(classes)
        self.train = (inputs[:TRAIN_ROWS], targets[:TRAIN_ROWS])
        self.test = (inputs[TRAIN_ROWS:], targets[TRAIN_ROWS:])
        self.draws = Draws(batch_size, TRAIN_ROWS)

    def build(self, seeds: Seeds) -> Model:  # noqa: D102
        units = self.settings["units"]
        if self.settings["network"] == "cnn":
            return Convolutional1d(LENGTH, units, CLASSES, seeds=seeds, dtype=self.dtype)
        if self.settings["network"] == "gru":
            return Recurrent(1, units, CLASSES, cell="gru", seeds=seeds, dtype=self.dtype)
        sizes = (LENGTH, units, units, CLASSES)
        # As ReLU halves a variance, the layers before it start with twice as much (He et al. 2015).
        spread = [math.sqrt(2 / LENGTH), math.sqrt(2 / units), math.sqrt(1 / units)]
        return Perceptron(sizes, hidden="relu", seeds=seeds, deviations=spread, dtype=self.dtype)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        chosen = self.draws(seeds, step)
        return self.train[0][chosen], self.train[1][chosen]

    def logits(self, model: Model, inputs: Tensor) -> Tensor:
        """The model's answer; a GRU answers after the last number."""
        if self.settings["network"] == "gru":
            return model(inputs[..., None])[0][..., -1, :]
        return model(inputs)
