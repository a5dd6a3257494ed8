"""What all kinds of files have in common."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

import dopaminergic
from dopaminergic import squared_error

RULES = (
    "Dopamine",
    "Dopamine2",
    "VectorDopamine",
    "SPSA",
    "WeightPerturbation",
    "EvolutionStrategy",
)


class Failure(Exception):  # noqa: N818  (found, not raised by the library)
    """A behaviour that must not be."""


class Kind:
    """One kind of file: good examples, and how it is read. It is made once, and gives a case at a
    time.
    """

    allowed: tuple[type[BaseException], ...] = (ValueError,)
    named = True  # whether messages must name the file

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "f"

    def try_one(self, chance: random.Random) -> bool:
        """Make a case and read it; whether it was accepted. Raises what the library raises, or
        `Failure`.
        """
        raise NotImplementedError


class Run:
    """Four weights and an optimizer of them.

    Args:
        rule: name of its class.
        seed: one, or two for a fleet.
        groups: number of parameter groups, 1 or 2.
    """

    def __init__(self, rule: str, seed: Any = 1, groups: int = 1) -> None:
        self.fleet = isinstance(seed, list)
        shape = (len(seed), 4) if self.fleet else (4,)
        self.weights = [torch.nn.Parameter(torch.ones(shape)) for _ in range(groups)]
        params = [{"params": [(f"w{i}", w)]} for i, w in enumerate(self.weights)]
        self.optimizer = getattr(dopaminergic, rule)(params, seed=seed)

    def step(self, times: int = 1) -> None:
        """Take steps towards zero."""
        for _ in range(times):
            self.optimizer.step(self._outcome)

    def _outcome(self) -> Any:
        found = torch.cat([*self.weights], -1)
        return (
            found.square().mean(-1) if self.fleet else squared_error(found, torch.zeros_like(found))
        )

    def everything(self) -> str:
        """All that a refused state must leave as it is."""
        return repr((self.optimizer.state_dict(), self.weights))
