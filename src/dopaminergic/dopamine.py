"""The two rules of this library: prediction errors of the regret set both the update and its size.

    Dopamine  = sign noise + one-sided regret + relative, precision-weighted error + Polyak step
    Dopamine2 = sign noise + one-sided regret + precision-weighted error + expected-versus-actual learning rate

Both are defined by this library after the abstract of "Dopamine-driven synaptic credit assignment in neural networks"
(Nambusubramaniyan, Safavi, Guru and Knoblauch, arXiv 2510.22178, 2025), whose equations were not at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.optim.optimizer import ParamsT

from dopaminergic import checks
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.rule import Decision, Group, Losses, record
from dopaminergic.scalars import Scalar, absolute, clip, exp, mean, select, sqrt, tiny

RESOLUTION = 1e-8  # of the present loss: regrets below it are rounding, and must not be taken for precise
CLIP = 4.0  # of Dopamine's errors, in units of their scale: none of a normal distribution, but those of outliers
CLIP2 = 2.0  # of Dopamine2's
STRANGE = 5.0  # times what is usual: a regret or a loss beyond that is an outlier, or the first of a new scale
FEW = 10.0  # a scale that rests on one trial is believed within 1 + 10 times that, on n trials 1 + 10 / n
FIRST_TRIALS = 4.5  # as few may all have been outliers, if the next loss is a tenth of them
CALM = 0.99  # decay of the doubt that an outlier leaves


class DopamineState(NamedTuple):
    """What `Dopamine` remembers; all 0 at the start but `doubt`, which is 1.

    A bias-corrected running mean EMA_b[x] (Kingma and Ba 2015) is kept as a decayed sum of values and one of weights,
    and read as their quotient.

    Attributes:
        regret: decayed sum of regrets.
        root: square root of the decayed sum of squared regrets, since squares overflow.
        size: decayed sum of sizes of losses.
        trials: decayed sum of weights of all four.
        doubt: factor on what is usual, doubled by each outlier: what comes again and again is none.
        loss: decayed sum of losses.
    """

    regret: Scalar
    root: Scalar
    size: Scalar
    trials: Scalar
    doubt: Scalar
    loss: Scalar


class Dopamine2State(NamedTuple):
    """What `Dopamine2` remembers; all 0 at the start but `doubt` and `gain`, which are 1.

    Attributes:
        regret: decayed sum of regrets.
        root: square root of the decayed sum of squared regrets.
        size: decayed sum of sizes of losses.
        trials: decayed sum of weights of all three.
        doubt: factor on what is usual, doubled by each outlier.
        actual: decayed sum of sizes of actual improvements.
        promised: decayed sum of expected improvements.
        comparisons: decayed sum of weights of both.
        last_loss: the loss of the last step.
        expected: the improvement P that the last step should bring.
        gain: g, the factor that prediction errors put on the learning rate.
    """

    regret: Scalar
    root: Scalar
    size: Scalar
    trials: Scalar
    doubt: Scalar
    actual: Scalar
    promised: Scalar
    comparisons: Scalar
    last_loss: Scalar
    expected: Scalar
    gain: Scalar


class Errors(NamedTuple):
    """What a rule makes of the regrets of one step.

    Attributes:
        state: the next state.
        rpes: prediction errors, one for each direction.
        signals: these in units of their scale, clipped, which the update follows.
        scale: s, the unit that makes them precise.
        level: `dopamine`: R, the outcome still to be gained; `dopamine2`: g, the gain of the learning rate.
    """

    state: Any
    rpes: list[Scalar]
    signals: list[Scalar]
    scale: Scalar
    level: Scalar


def variance_factor(count: int, directions: int) -> float:
    """Mean square of the averaged estimate over the squared gradient, (d + K - 1) / K for Rademacher directions."""
    return (count + directions - 1) / directions


def _is_strange(memory: tuple[Scalar, ...], base: Scalar) -> Scalar:
    """Whether a loss is far larger than losses were."""
    _, _, size, trials, doubt = memory
    return (absolute(base) * trials > STRANGE * doubt * size) & (size > 0.0)


def _has_fallen(memory: tuple[Scalar, ...], base: Scalar, beta: float) -> Scalar:
    """Whether the few losses before were outliers, since this one is a tenth of them."""
    _, _, size, trials, _ = memory
    return (absolute(base) * trials * 10.0 < size) & (trials < FIRST_TRIALS * (1.0 - beta))


def _regret_errors(
    memory: tuple[Scalar, ...], base: Scalar, plus: list[Scalar], beta: float
) -> tuple[tuple[Scalar, ...], list[Scalar], Scalar, Scalar, Scalar]:
    """The memory after these losses, prediction errors of regrets, their scale, whether they are strange, and `anew`.

    A memory is the first five fields of a state. `anew` says that all trials before were outliers. Their memory is then
    put into the unit of this loss, or forgotten if only their regrets were unusual.
    """
    # Equations: algorithms.md, "Outliers".
    regret, root, size, trials, doubt = memory
    fresh, least, regrets, peak = 1.0 - beta, tiny(trials), [], 0.0
    for loss in plus:  # a loop here and below, since each comprehension is a call
        r = loss - base
        regrets.append(r)
        peak = clip(absolute(r), peak, math.inf)
    now, young, usual = absolute(base), fresh / (trials + least), root / sqrt(trials + least)
    fallen = _has_fallen(memory, base, beta)
    lone = (peak * 100.0 < usual) & (usual * 2.0 * trials > size) & (young * FIRST_TRIALS > 1.0)
    anew = fallen | lone
    beyond = (peak > STRANGE * doubt * (1.0 + FEW * young) * usual) & (usual * trials > RESOLUTION * size)
    strange = beyond | _is_strange(memory, base)
    if anew is not False:
        strange, unit = select(anew, False, strange), select(lone, 0.0, now * trials / (size + least))
        regret, root, size = [select(anew, x * unit, x) for x in (regret, root, size)]
        trials = select(lone, 0.0, trials)
    m = regret / (trials + least)  # expected before this trial; about sigma^2 tr(H) / 2
    unit, total, squares, rpes = clip(peak, root, math.inf) + least, 0.0, 0.0, []
    for r in regrets:
        total, part = total + r, r / unit
        squares += part * part
        rpes.append(r - m)
    part, count = root / unit, len(plus)
    after = (
        beta * regret + fresh * (total / count),
        unit * sqrt(beta * part * part + fresh * (squares / count)),
        beta * size + fresh * now,
        beta * trials + fresh,
        clip(CALM * doubt, 1.0, math.inf),
    )
    if strange is not False:  # an outlier is not remembered
        before = (regret, root, size, trials, 2.0 * doubt)
        after = tuple([select(strange, old, new) for old, new in zip(before, after, strict=True)])
    _, root, size, trials, _ = after
    return after, rpes, root / sqrt(trials) + RESOLUTION * (size / trials) + least, strange, anew


def dopamine(
    state: DopamineState, base: Scalar, plus: list[Scalar], *, loss_floor: float = 0.0, beta: float = 0.99
) -> Errors:
    """One relative, precision-weighted prediction error for each direction.

    Args:
        state: from the last step.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        loss_floor: the least loss that can be reached.
        beta: decay of the running means.

    Returns:
        `Errors`, whose `level` is R.
    """
    # Equations: algorithms.md, "Dopamine", with one decay for all means (the slow one, which is the better).
    # Taken apart at once, here and below: in a tiny network's step reading a field shows.
    before = state.loss
    memory, rpes, s, strange, anew = _regret_errors(state[:5], base, plus, beta)
    loss, most = beta * before + (1.0 - beta) * base, CLIP
    if anew is not False:
        loss = select(anew, memory[3] * base, loss)
    if strange is not False:
        loss, most = select(strange, before, loss), select(strange, 1.0, CLIP)
    level = clip(loss / memory[3] - loss_floor, 0.0, math.inf)
    signals = []
    for rpe in rpes:
        signals.append(clip(rpe / s, -most, most))
    return record(Errors, (record(DopamineState, (*memory, loss)), rpes, signals, s, level))


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
    # Equations: algorithms.md, "Dopamine2". Before the first step there is no improvement to speak of, and g stays; an
    # outlier says nothing of the last step.
    regret, root, size, trials, doubt, actual, promised, comparisons, last_loss, expected, gain = state
    odd = _is_strange(state[:5], base) | _has_fallen(state[:5], base, beta)
    began, fresh = select(odd, False, trials > 0.0), 1.0 - beta
    if began is False:
        return state
    improvement = last_loss - base
    sizes = beta * actual + fresh * absolute(improvement)
    promises = beta * promised + fresh * expected
    compared = beta * comparisons + fresh
    error = (improvement - tau * expected) / ((sizes + absolute(promises)) / compared + tiny(compared))
    low, high = limits
    better = clip(gain * exp(kappa * clip(error, -3.0, 3.0)), low, high)
    if began is not True:
        sizes, promises = select(began, sizes, actual), select(began, promises, promised)
        compared, better = select(began, compared, comparisons), select(began, better, gain)
    return record(
        Dopamine2State,
        (regret, root, size, trials, doubt, sizes, promises, compared, last_loss, expected, better),
    )


def dopamine2(
    state: Dopamine2State, base: Scalar, plus: list[Scalar], *, reach: Scalar = 0.0, beta: float = 0.99
) -> Errors:
    """The first prediction error of `Dopamine2`, its scale, and the improvement to expect of an update that follows it.

    Args:
        state: from `learning_rate_gain`.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        reach: how far an update for a signal of 1 moves along its direction, in units of sigma.
        beta: decay of the running means.

    Returns:
        `Errors`, whose `level` is g.
    """
    _, _, _, _, _, actual, promised, comparisons, last_loss, expected, gain = state
    memory, rpes, s, strange, anew = _regret_errors(state[:5], base, plus, beta)
    most, loss, signals, gains = CLIP2, base, [], []
    if anew is not False:
        actual, promised, comparisons = [select(anew, 0.0, x) for x in (actual, promised, comparisons)]
    if strange is not False:
        most, loss = select(strange, 1.0, CLIP2), select(_is_strange(state[:5], base), last_loss, base)
    for rpe in rpes:
        signal = clip(rpe / s, -most, most)
        signals.append(signal)
        gains.append(signal * (rpe if strange is False else select(strange, signal * s, rpe)))
    hoped = reach * mean(gains)
    if strange is not False:
        hoped = select(strange, expected, hoped)
    after = record(Dopamine2State, (*memory, actual, promised, comparisons, loss, hoped, gain))
    return record(Errors, (after, rpes, signals, s, gain))


class Dopamine(ForwardOptimizer):
    """Weight perturbation whose step follows a relative, precision-weighted reward prediction error; nothing to tune.

    Two forward passes a step. Indifferent to the scale of the loss. It must know the least loss that can be reached
    (`loss_floor`, 0 for most losses): with an unknown floor above 0 it steps too far; use `Dopamine2` then.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and `weight_decay`.
        lr: factor on the Polyak step, dimensionless, >= 0; any scheduler may change it.
            From 4 on it overshoots on a quadratic without noise.
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.0003, so small that the curvature of the loss
            adds less to a regret than its slope does, or 0.0125 with 16-bit weights.
        loss_floor: the least loss that can be reached.
        cap: the farthest that a weight moves in one step for an error of one standard deviation, > 0.
        beta: decay in [0, 1) of all running means.
        directions: number K of random directions that are averaged; a step costs K + 1 forward passes, 2 K if
            they are two-sided.
        two_sided: take the regret of a direction as half the difference between the losses to both of its sides, which
            curvature does not change: a larger `sigma` can then be used, as 16-bit weights need it. The loss at the
            weights is taken to be the mean of both. None: with 16-bit weights.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined by this library after the abstract of arXiv 2510.22178 (2025).

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
        process_group: Any = None,
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

    def _start(self) -> DopamineState:
        return DopamineState(*[self.zero()] * 6)._replace(doubt=self.zero() + 1.0)

    def _rule(self, state: DopamineState, losses: Losses, groups: list[Group]) -> Decision:
        settings, floor, beta = self.settings, self.settings["loss_floor"], self.settings["beta"]
        base, plus = losses.one_sided()
        after, rpes, signals, s, level = dopamine(state, base, plus, loss_floor=floor, beta=beta)
        count, cap, steps, rates = 0, settings["cap"], [], []
        for _, _, size in groups:
            count += size
        factor = variance_factor(count, len(rpes))
        for lr, sigma, _ in groups:
            step = clip(lr * level * sigma / (factor * s), 0.0, cap)  # min(a R sigma / (d s), cap)
            steps.append(step)
            rates.append(step * sigma / s)
        return record(Decision, (after, signals, steps, rates, mean(rpes)))


class Dopamine2(ForwardOptimizer):
    """Weight perturbation whose learning rate follows a second prediction error: actual against expected improvement.

    Two forward passes a step. Indifferent to the scale of the loss and to any constant added to it.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and `weight_decay`.
        lr: first learning rate, dimensionless, >= 0: for an error of one standard deviation each of d weights moves by
            `lr / d` (for one direction). Errors change it from there by a factor g in [1e-3, 1e3].
        sigma: how far each weight moves in a perturbed pass, > 0; None: 0.001, or 0.0125 with 16-bit weights.
        tau: share in (0, 1) of the expected improvement that is taken for enough.
        kappa: speed of the learning rate's controller, >= 0.
        cap: the farthest that a weight moves in one step for an error of one standard deviation, > 0.
        beta: decay in [0, 1) of all running means.
        directions: number K of random directions that are averaged; a step costs K + 1 forward passes, 2 K if
            they are two-sided.
        two_sided: take the regret of a direction as half the difference between the losses to both of its sides, which
            curvature does not change: a larger `sigma` can then be used, as 16-bit weights need it. The loss at the
            weights is taken to be the mean of both. None: with 16-bit weights.
        noise: `"rademacher"` or `"gaussian"`.
        seed: in [0, 2^63); a sequence makes a fleet, see `ForwardOptimizer`.
        weight_decay: decoupled, >= 0.
        batched: evaluate the directions as one batch where possible, see `ForwardOptimizer`.
        process_group: of `torch.distributed`, or a `Ranks`, see `ForwardOptimizer`.

    Raises:
        ValueError: an argument is out of range, or nothing can be trained.
        TypeError: an argument, or a parameter, is of the wrong type.

    Defined by this library after the abstract of arXiv 2510.22178 (2025).

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
        process_group: Any = None,
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

    def _start(self) -> Dopamine2State:
        return Dopamine2State(*[self.zero()] * 11)._replace(doubt=self.zero() + 1.0, gain=self.zero() + 1.0)

    def _rule(self, state: Dopamine2State, losses: Losses, groups: list[Group]) -> Decision:
        settings, (base, plus) = self.settings, losses.one_sided()
        tau, kappa, beta = settings["tau"], settings["kappa"], settings["beta"]
        state = learning_rate_gain(state, base, tau=tau, kappa=kappa, beta=beta, limits=self.limits)
        # P = step c rpe / sigma; with several groups each has its share in the error by its number of weights.
        count, squares, reach = 0, 0.0, 0.0
        for _, sigma, size in groups:
            count += size
            squares += size * sigma * sigma
        factor, gain, steps, moves, rates = variance_factor(count, len(plus)), state.gain, [], [], []
        for lr, sigma, size in groups:
            step = clip(lr * gain / factor, 0.0, settings["cap"])
            steps.append(step)
            moves.append(step * sigma)
            reach = reach + step * (size * sigma / squares)
        after, rpes, signals, s, _ = dopamine2(state, base, plus, reach=reach, beta=beta)
        for move in moves:
            rates.append(move / s)
        return record(Decision, (after, signals, steps, rates, mean(rpes)))
