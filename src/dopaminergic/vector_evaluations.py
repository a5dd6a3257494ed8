"""The evaluations of one step of VectorDopamine: at the weights, along directions, at the trial."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.batched import Batched
from dopaminergic.distributed import Ranks
from dopaminergic.noise import Multiple, Term
from dopaminergic.outcomes import Closure
from dopaminergic.quadratic import Quadratic, quadratic, read_again
from dopaminergic.subspace import Proposal, VectorState
from dopaminergic.weights import Weights
from dopaminergic.weights.modes import random_states, rewind


class Plan(NamedTuple):
    """A step that is tried on the same batch.

    Attributes:
        state: of the rule, before the verdict on the trial.
        proposal: 0 for replicas that are not usable.
        rates: share of the proposal that is taken, `(R,)` for each group.
        terms: multiples of directions.
        usable: replicas whose numbers are finite, `(R,)`.
    """

    state: VectorState
    proposal: Proposal
    rates: list[Tensor]
    terms: list[Term]
    usable: Tensor


class Evaluations:
    """Every evaluation starts from the random numbers that torch would give next.

    Args:
        closure: of the user, looked after.
        weights: which it reads.
        batched: evaluates directions as a batch, where that is possible.
        ranks: None for one process.
        rule: the optimizer's name, for errors.
        seed: of the optimizer.
        replicas: R of a fleet; None for one model.
        step: step number.

    Attributes:
        tried: evaluations along directions so far.
    """

    def __init__(
        self,
        closure: Closure,
        weights: Weights,
        batched: Batched,
        ranks: Ranks | None,
        *,
        rule: str,
        seed: Any,
        replicas: int | None,
        step: int,
    ) -> None:
        self._weights = weights
        self._batched = batched
        self._ranks = ranks
        self._rule = rule
        self._replicas = replicas
        self._step = step
        self._states: list[tuple[torch.Generator, Tensor]] = []
        self._closure: Closure = functools.partial(weights.evaluate, closure)
        if ranks is not None:
            self._closure = ranks.seeded(self._closure, weights, seed, step)
        self.tried = 0

    def at_weights(self) -> Quadratic:
        """The loss around the outcome at the weights, which begins the step."""
        self._weights.begin(self._step)
        if not any(self._weights.sizes):
            checks.some_trainable(self._rule, self._weights.groups)
        self._states = random_states(self._weights.generators)
        return quadratic(self._closure(), self._rule, self._replicas)

    def regrets(self, numbers: range, loss: Quadratic, multiples: list[Multiple]) -> Tensor:
        """J `(R, k, n)` of some directions; NaN for those that a deadline left out.

        Args:
            numbers: of the directions.
            loss: at the weights.
            multiples: of each direction, one for each group.
        """
        if not numbers:
            return loss.values[:, None][:, :0]
        rewind(self._states)
        if self._ranks is None or self._ranks.deadline is None:
            found = self._outcomes(numbers, loss, multiples)
            return found.transpose(0, 1) - loss.values[:, None]
        in_time: list[Tensor] = []
        while len(in_time) < len(numbers) and not (in_time and self._ranks.late):
            one = numbers[len(in_time) : len(in_time) + 1]
            in_time.append(self._outcomes(one, loss, multiples))
        found = torch.cat(in_time).transpose(0, 1) - loss.values[:, None]
        missing = (0, 0, 0, len(numbers) - len(in_time))
        return torch.nn.functional.pad(found, missing, value=math.nan)

    def _outcomes(self, numbers: range, loss: Quadratic, multiples: list[Multiple]) -> Tensor:
        def read(returned: Any) -> Tensor:
            return read_again(returned, loss.values, self._rule, self._replicas)

        found, tried = self._batched(
            self._weights, self._closure, read, loss.values, numbers, multiples, self._step
        )
        self.tried += tried
        return found

    def at_trial(self, terms: list[Term]) -> Tensor:
        """The loss `(R,)` of the same batch after a step."""
        self._weights.move(terms, as_update=True)
        rewind(self._states)
        return quadratic(self._closure(), self._rule, self._replicas).loss
