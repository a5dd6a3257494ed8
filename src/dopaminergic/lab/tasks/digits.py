"""Handwritten digits: the 1,797 images of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.lab.networks import ACTIVATIONS, Perceptron, Seeds
from dopaminergic.lab.tasks.classification import Classification
from dopaminergic.lab.tasks.task import Batch, Draws, choose, counted

TRAIN_ROWS = 1297


class DigitImages(Classification):
    """Base of the tasks on digits: 1,297 images to train on, 500 to test, in minibatches.

    The tasks differ in their network.
    """

    train: Batch
    draws: Draws

    def _load(self, batch_size: int) -> None:
        """Sets the data, of the task's dtype, and how batches are drawn: with replacement."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                f"the task {self.name} needs scikit-learn: pip install scikit-learn"
            ) from error
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(pixels))
        images = torch.tensor(pixels[order] / 16, dtype=self.dtype)
        classes = torch.tensor(labels[order]).long()
        self.train = (images[:TRAIN_ROWS], classes[:TRAIN_ROWS])
        self.test = (images[TRAIN_ROWS:], classes[TRAIN_ROWS:])
        self.draws = Draws(batch_size, TRAIN_ROWS)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        chosen = self.draws(seeds, step)
        return self.train[0][chosen], self.train[1][chosen]


class Digits(DigitImages):
    """Classify digits by a perceptron 64-64-10: 1,297 images to train on, 500 to test.

    Args:
        units: of the hidden layer.
        hidden: their activation.
        batch_size: images in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(
        self,
        *,
        units: int = 64,
        hidden: str = "tanh",
        batch_size: int = 128,
        dtype: str = "float32",
    ) -> None:
        choose("hidden", hidden, tuple(ACTIVATIONS))
        counted("units", units)
        counted("batch_size", batch_size)
        settings: dict[str, Any] = {
            "units": units,
            "hidden": hidden,
            "batch_size": batch_size,
            "dtype": dtype,
        }
        self._define("digits", "handwritten digits", 30_000, 750, settings)
        self._load(batch_size)

    def build(self, seeds: Seeds) -> Perceptron:  # noqa: D102
        sizes = (64, self.settings["units"], 10)
        return Perceptron(sizes, hidden=self.settings["hidden"], seeds=seeds, dtype=self.dtype)


class ThresholdDigits(DigitImages):
    """Classify digits by a perceptron 64-64-10 whose hidden units say +1 or -1 and nothing between.

    Their derivative is 0 wherever there is one. So the gradient of the first layer is 0, and Adam
    trains the readout alone. There are 1,297 images to train on and 500 to test.

    Args:
        units: of the hidden layer.
        batch_size: images in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, *, units: int = 64, batch_size: int = 128, dtype: str = "float32") -> None:
        counted("units", units)
        counted("batch_size", batch_size)
        settings: dict[str, Any] = {"units": units, "batch_size": batch_size, "dtype": dtype}
        title = "handwritten digits, hard thresholds"
        self._define("threshold-digits", title, 30_000, 750, settings)
        self._load(batch_size)

    def build(self, seeds: Seeds) -> Perceptron:  # noqa: D102
        sizes = (64, self.settings["units"], 10)
        return Perceptron(sizes, hidden="sign", seeds=seeds, dtype=self.dtype)
