"""The trials of a step: which there are, and a step that is made of their answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dopaminergic.answers import Answer, unknown_like
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.plain import brief
from dopaminergic.quadratic import quadratic
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.start_weights import StartWeights, same_numbers
from dopaminergic.subspace import directions_for
from dopaminergic.vector import VectorDopamine


class Trial(NamedTuple):
    """Weights that are to be tried.

    Attributes:
        number: by which its outcome is told; trials are numbered from 0 on.
        weights: a copy, in the form of the weights at the start.
    """

    number: int
    weights: Any


class Best(NamedTuple):
    """The trial with the least loss that was told.

    Attributes:
        number: of the trial.
        loss: its mean loss.
        weights: a copy, in the form of the weights at the start.
    """

    number: int
    loss: float
    weights: Any


class AllAskedError(Exception):
    """All trials that can be asked now are known."""


class Replay:
    """A closure that answers as told, and then with NaN where it notes the weights.

    Args:
        start: whose parameters the optimizer perturbs.
        trials: of this step, that are told.
        told: their answers.
        most: further evaluations before it raises.

    Attributes:
        found: weights at the further evaluations.
    """

    def __init__(
        self, start: StartWeights, trials: list[list[np.ndarray]], told: list[Answer], most: int
    ) -> None:
        self.found: list[list[np.ndarray]] = []
        self._start = start
        self._trials = trials
        self._told = told
        self._most = most
        self._calls = 0

    def __call__(self) -> Answer:
        """The answer to the weights as they are now."""
        call = self._calls
        self._calls += 1
        now = self._start.now()
        if call < len(self._told):
            if not all(map(same_numbers, now, self._trials[call])):
                raise RuntimeError(
                    "AskTell: the weights, or a setting such as sigma, changed within a step, so "
                    "that its answers belong to other trials; call restart() after such a change"
                )
            return self._told[call]
        if len(self.found) == self._most:
            raise AllAskedError
        self.found.append(now)
        return unknown_like(self._told[0] if self._told else None)


def most_at_once(optimizer: ForwardOptimizer, told: list[Answer]) -> int:
    """The most trials that can be asked for before one of them is told.

    Args:
        optimizer: that makes the step.
        told: answers to the trials of the step so far.
    """
    if isinstance(optimizer, ScalarRule):
        return len(optimizer.points())
    if len(told) != 1:  # VectorDopamine begins at the weights, and ends with a trial of its step
        return 1
    settings = optimizer.settings
    trainable = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    weights = sum(p.numel() for p in trainable)
    if not settings["automatic"]:
        return min(settings["directions"], weights)
    loss = quadratic(told[0], type(optimizer).__name__, None)
    step, outcomes = optimizer.progress.step, loss.values.shape[1]
    return directions_for(weights, loss.samples, step, outcomes, settings["memory"])


def make_optimizer(
    optimizer: Any, start: StartWeights, settings: dict[str, Any]
) -> ForwardOptimizer:
    """The optimizer of the start's parameters; raise if it cannot be asked."""
    if not callable(optimizer):
        raise TypeError(
            f"AskTell: optimizer must be a class such as Dopamine2, or a function that makes one "
            f"of parameters, got {brief(optimizer)}"
        )
    if isinstance(optimizer, type):
        _check_kind(optimizer)
        if issubclass(optimizer, VectorDopamine):
            settings = {"batched": False, **settings}
    made: Any = optimizer(start.params, **settings)
    _check_kind(type(made))
    rule = type(made).__name__
    refused = {
        "batched=True, which needs a closure of torch; set batched=False": made.settings["batched"],
        "a sequence of seeds, a fleet; make one AskTell for each seed": made.replicas is not None,
        "process_group; leave it out, and give trials to processes by ask(k)": settings.get(
            "process_group", "alone"
        )
        not in (None, "alone"),
    }
    for why, wrong in refused.items():
        if wrong:
            raise ValueError(f"AskTell: {rule} was given {why}")
    own = {id(p) for group in made.param_groups for p in group["params"]}
    if own != {id(p) for p in start.tensors}:
        raise ValueError(
            f"AskTell: the function made {rule} of other parameters; use all that it is given, for "
            "example lambda params: Dopamine2(params, sigma=0.1)"
        )
    return made


def _check_kind(kind: type) -> None:
    if not issubclass(kind, ScalarRule | VectorDopamine):
        why = (
            "it perturbs activities inside a model of torch"
            if issubclass(kind, ForwardOptimizer)
            else "it is no optimizer of this library"
        )
        raise TypeError(
            f"AskTell: {kind.__name__} cannot be asked for weights, since {why}; use Dopamine2, "
            "Dopamine, VectorDopamine, SPSA, WeightPerturbation or EvolutionStrategy"
        )
