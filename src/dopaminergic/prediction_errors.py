"""The mathematics of Dopamine and Dopamine2: prediction errors of regrets, and of improvements.

    regrets -> errors against their running mean, in units of their running size -> signals
    actual against expected improvement -> the gain of Dopamine2's learning rate

Plain functions of losses; equations: algorithms.md, "Dopamine", "Dopamine2" and "Outliers".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dopaminergic.rule import choose
from dopaminergic.scalars import Scalar, absolute, clip, exp, mean, select, sqrt, tiny

# Regrets below this share of the present loss are rounding, and not precise.
RESOLUTION = 1e-8
# Bound on Dopamine's errors, in units of their scale. Errors of a normal distribution stay within
# it, and those of outliers do not.
CLIP = 4.0
CLIP2 = 2.0  # bound on Dopamine2's errors
# A regret or a loss of more than so many times the usual size is an outlier, or the first of a new
# scale.
STRANGE = 5.0
# A scale from n trials may be too small by a factor of 1 + 10 / n.
FEW = 10.0
FIRST_TRIALS = 4.5  # so few may all be outliers, if the next loss is a tenth of them
CALM = 0.99  # decay of the doubt that an outlier leaves


class DopamineState(NamedTuple):
    """The state of `Dopamine`; all 0 at the start but `doubt`, which is 1.

    A bias-corrected running mean EMA_b[x] (Kingma and Ba 2015) is kept as a decayed sum of values
    and one of weights. It is read as their quotient.

    Attributes:
        regret: decayed sum of regrets.
        root: square root of the decayed sum of squared regrets, since squares overflow.
        size: decayed sum of sizes of losses.
        trials: decayed sum of weights of all four.
        doubt: factor on the usual size, doubled by each outlier, since a value that comes again and
            again is none.
        loss: decayed sum of losses.
    """

    regret: Scalar
    root: Scalar
    size: Scalar
    trials: Scalar
    doubt: Scalar
    loss: Scalar


class Dopamine2State(NamedTuple):
    """The state of `Dopamine2`; all 0 at the start but `doubt` and `gain`, which are 1.

    Attributes:
        regret: decayed sum of regrets.
        root: square root of the decayed sum of squared regrets.
        size: decayed sum of sizes of losses.
        trials: decayed sum of weights of all three.
        doubt: factor on the usual size, doubled by each outlier.
        actual: decayed sum of sizes of actual improvements.
        promised: decayed sum of expected improvements.
        comparisons: decayed sum of weights of both.
        last_loss: the loss of the last step.
        expected: the improvement P that is expected of the last step.
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
    """The reading that a rule takes from the regrets of one step.

    Attributes:
        state: the next state.
        rpes: prediction errors, one for each direction.
        signals: these in units of their scale, clipped, which the update follows.
        scale: s, the unit that makes them precise.
        level: `dopamine`: R, the outcome still to be gained; `dopamine2`: g, the gain of the
            learning rate.
    """

    state: Any
    rpes: list[Scalar]
    signals: list[Scalar]
    scale: Scalar
    level: Scalar


def variance_factor(count: int, directions: int) -> float:
    """Mean square of the averaged estimate over the squared gradient.

    It is (d + K - 1) / K for Rademacher directions.
    """
    return (count + directions - 1) / directions


class Memory(NamedTuple):
    """The losses and regrets that both rules remember.

    These are the first five fields of their states, see `DopamineState`.
    """

    regret: Scalar
    root: Scalar
    size: Scalar
    trials: Scalar
    doubt: Scalar


# A state serves as a memory too.
Remembered = Memory | DopamineState | Dopamine2State


class Outliers(NamedTuple):
    """The outliers among the losses of one step.

    Attributes:
        strange: they are far beyond all before, and are not remembered.
        fallen: all before were outliers, since the loss is a tenth of them.
        lone: the regrets before were outliers, since those of now are a hundredth of them.
    """

    strange: Scalar
    fallen: Scalar
    lone: Scalar


NONE = Outliers(strange=False, fallen=False, lone=False)


def _are_usual(memory: Remembered, base: float, peak: float, beta: float) -> bool:
    """Whether one look tells that there are no outliers; it saves most steps the closer look."""
    trials = memory.trials
    return (
        trials > (FIRST_TRIALS + 0.5) * (1.0 - beta)
        and peak <= STRANGE * (memory.root / math.sqrt(trials))
        and abs(base) * trials <= STRANGE * memory.size
    )


def _is_strange(memory: Remembered, base: Scalar) -> Scalar:
    """Whether a loss is far larger than losses were."""
    return (absolute(base) * memory.trials > STRANGE * memory.doubt * memory.size) & (
        memory.size > 0.0
    )


def _has_fallen(memory: Remembered, base: Scalar, beta: float) -> Scalar:
    """Whether the few losses before were outliers, since this one is a tenth of them."""
    return (absolute(base) * memory.trials * 10.0 < memory.size) & (
        memory.trials < FIRST_TRIALS * (1.0 - beta)
    )


def _find_outliers(memory: Remembered, base: Scalar, peak: Scalar, beta: float) -> Outliers:
    """Compare a loss, and the largest regret of a step, with those before.

    See algorithms.md, "Outliers".
    """
    if isinstance(base, float) and _are_usual(memory, base, peak, beta):
        return NONE
    size = memory.size
    trials = memory.trials
    least = tiny(trials)
    young = (1.0 - beta) / (trials + least)
    usual = memory.root / sqrt(trials + least)
    fallen = _has_fallen(memory, base, beta)
    lone = (peak * 100.0 < usual) & (usual * 2.0 * trials > size) & (young * FIRST_TRIALS > 1.0)
    far = peak > STRANGE * memory.doubt * (1.0 + FEW * young) * usual
    beyond = far & (usual * trials > RESOLUTION * size)
    strange = select(fallen | lone, False, beyond | _is_strange(memory, base))
    return Outliers(strange, fallen, lone)


def _forget(memory: Remembered, base: Scalar, outliers: Outliers) -> Remembered:
    """The memory in the unit of this loss where all before were outliers.

    It is forgotten if only their regrets were.
    """
    anew = outliers.fallen | outliers.lone
    unit = select(
        outliers.lone, 0.0, absolute(base) * memory.trials / (memory.size + tiny(memory.trials))
    )
    regret, root, size = (
        select(anew, x * unit, x) for x in (memory.regret, memory.root, memory.size)
    )
    return memory._replace(
        regret=regret, root=root, size=size, trials=select(outliers.lone, 0.0, memory.trials)
    )


def _remember(
    memory: Remembered,
    base: Scalar,
    regrets: list[Scalar],
    peak: Scalar,
    strange: Scalar,
    beta: float,
) -> Memory:
    """The memory after these losses.

    An outlier is not remembered, but doubles the doubt whether it is one.
    """
    fresh = 1.0 - beta
    unit = clip(peak, memory.root, math.inf) + tiny(memory.trials)
    squares = mean([(regret / unit) * (regret / unit) for regret in regrets])
    before = memory.root / unit
    after = Memory(
        regret=beta * memory.regret + fresh * mean(regrets),
        root=unit * sqrt(beta * before * before + fresh * squares),
        size=beta * memory.size + fresh * absolute(base),
        trials=beta * memory.trials + fresh,
        doubt=clip(CALM * memory.doubt, 1.0, math.inf),
    )
    if strange is False:
        return after
    unchanged = Memory(*memory[:4], doubt=2.0 * memory.doubt)
    return Memory(*(select(strange, old, new) for old, new in zip(unchanged, after, strict=True)))


def _regret_errors(
    memory: Remembered, base: Scalar, plus: list[Scalar], beta: float
) -> tuple[Memory, list[Scalar], Scalar, Outliers]:
    """The memory after these losses, prediction errors of regrets, their scale s, and outliers."""
    regrets = [loss - base for loss in plus]
    peak = 0.0
    for regret in regrets:
        peak = clip(absolute(regret), peak, math.inf)
    outliers = _find_outliers(memory, base, peak, beta)
    if outliers is not NONE:
        memory = _forget(memory, base, outliers)
    least = tiny(memory.trials)
    expected = memory.regret / (memory.trials + least)  # m, about sigma^2 tr(H) / 2
    rpes = [regret - expected for regret in regrets]
    after = _remember(memory, base, regrets, peak, outliers.strange, beta)
    s = after.root / sqrt(after.trials) + RESOLUTION * (after.size / after.trials) + least
    return after, rpes, s, outliers


def dopamine(
    state: DopamineState,
    base: Scalar,
    plus: list[Scalar],
    *,
    loss_floor: float = 0.0,
    beta: float = 0.99,
) -> Errors:
    """One relative, precision-weighted prediction error for each direction.

    Args:
        state: from the last step.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        loss_floor: the least loss that can be reached.
        beta: decay of the running means.

    Returns:
        `Errors`, with R as `level`.
    """
    memory, rpes, s, outliers = _regret_errors(state, base, plus, beta)
    loss = beta * state.loss + (1.0 - beta) * base
    most = CLIP
    if outliers is not NONE:
        loss = select(outliers.fallen | outliers.lone, memory.trials * base, loss)
        loss = select(outliers.strange, state.loss, loss)
        most = select(outliers.strange, 1.0, CLIP)
    level = clip(loss / memory.trials - loss_floor, 0.0, math.inf)  # R
    signals = [clip(rpe / s, -most, most) for rpe in rpes]
    return Errors(DopamineState(*memory, loss), rpes, signals, s, level)


def learning_rate_gain(
    state: Dopamine2State,
    base: Scalar,
    *,
    tau: float,
    kappa: float,
    beta: float,
    limits: tuple[float, float],
) -> Dopamine2State:
    """The second prediction error: actual against expected improvement of the last step sets g.

    Args:
        state: from the last step.
        base: the loss L(W_t+1; B_t+1), which tells the actual improvement at no cost.
        tau: share of the expected improvement that is enough; 1/2 would be exact on a quadratic
            without noise.
        kappa: speed of the controller.
        beta: decay of the scales.
        limits: of g.
    """
    # Equations: algorithms.md, "Dopamine2". Before the first step there is no improvement, and g
    # stays. An outlier says nothing of the last step.
    odd = _is_strange(state, base) | _has_fallen(state, base, beta)
    began = select(odd, False, state.trials > 0.0)
    if began is False:
        return state
    fresh = 1.0 - beta
    improvement = state.last_loss - base
    actual = beta * state.actual + fresh * absolute(improvement)
    promised = beta * state.promised + fresh * state.expected
    comparisons = beta * state.comparisons + fresh
    scale = (actual + absolute(promised)) / comparisons + tiny(comparisons)
    error = (improvement - tau * state.expected) / scale
    gain = clip(state.gain * exp(kappa * clip(error, -3.0, 3.0)), *limits)
    after = state._replace(actual=actual, promised=promised, comparisons=comparisons, gain=gain)
    return after if began is True else choose(began, after, state)


def dopamine2(
    state: Dopamine2State,
    base: Scalar,
    plus: list[Scalar],
    *,
    reach: Scalar = 0.0,
    beta: float = 0.99,
) -> Errors:
    """The first prediction error of `Dopamine2`, its scale, and the improvement to expect.

    The improvement is that of an update which follows the error.

    Args:
        state: from `learning_rate_gain`.
        base: the loss L(W).
        plus: the losses L(W + sigma z_k).
        reach: how far an update for a signal of 1 moves along its direction, in units of sigma.
        beta: decay of the running means.

    Returns:
        `Errors`, with g as `level`.
    """
    memory, rpes, s, outliers = _regret_errors(state, base, plus, beta)
    most = CLIP2 if outliers is NONE else select(outliers.strange, 1.0, CLIP2)
    signals = [clip(rpe / s, -most, most) for rpe in rpes]
    gain = mean([signal * rpe for signal, rpe in zip(signals, rpes, strict=True)])
    after = Dopamine2State(
        *memory,
        state.actual,
        state.promised,
        state.comparisons,
        last_loss=base,
        expected=reach * gain,
        gain=state.gain,
    )
    if outliers is not NONE:
        after = _without_outliers(after, state, base, outliers)
    return Errors(after, rpes, signals, s, state.gain)


def _without_outliers(
    after: Dopamine2State, before: Dopamine2State, base: Scalar, outliers: Outliers
) -> Dopamine2State:
    """The state after a step, without the improvements that outliers would pretend."""
    anew = outliers.fallen | outliers.lone
    strange = outliers.strange
    return after._replace(
        actual=select(anew, 0.0, before.actual),
        promised=select(anew, 0.0, before.promised),
        comparisons=select(anew, 0.0, before.comparisons),
        last_loss=select(strange & _is_strange(before, base), before.last_loss, base),
        expected=select(strange, before.expected, after.expected),
    )
