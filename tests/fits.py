"""Problems that VectorDopamine is tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopaminergic import VectorDopamine, cross_entropy, outcome, squared_error
from optimizers import Regression, perceptron

DOUBLE = torch.float64
LABELS = torch.arange(16) % 3


class Fit(Regression):
    """The table's small network; what the closure returns is one of `FORMS`."""

    def __init__(
        self, form: str = "squared_error", seed: int = 0, dtype: torch.dtype = DOUBLE
    ) -> None:
        super().__init__(seed, dtype)
        self.form = form
        if form == "cross_entropy":
            self.model = perceptron(3, 5, 3, seed=seed, dtype=dtype)

    def __call__(self) -> Any:
        return FORMS[self.form](self.model(self.x), self.y)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "squared_error": squared_error,
    "cross_entropy": lambda p, y: cross_entropy(p, LABELS),
    "outcome": lambda p, y: outcome(p, lambda p: ((p - y) ** 4 + (p - y) ** 2).flatten()),
    "losses": lambda p, y: ((p - y) ** 2).flatten(),
    "number": lambda p, y: ((p - y) ** 2).mean(),
}


def run(problem: Fit, optimizer: VectorDopamine, steps: int) -> list[float]:
    return [optimizer.step(problem) for _ in range(steps)]


def through_a_file(state: Any, file: Path) -> Any:
    torch.save(state, file)
    return torch.load(file, weights_only=True)
