"""The two rules of this library: prediction errors of the regret set both the update and its size.

    Dopamine  = sign noise + one-sided regret + relative, precision-weighted error + Polyak step
    Dopamine2 = sign noise + one-sided regret + precision-weighted error + expected-versus-actual learning rate

Both are defined by this library after the abstract of "Dopamine-driven synaptic credit assignment in neural networks"
(Nambusubramaniyan, Safavi, Guru and Knoblauch, arXiv 2510.22178, 2025), whose equations were not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.optim.optimizer import ParamsT

from dopaminergic import checks
from dopaminergic.optimizer import Decision, ForwardOptimizer, Group, Losses
from dopaminergic.scalars import Scalar, absolute, clip, exp, select, sqrt

RESOLUTION = 1e-8  # of the first loss: regrets below it are rounding, and must not be taken for precise
TINY = 1e-300  # keeps a quotient of zeros at zero


class Mean(NamedTuple):
    """Bias-corrected running mean, EMA_b[x] (Kingma and Ba 2015): both entries decay alike.

    Attributes:
        total: decayed sum of the values.
        weight: decayed sum of the weights; 0 before the first value.
    """

    total: Scalar
    weight: Scalar

    def after(self, x: Scalar, decay: float) -> Mean:
        """The mean once `x` has been seen."""
        return Mean(decay * self.total + (1.0 - decay) * x, decay * self.weight + (1.0 - decay))

    def value(self) -> Scalar:
        """The mean; 0 before the first value."""
        return self.total / (self.weight + TINY)


class DopamineState(NamedTuple):
    """What `Dopamine` remembers: three running means (total, weight) and the first loss; all 0 at the start."""

    regret_total: Scalar
    regret_weight: Scalar
    square_total: Scalar
    square_weight: Scalar
    loss_total: Scalar
    loss_weight: Scalar
    first_loss: Scalar


class Errors(NamedTuple):
    """What a rule makes of the regrets of one step.

    Attributes:
        state: the next state.
        rpes: prediction errors, one for each direction.
        signals: the errors in units of their own scale, one for each direction.
        scale: that unit.
        level: Dopamine: the outcome still to be gained; Dopamine2: the gain g of the learning rate.
    """

    state: Any
    rpes: list[Scalar]
    signals: list[Scalar]
    scale: Scalar
    level: Scalar


def _average(values: list[Scalar]) -> Scalar:
    return sum(values[1:], values[0]) / len(values)


def variance_factor(count: int, directions: int) -> float:
    """Mean square of the averaged estimate over the squared gradient, (d + K - 1) / K for Rademacher directions."""
    return (count + directions - 1) / directions


def dopamine(
    state: DopamineState,
    base: Scalar,
    plus: list[Scalar],
    *,
    loss_floor: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> Errors:
    """One relative, precision-weighted prediction error for each direction.

    Args:
        state: from the last step.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        loss_floor: the least loss that can be reached.
        betas: decays of the scale and the outcome, and of the expected regret.

    Returns:
        `Errors`, whose `level` is R.
    """
    # Equations: algorithms.md, "Dopamine".
    fast, slow = betas
    regrets = [p - base for p in plus]
    first = select(state.loss_weight == 0.0, absolute(base), state.first_loss)
    expected = Mean(state.regret_total, state.regret_weight)
    m = expected.value()  # before this trial; about sigma^2 tr(H) / 2
    square = Mean(state.square_total, state.square_weight).after(_average([r * r for r in regrets]), fast)
    s = sqrt(square.value()) + RESOLUTION * first + TINY
    loss = Mean(state.loss_total, state.loss_weight).after(base, fast)
    level = clip(loss.value() - loss_floor, 0.0, float("inf"))
    rpes = [r - m for r in regrets]
    after = DopamineState(*expected.after(_average(regrets), slow), *square, *loss, first)
    return Errors(after, rpes, [rpe / s for rpe in rpes], s, level)


class Dopamine2State(NamedTuple):
    """What `Dopamine2` remembers: running means (total, weight), the first and the last loss, the expected improvement.

    `gain` is g, the factor that prediction errors put on the learning rate.
    """

    regret_total: Scalar
    regret_weight: Scalar
    square_total: Scalar
    square_weight: Scalar
    actual_total: Scalar
    actual_weight: Scalar
    expected_total: Scalar
    expected_weight: Scalar
    first_loss: Scalar
    last_loss: Scalar
    expected: Scalar
    gain: Scalar


def learning_rate_gain(
    state: Dopamine2State, base: Scalar, *, tau: float, kappa: float, beta: float, limits: tuple[float, float]
) -> Dopamine2State:
    """The second prediction error: actual against expected improvement of the last step sets g.

    Args:
        state: from the last step.
        base: the loss L(W_t+1; B_t+1), which tells the actual improvement at no cost.
        tau: share of the expected improvement that is enough; 1/2 would be exact on a quadratic without noise.
        kappa: speed of the controller.
        beta: decay of the scales.
        limits: of g.
    """
    # Equations: algorithms.md, "Dopamine2". Before the first improvement is known all weights are 0, and g stays.
    started = state.square_weight > 0.0
    actual = select(started, state.last_loss - base, 0.0 * base)
    actual_mean = Mean(state.actual_total, state.actual_weight).after(absolute(actual), beta)
    expected_mean = Mean(state.expected_total, state.expected_weight).after(state.expected, beta)
    error = (actual - tau * state.expected) / (actual_mean.value() + absolute(expected_mean.value()) + TINY)
    gain = clip(state.gain * exp(kappa * clip(error, -3.0, 3.0)), *limits)
    return state._replace(
        actual_total=select(started, actual_mean.total, state.actual_total),
        actual_weight=select(started, actual_mean.weight, state.actual_weight),
        expected_total=select(started, expected_mean.total, state.expected_total),
        expected_weight=select(started, expected_mean.weight, state.expected_weight),
        gain=select(started, gain, state.gain),
    )


def dopamine2(state: Dopamine2State, base: Scalar, plus: list[Scalar], *, beta: float = 0.99) -> Errors:
    """The first prediction error of `Dopamine2`, clipped at its own scale.

    Args:
        state: from `learning_rate_gain`.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        beta: decay of the running means.

    Returns:
        `Errors`, whose `level` is g. The caller puts the expected improvement into the state.
    """
    regrets = [p - base for p in plus]
    first = select(state.square_weight == 0.0, absolute(base), state.first_loss)
    expected = Mean(state.regret_total, state.regret_weight)
    m = expected.value()
    square = Mean(state.square_total, state.square_weight).after(_average([r * r for r in regrets]), beta)
    s = sqrt(square.value()) + RESOLUTION * first + TINY
    rpes = [r - m for r in regrets]
    after = state._replace(
        regret_total=beta * expected.total + (1.0 - beta) * _average(regrets),
        regret_weight=beta * expected.weight + (1.0 - beta),
        square_total=square.total,
        square_weight=square.weight,
        first_loss=first,
        last_loss=base,
    )
    return Errors(after, rpes, [clip(rpe / s, -1.0, 1.0) for rpe in rpes], s, state.gain)


class Dopamine(ForwardOptimizer):
    """Weight perturbation whose step follows a relative, precision-weighted reward prediction error; nothing to tune.

    Two forward passes a step. Indifferent to the scale of the loss. It must know the least loss that can be reached
    (`loss_floor`, 0 for most losses): with an unknown floor above 0 it steps too far; use `Dopamine2` then.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and `weight_decay`.
        lr: factor on the Polyak step, dimensionless, >= 0 (`a` in algorithms.md); any scheduler may change it.
        sigma: how far each weight moves in a perturbed pass, > 0.
        loss_floor: the least loss that can be reached.
        cap: the farthest that a weight moves in one step for an error of one standard deviation, > 0.
        betas: decays in [0, 1) of the scale and the outcome, and of the expected regret.
        directions: number K of random directions that are averaged; a step costs K + 1 forward passes.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined by this library after the abstract of arXiv 2510.22178 (2025).

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = Dopamine(model.parameters())
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    2
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 3.0,
        sigma: float = 1e-3,
        loss_floor: float = 0.0,
        cap: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        directions: int = 1,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
    ) -> None:
        checks.number("Dopamine", "loss_floor", loss_floor)
        checks.number("Dopamine", "cap", cap, above=0)
        for beta in betas:
            checks.number("Dopamine", "betas", beta, at_least=0, below=1)
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            directions=directions,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            loss_floor=loss_floor,
            cap=cap,
            betas=tuple(betas),
        )

    def _start(self) -> DopamineState:
        return DopamineState(*[self.zero()] * 7)

    def _rule(self, state: DopamineState, losses: Losses, groups: list[Group]) -> Decision:
        settings, directions = self.settings, len(losses.plus)
        errors = dopamine(state, losses.base, losses.plus, loss_floor=settings["loss_floor"], betas=settings["betas"])
        factor = variance_factor(sum(g.count for g in groups), directions)
        # step = min(a R sigma / (d s), cap)
        steps = [clip(g.lr * errors.level * g.sigma / (factor * errors.scale), 0.0, settings["cap"]) for g in groups]
        rates = [step * g.sigma / errors.scale for step, g in zip(steps, groups, strict=True)]
        return Decision(errors.state, errors.signals, steps, rates, _average(errors.rpes))


class Dopamine2(ForwardOptimizer):
    """Weight perturbation whose learning rate follows a second prediction error: actual against expected improvement.

    Two forward passes a step. Indifferent to the scale of the loss and to any constant added to it.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and `weight_decay`.
        lr: first learning rate, dimensionless, >= 0: for an error of one standard deviation each of d weights moves by
            `lr / d` (for one direction). Errors change it from there by a factor g in [1e-3, 1e3].
        sigma: how far each weight moves in a perturbed pass, > 0.
        tau: share in (0, 1) of the expected improvement that is taken for enough.
        kappa: speed of the learning rate's controller, >= 0.
        cap: the farthest that a weight moves in one step, > 0.
        beta: decay in [0, 1) of all running means.
        directions: number K of random directions that are averaged; a step costs K + 1 forward passes.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined by this library after the abstract of arXiv 2510.22178 (2025).

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = Dopamine2(model.parameters())
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean())
    >>> optimizer.forward_passes
    2
    """

    limits = (1e-3, 1e3)

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 4.0,
        sigma: float = 1e-3,
        tau: float = 0.25,
        kappa: float = 0.02,
        cap: float = 0.1,
        beta: float = 0.99,
        directions: int = 1,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
    ) -> None:
        checks.number("Dopamine2", "tau", tau, above=0, below=1)
        checks.number("Dopamine2", "kappa", kappa, at_least=0)
        checks.number("Dopamine2", "cap", cap, above=0)
        checks.number("Dopamine2", "beta", beta, at_least=0, below=1)
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            directions=directions,
            noise=noise,
            seed=seed,
            weight_decay=weight_decay,
            tau=tau,
            kappa=kappa,
            cap=cap,
            beta=beta,
        )

    def _start(self) -> Dopamine2State:
        return Dopamine2State(*[self.zero()] * 11, gain=self.zero() + 1.0)

    def _rule(self, state: Dopamine2State, losses: Losses, groups: list[Group]) -> Decision:
        settings = self.settings
        state = learning_rate_gain(
            state,
            losses.base,
            tau=settings["tau"],
            kappa=settings["kappa"],
            beta=settings["beta"],
            limits=self.limits,
        )
        errors = dopamine2(state, losses.base, losses.plus, beta=settings["beta"])
        factor = variance_factor(sum(g.count for g in groups), len(losses.plus))
        steps = [clip(g.lr * errors.level / factor, 0.0, settings["cap"]) for g in groups]
        rates = [step * g.sigma / errors.scale for step, g in zip(steps, groups, strict=True)]
        # P = step c rpe / sigma, each group having its share in the error by its number of weights.
        shares = sum(g.count * g.sigma * g.sigma for g in groups)
        per_error = sum(step * (g.count * g.sigma / shares) for step, g in zip(steps, groups, strict=True))
        gained = _average([c * rpe for c, rpe in zip(errors.signals, errors.rpes, strict=True)])
        after = errors.state._replace(expected=per_error * gained)
        return Decision(after, errors.signals, steps, rates, _average(errors.rpes))
