"""Is the estimate sound? Many virtual updates are compared with the gradient of autograd.

    check = exact gradient + observed updates at fixed weights + theory's value for a linear loss

An update is observed where it ends up, as the change of the weights. So noise, arithmetic and
rounding are judged with the rule. Verdicts are taken in standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from dopaminergic.node_diagnostics import NodeEstimatorReport, check_nodes
from dopaminergic.node_optimizer import NodeOptimizer
from dopaminergic.noise import FAST_DTYPES
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Closure
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.virtual_steps import Model, Observed, observe, promises_a_scale

__all__ = ["EstimatorReport", "NodeEstimatorReport", "check_estimator"]

STANDARD_ERRORS = 5.0
# A finite sigma biases every estimate by O(sigma^2), which enough probes would show. Shares up to
# these do not matter.
NEGLIGIBLE_BIAS = 0.01
NEGLIGIBLE_VARIANCE = 0.1
# A signal of which only the sign is left varies at most twice as much: E|z.g| >= |g| / sqrt(2)
# (Szarek 1976).
SIGN_FACTOR = 2.0


@dataclass(frozen=True)
class EstimatorReport:
    """How the updates of an optimizer compare with the gradient; `print` it.

    Attributes:
        rule: the optimizer's class.
        weights: number d of trainable weights.
        directions: number K of directions of each step.
        probes: number of virtual steps M.
        cosine: of the mean update and the negative gradient (each group's gradient times its
            learning rate).
        predicted_cosine: the cosine for a linear loss, 1 / sqrt(1 + variance / M).
        learning_rate: of the gradient descent that the mean update amounts to, in the first group.
        expected_learning_rate: the one that the rule promises; None for rules that set their own
            scale.
        alignment: component of the mean update along the negative gradient, in standard errors; > 0
            if it descends.
        bias: distance of the learning rate from the expected one, in standard errors; None without
            an expected one.
        remainder: squared part of the mean update across the gradient, over its expected sampling
            size; 1 if unbiased.
        remainder_bias: distance of `remainder` from 1, in standard errors.
        variance: of an update, over that of K independent directions on a linear loss; NaN where
            that is 0.
        variance_excess: distance of `variance` above its bound (1; 2 for rules that set their own
            scale), in standard errors. None for 16-bit weights, since rounding adds to theirs.
        problems: the faults found, in words; empty if the estimate is sound.
    """

    rule: str
    weights: int
    directions: int
    probes: int
    cosine: float
    predicted_cosine: float
    learning_rate: float
    expected_learning_rate: float | None
    alignment: float
    bias: float | None
    remainder: float
    remainder_bias: float
    variance: float
    variance_excess: float | None
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the mean update follows the negative gradient, as noisily as it must.

        It is True if nothing contradicts that.
        """
        return not self.problems

    def __str__(self) -> str:
        """The verdict first, then the figures behind it."""
        rate = f"{self.learning_rate:.4g}"
        if self.bias is not None:
            rate += (
                f", expected {self.expected_learning_rate:.4g} ({self.bias:+.1f} standard errors)"
            )
        excess = (
            ""
            if self.variance_excess is None
            else f" ({self.variance_excess:+.1f} standard errors past its bound)"
        )
        verdict = "The estimate is sound." if self.sound else "The estimate is NOT sound:"
        return "\n".join(
            [
                f"{self.rule}: {self.probes} virtual steps, {self.directions} directions each, "
                f"{self.weights} weights",
                verdict,
                *(f"  - {problem}" for problem in self.problems),
                f"  cosine with the negative gradient  {self.cosine:.4f}, predicted "
                f"{self.predicted_cosine:.4f}",
                f"  along the gradient                 {self.alignment:+.1f} standard errors",
                f"  effective learning rate            {rate}",
                f"  remainder across the gradient      {self.remainder:.3f} of its sampling size"
                f" ({self.remainder_bias:+.1f} standard errors)",
                f"  variance over theory               {self.variance:.3f}{excess}",
            ]
        )


@overload
def check_estimator(
    optimizer: NodeOptimizer, closure: Closure, *, probes: int = 200
) -> NodeEstimatorReport: ...


@overload
def check_estimator(
    optimizer: ScalarRule, closure: Closure, *, probes: int = 200
) -> EstimatorReport: ...


@overload
def check_estimator(
    optimizer: ForwardOptimizer, closure: Closure, *, probes: int = 200
) -> EstimatorReport | NodeEstimatorReport: ...


def check_estimator(
    optimizer: ForwardOptimizer, closure: Closure, *, probes: int = 200
) -> EstimatorReport | NodeEstimatorReport:
    """Compare an optimizer's updates at the present weights with the exact gradient.

    The closure is called once with gradients and then as in `probes` virtual steps, with the noise
    of the optimizer's next steps. Rules with running scales first let them settle in 50 more.
    Afterwards weights, rule state, counters and torch's random numbers are the same as before, bit
    for bit.

    Args:
        optimizer: of a single model, at any point of its training; weight decay is left out.
        closure: as for `step`, on the same data at each call, and differentiable: it returns a
            tensor or an `Outcome`, not a float.
        probes: number M of virtual steps, >= 100. With d weights and K directions a bias across the
            gradient shows if it is larger than about `3 d^(1/4) / sqrt(M K)` of the gradient's
            length. For example, that is 0.03 with d = 10,000, K = 1,000 and M = 1,000. A bias along
            it shows much earlier.

    Returns:
        The figures and a verdict: `report.sound`, `print(report)`. For rules that perturb
        activities a `NodeEstimatorReport` of their estimates, which also tells how much of the
        regrets the feedback expects.

    Raises:
        TypeError: an argument, or the closure's value, is of the wrong type; or the optimizer is a
            `VectorDopamine`, whose step is no estimate of the gradient.
        ValueError: the loss is not differentiable or not finite, its gradient is 0, or the
            optimizer is a fleet's.

    >>> from dopaminergic import SPSA
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = SPSA(model.parameters(), lr=0.1)
    >>> check_estimator(optimizer, lambda: model(torch.ones(4, 3)).mean()).sound
    True
    """
    if not isinstance(optimizer, ForwardOptimizer):
        raise TypeError(
            f"check_estimator: optimizer must be a ForwardOptimizer, got {type(optimizer).__name__}"
        )
    if not isinstance(optimizer, ScalarRule | NodeOptimizer):
        raise TypeError(
            f"check_estimator: the step of {type(optimizer).__name__} is no mean of regrets times "
            "directions, so there "
            "is no learning rate to compare with the gradient; check Dopamine2 on the same "
            "closure, and let `last_rpe` "
            "tell how well steps are predicted"
        )
    if not isinstance(probes, int) or isinstance(probes, bool):
        raise TypeError(f"check_estimator: probes must be an int, got {probes!r}")
    if probes < 100:
        raise ValueError(
            f"check_estimator: probes must be >= 100 to tell a slope from noise, got {probes}"
        )
    seed = optimizer.settings["seed"]
    if not isinstance(seed, int):
        raise ValueError(
            f"check_estimator: the optimizer is a fleet of {len(seed)} seeds; build it for one "
            "model with one seed"
        )
    if isinstance(optimizer, NodeOptimizer):
        return check_nodes(optimizer, closure, probes)
    return _judge(optimizer, *observe(optimizer, closure, probes))


def _judge(optimizer: ScalarRule, model: Model, observed: Observed) -> EstimatorReport:
    probes = len(observed.square)
    directions = optimizer.settings["directions"]
    rates = torch.tensor(observed.rates, dtype=torch.float64, device="cpu")
    target = rates[model.group] * model.gradient  # minus the mean update, by theory
    size = float(target @ target)
    if size == 0.0 or float(observed.square.sum()) == 0.0:
        return _motionless(optimizer, model, probes)
    theory = _linear_variance(optimizer, model, rates[model.group] / model.sigma)
    # Of each update in the target; 1 on average if unbiased.
    shares = -(observed.along @ rates) / size
    slope = float(shares.mean())
    across = observed.square - shares**2 * size
    estimate = slope
    error = _standard_error(shares)
    if observed.linear_along is not None:
        # The same noise on a linear loss, whose mean is known to be 1, tells by how much these M
        # draws are off.
        linear = -(observed.linear_along @ rates) / size
        estimate = slope / float(linear.mean())
        error = _standard_error(shares - estimate * linear) / float(linear.mean())
    remainder, remainder_bias, bent = _remainder(
        observed, across, slope * slope * size, rates, model
    )
    variance, excess = _variance(observed, shares, slope, size, theory)
    rounded = any(p.dtype not in FAST_DTYPES for _, _, p in model.members)
    scaled = promises_a_scale(optimizer)
    figures: dict[str, Any] = {
        "rule": type(optimizer).__name__,
        "weights": len(target),
        "directions": directions,
        "probes": probes,
        "cosine": slope * math.sqrt(size) / float(observed.mean.norm())
        if float(observed.mean.norm())
        else 0.0,
        "predicted_cosine": 1.0 / math.sqrt(1.0 + theory / (probes * size)),
        "learning_rate": estimate * observed.rates[0],
        "expected_learning_rate": observed.rates[0] if scaled else None,
        "alignment": estimate / error,
        "bias": (estimate - 1.0) / error if scaled else None,
        "remainder": remainder,
        "remainder_bias": remainder_bias,
        "variance": variance,
        "variance_excess": None if rounded or math.isnan(variance) else excess,
    }
    off = abs(estimate - 1.0) > NEGLIGIBLE_BIAS
    return EstimatorReport(**figures, problems=tuple(_problems(figures, off=off, bent=bent)))


def _standard_error(values: Tensor) -> float:
    """Standard error of the mean; never 0, so that quotients of it exist."""
    return float(values.std()) / math.sqrt(len(values)) + 1e-15


def _linear_variance(optimizer: ScalarRule, model: Model, multiples: Tensor) -> float:
    """Variance of the update for a linear loss, summed over weights.

    The regret is y.z and the update -multiples (y.z) z, averaged over K. E[(y.z)^2 z_i^2] is |y|^2
    for signs and |y|^2 + 2 y_i^2 for normals. For one group that makes (d - 1) / K and (d + 1) / K
    times the squared length of the mean update.
    """
    y = model.sigma * model.gradient
    own = float((multiples * y).square().sum())
    total = float(multiples.square().sum() * y.square().sum())
    sign = -1.0 if optimizer.settings["noise"] == "rademacher" else 1.0
    return (total + sign * own) / optimizer.settings["directions"]


def _remainder(
    observed: Observed, across: Tensor, along: float, rates: Tensor, model: Model
) -> tuple[float, float, bool]:
    """The mean update's squared part across the gradient.

    It comes over its expectation, then in standard errors, then as whether it matters.
    """
    probes = len(across)
    found = max(float(observed.mean @ observed.mean) - along, 0.0)
    expected = float(across.sum()) / probes**2
    scales = (rates[model.group] / model.sigma).square()
    dimensions = float(scales.sum() ** 2 / scales.square().sum()) - 1.0
    # Across a single weight there is nothing but rounding.
    if dimensions < 0.5 or expected <= 1e-12 * along:
        return 1.0, 0.0, False
    # The cube root of chi-square is nearly normal (Wilson and Hilferty 1931).
    spread = 2.0 / (9.0 * dimensions)
    errors = ((found / expected) ** (1 / 3) - 1.0 + spread) / math.sqrt(spread)
    return found / expected, errors, found - expected > NEGLIGIBLE_BIAS**2 * along


def _variance(
    observed: Observed, shares: Tensor, slope: float, size: float, theory: float
) -> tuple[float, float]:
    """Variance of the updates at a slope of 1 over `theory`, and its excess.

    The excess is its distance above the bound in standard errors.
    """
    if theory <= 1e-12 * size or slope == 0.0:
        return math.nan, 0.0
    if observed.linear_square is not None:
        ratios = 1.0 + (observed.square - observed.linear_square) / theory
        bound = 1.0
    else:
        # Each update's share in mean(|u|^2) / slope^2, linearised in the slope.
        square = float(observed.square.mean())
        ratios = (
            observed.square / slope**2 - 2.0 * square / slope**3 * (shares - slope) - size
        ) / theory
        bound = SIGN_FACTOR
    ratio = float(ratios.mean())
    excess = (ratio - bound) / _standard_error(ratios)
    return ratio, excess if ratio > bound * (1.0 + NEGLIGIBLE_VARIANCE) else min(
        excess, STANDARD_ERRORS
    )


def _problems(figures: dict[str, Any], *, off: bool, bent: bool) -> Iterator[str]:
    alignment = figures["alignment"]
    bias = figures["bias"]
    excess = figures["variance_excess"]
    variance = figures["variance"]
    directions = figures["directions"]
    if alignment < -STANDARD_ERRORS:
        yield "it climbs: the mean update points up the gradient; a sign is wrong"
    elif alignment < STANDARD_ERRORS:
        yield (
            "it does not follow the gradient: the update may use other noise than the "
            "perturbation, or be lost in "
            "rounding, or the closure may be noisy"
        )
    elif bias is not None and off and abs(bias) > STANDARD_ERRORS:
        share = figures["learning_rate"] / figures["expected_learning_rate"]
        yield f"the mean update is {share:.3g} times what the learning rate promises"
    if bent and figures["remainder_bias"] > STANDARD_ERRORS:
        yield (
            "it leads aside: the mean update has a part across the gradient; noise may be shared "
            "between parameters or "
            "steps, or sigma be too large"
        )
    if excess is not None and excess > STANDARD_ERRORS:
        yield (
            f"it varies {variance:.3g} times as much as {directions} independent directions would "
            "on a linear loss: "
            "directions may repeat, sigma be too large, or the closure be noisy"
        )


def _motionless(optimizer: ScalarRule, model: Model, probes: int) -> EstimatorReport:
    return EstimatorReport(
        rule=type(optimizer).__name__,
        weights=len(model.gradient),
        directions=optimizer.settings["directions"],
        probes=probes,
        cosine=0.0,
        predicted_cosine=math.nan,
        learning_rate=0.0,
        expected_learning_rate=0.0 if promises_a_scale(optimizer) else None,
        alignment=0.0,
        bias=None,
        remainder=math.nan,
        remainder_bias=math.nan,
        variance=math.nan,
        variance_excess=None,
        problems=(
            "it does not move: lr is 0, or nothing is left to gain, or the updates are lost in "
            "rounding",
        ),
    )
