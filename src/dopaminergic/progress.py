"""The counters and the rule's state after a step, replaced as a whole when it is done."""

from __future__ import annotations

from typing import Any, NamedTuple

from dopaminergic.noise import Multiple, Term
from dopaminergic.scalars import Scalar


class Progress(NamedTuple):
    """All that changes from step to step besides the weights.

    Attributes:
        rule: the rule's own state.
        step: number of steps so far, skipped ones included.
        forward_passes: evaluations of the closure so far.
        skipped_steps: steps without an update.
        last_rpe: reward prediction error of the last step.
        last_learning_rate: learning rate of gradient descent that the last update amounts to.
        silent: steps in which no loss answered to a perturbation, less those in which one did.
        answered: whether any loss has ever answered.
        doublings: how many times sigma was doubled because none did.
        chosen_sigma: the sigma that the library chose, which it may choose again; 0 if the user
            chose.
    """

    rule: Any
    step: int = 0
    forward_passes: int = 0
    skipped_steps: Any = 0
    last_rpe: Any = 0.0
    last_learning_rate: Any = 0.0
    silent: int = 0
    answered: bool = False
    doublings: int = 0
    chosen_sigma: float = 0.0

    def after_skipping(self, passes: int) -> Progress:
        """The progress after a step of so many passes that changes no weights."""
        return self._replace(
            step=self.step + 1,
            forward_passes=self.forward_passes + passes,
            skipped_steps=self.skipped_steps + 1,
        )


class Change(NamedTuple):
    """The effect of a step once it is applied.

    Attributes:
        terms: multiples of directions that are added to the weights.
        scales: factors on the weights of each group, from weight decay; None: 1.
        after: the progress that follows.
        rates: learning rates of gradient descent with the same mean update, one for each group;
            empty if skipped.
    """

    terms: list[Term]
    scales: list[Multiple] | None
    after: Progress
    rates: list[Scalar] = []  # noqa: RUF012  (nobody writes to it)
