"""The input and output of a rule.

    losses of the weights and of perturbed weights
        -> the rule
        -> one signal for each direction, one step for each group

A rule sees no weights and no noise: it is a function of losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dopaminergic.noise import Multiple, Term
from dopaminergic.points import Point
from dopaminergic.scalars import Scalar, as_array, clip, finite, mean, select


def antithetic(plus: list[Scalar], minus: list[Scalar]) -> list[Scalar]:
    """Half the difference of each pair, (L(W + sigma z) - L(W - sigma z)) / 2 (Spall 1992)."""
    return [(p - m) / 2 for p, m in zip(plus, minus, strict=True)]


class Losses(NamedTuple):
    """The closure's losses in one step; each entry is one loss, or one for each replica.

    Attributes:
        base: at the unperturbed weights; None for a rule that does not ask for it.
        plus: at weights + sigma z_k, one entry for each of the K directions, or empty.
        minus: at weights - sigma z_k; empty for a rule that does not ask for them.
    """

    base: Scalar | None
    plus: list[Scalar]
    minus: list[Scalar]

    @classmethod
    def at(cls, points: Sequence[Point], values: list[Scalar]) -> Losses:
        """The losses that were found at these points."""
        by_side: dict[int, list[Scalar]] = {0: [], 1: [], -1: []}
        for point, value in zip(points, values, strict=True):
            by_side[point.side].append(value)
        return cls(by_side[0][0] if by_side[0] else None, by_side[1], by_side[-1])

    def mean(self) -> Scalar:
        """The loss at the weights: measured, or else the mean around them."""
        return self.base if self.base is not None else mean(self.plus + self.minus)

    def one_sided(self) -> tuple[Scalar, list[Scalar]]:
        """The loss at the weights, and those at weights + sigma z_k.

        They are measured, or free of even curvature.
        """
        if self.base is not None:
            return self.base, self.plus
        base = self.mean()
        return base, [base + half for half in antithetic(self.plus, self.minus)]


class Group(NamedTuple):
    """The figures of a parameter group that a rule needs.

    Attributes:
        lr: learning rate, in the rule's own unit.
        sigma: perturbation scale, the change of each weight in a perturbed pass. In large models
            that signs perturb in place it is rounded to 6 significant bits.
        size: number of trainable weights.
    """

    lr: Scalar
    sigma: float
    size: int


class Decision(NamedTuple):
    """The answer of a rule to the losses.

    Group g moves by -(step_sizes[g] / K) * sum_k signals[k] z_k.

    Attributes:
        state: the rule's next state.
        signals: one for each direction.
        step_sizes: one for each group; the change of a weight for a signal of 1.
        rates: one for each group; the learning rate of gradient descent that has the same mean
            update.
        rpe: the reward prediction error, averaged over directions.
    """

    state: Any
    signals: list[Scalar]
    step_sizes: list[Scalar]
    rates: list[Scalar]
    rpe: Scalar

    def terms(self, directions: list[int]) -> list[Term]:
        """The update as multiples of directions: of each, one for each group."""
        share = -1.0 / len(self.signals)
        return [
            (k, [step * share * signal for step in self.step_sizes])
            for k, signal in zip(directions, self.signals, strict=True)
        ]


def can_be_ranked(losses: list[Scalar]) -> Scalar:
    """Whether losses can be ranked: some are finite, and none is NaN or -inf.

    No loss could be better than -inf.
    """
    known = True
    some = False
    for loss in losses:
        known = known & (loss > -math.inf)
        some = some | finite(loss)
    return known & some


def decay_factors(decays: list[float], rates: list[Scalar], usable: Scalar) -> list[Multiple]:
    """The factors of weight decay on the weights of each group."""
    factors = [
        clip(1.0 - rate * decay, 0.0, 1.0) for rate, decay in zip(rates, decays, strict=True)
    ]
    return [as_array(select(usable, factor, 1.0)) for factor in factors]


def choose(usable: Scalar, new: Any, old: Any) -> Any:
    """The new state of the rule where it is usable; rules without a state have None."""
    return (
        new
        if new is None
        else type(new)(*(select(usable, n, o) for n, o in zip(new, old, strict=True)))
    )
