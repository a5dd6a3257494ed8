"""The two rules of this library: prediction errors of the regret set both the update and its size.

    Dopamine  = sign noise + one-sided regret + relative, precision-weighted error + Polyak step
    Dopamine2 = sign noise + one-sided regret + precision-weighted error
                + expected-versus-actual learning rate

Both are defined by this library after an abstract, since the equations were not at hand. It is that
of Nambusubramaniyan, Safavi, Guru and Knoblauch, "Dopamine-driven synaptic credit assignment in
neural networks", arXiv 2510.22178, 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.optim.optimizer import ParamsT

from dopaminergic import checks
from dopaminergic.prediction_errors import (
    Dopamine2State,
    DopamineState,
    dopamine,
    dopamine2,
    learning_rate_gain,
    variance_factor,
)
from dopaminergic.rule import Decision, Group, Losses
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.scalars import clip, mean, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dopaminergic.distributed import Ranks


class Dopamine(ScalarRule):
    """Weight perturbation by a relative, precision-weighted reward prediction error.

    There is nothing to tune. A step costs two forward passes. The rule is indifferent to the scale
    of the loss. It must know the least loss that can be reached, `loss_floor`, which is 0 for most
    losses. With an unknown floor above 0 it steps too far; use `Dopamine2` then, for example for a
    text whose entropy nobody knows.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: factor on the Polyak step, dimensionless, >= 0; any scheduler may change it.
            From 4 on it overshoots on a quadratic without noise.
        sigma: how far each weight moves in a perturbed pass, > 0. None: 0.0003, so small that the
            curvature of the loss adds less to a regret than its slope does; 0.0125 with 16-bit
            weights.
        loss_floor: the least loss that can be reached, for example the variance of the noise in
            the targets of a squared error.
        cap: the farthest that a weight moves in one step for an error of one standard deviation, >
            0.
        beta: decay in [0, 1) of all running means.
        directions: number K of random directions that are averaged; a step costs K + 1 forward
            passes, 2 K if they are two-sided.
        two_sided: take the regret of a direction as half the difference between the losses to both
            of its sides. Curvature does not change that, so a larger `sigma` can be used, as 16-bit
            weights need it. The loss at the weights is taken to be the mean of both. None: with
            16-bit weights.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence such as `range(8)` makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    It is defined by this library after the abstract of arXiv 2510.22178 (2025).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = Dopamine(model.parameters())
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    2
    """

    default_sigmas = (3e-4, 0.0125)

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 3.5,
        sigma: float | None = None,
        loss_floor: float = 0.0,
        cap: float = 0.1,
        beta: float = 0.99,
        directions: int = 1,
        two_sided: bool | None = None,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        batched: bool = False,
        process_group: ProcessGroup | Ranks | str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            directions=directions,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            batched=batched,
            process_group=process_group,
            loss_floor=loss_floor,
            cap=cap,
            beta=beta,
        )
        self._choose_sides(two_sided)
        checks.usual_rate("Dopamine", self.param_groups, 3.5)

    def start(self) -> DopamineState:
        """Nothing is known: all entries are 0 but `doubt`."""
        return DopamineState(*[self.zero()] * 6)._replace(doubt=self.zero() + 1.0)

    def rule(self, state: DopamineState, losses: Losses, groups: list[Group]) -> Decision:
        """See `ScalarRule.rule`; algorithms.md, "Dopamine"."""
        settings = self.settings
        base, plus = losses.one_sided()
        errors = dopamine(
            state, base, plus, loss_floor=settings["loss_floor"], beta=settings["beta"]
        )
        factor = variance_factor(sum([group.size for group in groups]), len(plus))
        cap = settings["cap"]
        steps = []
        rates = []
        for lr, sigma, _ in groups:
            step = clip(lr * errors.level * sigma / (factor * errors.scale), 0.0, cap)
            steps.append(step)  # min(a R sigma / ((d + K - 1) / K s), cap)
            rates.append(step * sigma / errors.scale)
        return Decision(errors.state, errors.signals, steps, rates, mean(errors.rpes))


class Dopamine2(ScalarRule):
    """Weight perturbation whose learning rate follows actual against expected improvement.

    That is a second prediction error. A step costs two forward passes. The rule is indifferent to
    the scale of the loss and to any constant added to it.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: first learning rate, dimensionless, >= 0. For an error of one standard deviation each of
            d weights moves by `lr / d` (for one direction). For example, 1,000 weights move by
            0.001 with a rate of 1. Errors change it from there by a factor g in [1e-3, 1e3].
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.001, or 0.0125 with
            16-bit weights.
        tau: share in (0, 1) of the expected improvement that is enough.
        kappa: speed of the learning rate's controller, >= 0.
        cap: the farthest that a weight moves in one step for an error of one standard deviation, >
            0.
        beta: decay in [0, 1) of all running means.
        directions: number K of random directions that are averaged; a step costs K + 1 forward
            passes, 2 K if they are two-sided.
        two_sided: take the regret of a direction as half the difference between the losses to both
            of its sides. Curvature does not change that, so a larger `sigma` can be used, as 16-bit
            weights need it. The loss at the weights is taken to be the mean of both. None: with
            16-bit weights.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence such as `range(8)` makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    It is defined by this library after the abstract of arXiv 2510.22178 (2025).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = Dopamine2(model.parameters())
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    2
    """

    limits = (1e-3, 1e3)
    default_sigmas = (1e-3, 0.0125)

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1.5,
        sigma: float | None = None,
        tau: float = 0.25,
        kappa: float = 0.02,
        cap: float = 0.1,
        beta: float = 0.995,
        directions: int = 1,
        two_sided: bool | None = None,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        batched: bool = False,
        process_group: ProcessGroup | Ranks | str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            directions=directions,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            batched=batched,
            process_group=process_group,
            tau=tau,
            kappa=kappa,
            cap=cap,
            beta=beta,
        )
        self._choose_sides(two_sided)
        checks.usual_rate("Dopamine2", self.param_groups, 1.5)

    def start(self) -> Dopamine2State:
        """Nothing is known: all entries are 0 but `doubt` and `gain`."""
        return Dopamine2State(*[self.zero()] * 11)._replace(
            doubt=self.zero() + 1.0, gain=self.zero() + 1.0
        )

    def rule(self, state: Dopamine2State, losses: Losses, groups: list[Group]) -> Decision:
        """See `ScalarRule.rule`; algorithms.md, "Dopamine2"."""
        settings = self.settings
        beta = settings["beta"]
        base, plus = losses.one_sided()
        state = learning_rate_gain(
            state, base, tau=settings["tau"], kappa=settings["kappa"], beta=beta, limits=self.limits
        )
        factor = variance_factor(sum([group.size for group in groups]), len(plus))
        cap = settings["cap"]
        steps = [clip(lr * state.gain / factor, 0.0, cap) for lr, _, _ in groups]
        # P = step c rpe / sigma; with several groups each has its share in the error by its number
        # of weights.
        squares = total([size * sigma * sigma for _, sigma, size in groups])
        shares = [size * sigma / squares for _, sigma, size in groups]
        reach = total([step * share for step, share in zip(steps, shares, strict=True)])
        errors = dopamine2(state, base, plus, reach=reach, beta=beta)
        rates = [
            step * group.sigma / errors.scale for step, group in zip(steps, groups, strict=True)
        ]
        return Decision(errors.state, errors.signals, steps, rates, mean(errors.rpes))
