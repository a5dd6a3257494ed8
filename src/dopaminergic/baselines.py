"""The rules that Dopamine is compared with.

    WeightPerturbation = sign noise + one-sided difference + fixed learning rate
    SPSA               = sign noise + antithetic difference + fixed learning rate
    EvolutionStrategy  = Gaussian noise + antithetic pairs + ranks of losses + fixed learning rate

Each rule is a plain function of losses; each class below it keeps the settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.optimizer import ParamsT

from dopaminergic.points import Plan, two_sided
from dopaminergic.rule import Decision, Group, Losses, antithetic
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.scalars import Scalar, as_tensor, clip, finite, mean, select

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dopaminergic.distributed import Ranks


def weight_perturbation(base: Scalar, plus: list[Scalar]) -> list[Scalar]:
    """Regret of each direction, delta = L(W + sigma z) - L(W).

    See Jabri and Flower (1992), and algorithms.md, "WP".
    """
    return [p - base for p in plus]


def ranked(plus: list[Scalar], minus: list[Scalar]) -> list[Scalar]:
    """Differences of centred ranks.

    Each loss is replaced by its rank among the 2K, scaled to [-1/2, 1/2].

    Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning",
    2017. Equal losses get equal ranks, so that a constant loss moves nothing.
    """
    losses = torch.stack(
        [torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in plus + minus]
    )
    below = (losses[None] < losses[:, None]).sum(1) - (losses[None] > losses[:, None]).sum(1)
    centred = below.to(torch.float64) / (2 * (len(losses) - 1))
    values: Any = list(centred.numpy()) if losses.ndim > 1 else centred.tolist()
    return antithetic(values[: len(plus)], values[len(plus) :])


class WeightPerturbation(ScalarRule):
    """Plain weight perturbation: W <- W - lr * delta / sigma * z, two forward passes a step.

    It is the baseline that Dopamine is measured against (Jabri and Flower 1992; Cauwenberghs 1993).

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: learning rate of gradient descent, >= 0. No single value works on all tasks.
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.001, or 0.01 with 16-bit
            weights.
        directions: number K of random directions that are averaged; a step costs K + 1 forward
            passes.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence such as `range(8)` makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = WeightPerturbation(model.parameters(), lr=0.1)
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    2
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 0.01,
        sigma: float | None = None,
        directions: int = 1,
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
        )

    def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        """See `ScalarRule.rule`; there is no state."""
        regrets = weight_perturbation(losses.base, losses.plus)
        return _fixed_rate(regrets, mean(regrets), groups)


class SPSA(ScalarRule):
    """Simultaneous perturbation stochastic approximation: W <- W - lr * (L+ - L-) / (2 sigma) * z.

    A step costs two forward passes, none of them at the weights themselves, so `step` returns the
    mean of both losses. It is the update that MeZO uses (Spall 1992; Malladi et al. 2023).

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: learning rate of gradient descent, >= 0.
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.001, or 0.01 with 16-bit
            weights.
        directions: number K of random directions that are averaged; a step costs 2K forward passes.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence such as `range(8)` makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = SPSA(model.parameters(), lr=0.1, directions=3)
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    6
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 0.01,
        sigma: float | None = None,
        directions: int = 1,
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
        )

    def points(self) -> Plan:
        """Both sides of each direction."""
        return two_sided(self.settings["directions"])

    def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        """See `ScalarRule.rule`; there is no state."""
        signals = antithetic(losses.plus, losses.minus)
        return _fixed_rate(signals, mean(signals), groups)


class EvolutionStrategy(ScalarRule):
    """Evolution strategy with antithetic pairs and ranks: W <- W - lr / sigma * mean_k u_k z_k.

    Ranks make it indifferent to any monotone change of the loss, and tie its step to `lr / sigma`
    alone (Salimans et al. 2017). A step costs 2K forward passes; `step` returns their mean loss.

    A loss of `inf` ranks last, for example that of a simulation that failed. The mean loss and
    `last_rpe` are then those of the finite losses, and of the pairs of them. A step is skipped if
    all of its losses are `inf`, or if any is NaN or `-inf`.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: learning rate, >= 0; a weight moves by about `lr / sigma / (2 sqrt(K))` at the most, for
            example by 0.009 with the defaults.
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.02.
        directions: number K of antithetic pairs.
        noise: `"gaussian"` or `"rademacher"`.
        seed: in [0, 2^63); a sequence such as `range(8)` makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = EvolutionStrategy(model.parameters(), directions=4)
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    8
    """

    takes_infinite = True
    default_sigmas = (0.02, 0.02)

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        sigma: float | None = None,
        directions: int = 8,
        noise: str = "gaussian",
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
        )

    def points(self) -> Plan:
        """Both sides of each direction."""
        return two_sided(self.settings["directions"])

    def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        """See `ScalarRule.rule`; there is no state."""
        signals = ranked(losses.plus, losses.minus)
        rpe = _mean_of_finite(antithetic(losses.plus, losses.minus))
        return _fixed_rate(signals, rpe, groups)

    def _mean(self, losses: Losses) -> Any:
        with np.errstate(all="ignore"):
            found = losses.mean()
            return as_tensor(
                select(finite(found), found, _mean_of_finite(losses.plus + losses.minus, found))
            )


def _mean_of_finite(values: list[Scalar], otherwise: Scalar = 0.0) -> Scalar:
    """Mean of the numbers that are neither infinite nor NaN; `otherwise` if there are none."""
    total = 0.0
    count = 0.0
    for value in values:
        known = finite(value)
        total = total + select(known, value, 0.0)
        count = count + select(known, 1.0, 0.0)
    return select(count > 0.0, total / clip(count, 1.0, math.inf), otherwise)


def _fixed_rate(signals: list[Scalar], rpe: Scalar, groups: list[Group]) -> Decision:
    """W <- W - lr / sigma * mean_k signal_k z_k."""
    steps = [group.lr / group.sigma for group in groups]
    rates = [group.lr for group in groups]
    return Decision(None, signals, steps, rates, rpe)
