"""The common part of tasks whose network tells classes apart under the softmax cross-entropy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dopaminergic.lab.tasks.task import Batch, Model, Task, mean_over_samples
from dopaminergic.outcomes import Outcome, cross_entropy


class Classification(Task):
    """Base of tasks with classes: cross-entropy to minimise, and to rank by on `test`.

    The accuracy stands beside it.

    Attributes:
        test: inputs `(B, ...)` and classes `(B, ...)`, the same for all replicas.
    """

    metric: ClassVar[str] = "cross_entropy"
    metric_label: ClassVar[str] = "test cross-entropy (nats)"
    test: Batch

    def logits(self, model: Model, inputs: Tensor) -> Tensor:
        """The model's answer: shape `(..., classes)`, with a leading R for a stacked model."""
        return model(inputs)

    def outcome(self, model: Model, batch: Batch) -> Outcome:  # noqa: D102
        logits = self.logits(model, batch[0])
        return cross_entropy(logits, batch[1].expand(logits.shape[:-1]))

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        result = self.outcome(model, self.test)
        right = result.values.argmax(-1) == self.test[1]
        return {
            "cross_entropy": mean_over_samples(result.losses, model),
            "accuracy": mean_over_samples(right, model),
        }
