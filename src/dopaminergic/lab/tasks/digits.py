"""Handwritten digits: the 1,797 images of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dopaminergic.lab.networks import ACTIVATIONS, Perceptron, Seeds
from dopaminergic.lab.tasks.task import Batch, Draws, Model, Task, choose, mean_over_samples
from dopaminergic.outcomes import Outcome, cross_entropy

TRAIN_ROWS = 1297


class Digits(Task):
    """Classify digits by a perceptron 64-64-10: 1,297 images to train on, 500 to test.

    Args:
        units: of the hidden layer.
        hidden: their activation.
        batch_size: images in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    metric: ClassVar[str] = "cross_entropy"
    metric_label: ClassVar[str] = "test cross-entropy (nats)"

    def __init__(self, *, units: int = 64, hidden: str = "tanh", batch_size: int = 128, dtype: str = "float32") -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("the task digits needs scikit-learn: pip install scikit-learn") from error
        choose("hidden", hidden, tuple(ACTIVATIONS))
        settings: dict[str, Any] = {"units": units, "hidden": hidden, "batch_size": batch_size, "dtype": dtype}
        self._define("digits", "handwritten digits", 30_000, 750, settings)
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(pixels))
        images, classes = torch.tensor(pixels[order] / 16, dtype=self.dtype), torch.tensor(labels[order]).long()
        self.train, self.test = (images[:TRAIN_ROWS], classes[:TRAIN_ROWS]), (images[TRAIN_ROWS:], classes[TRAIN_ROWS:])
        self.draws = Draws(batch_size, TRAIN_ROWS)

    def build(self, seeds: Seeds) -> Perceptron:  # noqa: D102
        sizes = (64, self.settings["units"], 10)
        return Perceptron(sizes, hidden=self.settings["hidden"], seeds=seeds, dtype=self.dtype)

    def batch(self, seeds: int | Tensor, step: int) -> Batch:  # noqa: D102
        chosen = self.draws(seeds, step)
        return self.train[0][chosen], self.train[1][chosen]

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        logits = model(batch[0])
        return cross_entropy(logits, batch[1].expand(logits.shape[:-1]))

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        result = self.outcome(model, self.test)
        right = result.values.argmax(-1) == self.test[1]
        return {"cross_entropy": mean_over_samples(result.losses, model), "accuracy": mean_over_samples(right, model)}
