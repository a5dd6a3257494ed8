"""The weights of each run that erred least on its validation part, and for how long none did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopaminergic.lab.form import difference


class Best:
    """The best weights so far of each of R stacked networks.

    Args:
        model: the networks, stacked.
        replicas: R.
    """

    def __init__(self, model: nn.Module, replicas: int) -> None:
        self.errors = torch.full((replicas,), torch.inf, dtype=torch.float64)
        self.passes = torch.zeros(replicas, dtype=torch.int64)
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def see(self, model: nn.Module, errors: Tensor, passes: int) -> None:
        """Keep the weights of each network whose error is smaller than any before.

        Args:
            model: the networks as they are now.
            errors: on the validation part, `(R,)`; one that is not a number is never smaller.
            passes: forward passes so far.
        """
        better = errors < self.errors
        self.errors = torch.where(better, errors, self.errors)
        self.passes = torch.where(better, passes, self.passes)
        for name, value in model.state_dict().items():
            self.weights[name][better] = value[better]

    def is_tired(self, passes: int, patience: int | None) -> bool:
        """Whether no network has become better within so many passes."""
        return patience is not None and bool((passes - self.passes >= patience).all())

    def put_back(self, model: nn.Module) -> None:
        """Give each network its best weights."""
        model.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs."""
        return {"errors": self.errors, "passes": self.passes, "weights": self.weights}

    def is_like(self, state: Any) -> bool:
        """Whether a value from a file is built like a state of these networks."""
        return not difference(state, self.state())

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state that `is_like`."""
        self.errors, self.passes = state["errors"], state["passes"]
        self.weights = dict(state["weights"])
