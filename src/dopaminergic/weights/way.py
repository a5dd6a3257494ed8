"""The four things that each way of perturbing weights does."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dopaminergic.noise import Multiple, Term


class Way(ABC):
    """Displaces some of the weights, and brings them back.

    Attributes:
        step: the number of the step, of which the directions are a function.
    """

    def __init__(self) -> None:
        self.step = 0

    def begin(self, step: int) -> None:
        """Begin a step at the weights as they are."""
        self.step = step

    @abstractmethod
    def move(self, terms: list[Term], rounding: int) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`.

        Args:
            terms: the steps along each direction.
            rounding: which random numbers round 16-bit weights: `UPDATE`, or `perturbation(k)`.
        """

    @abstractmethod
    def restore(self, step: int) -> None:
        """Bring the weights back to where `step` began; harmless if they are there."""

    @abstractmethod
    def update(self, terms: list[Term], scales: list[Multiple] | None) -> None:
        """Set the weights to scale * (weights at `begin`) + terms, in one pass.

        Args:
            terms: the steps along each direction.
            scales: a factor for each group, which weight decay makes; None for ones.
        """
