"""A step of one model with one parameter group and one direction, in fewer lines of Python.

Without this file, and the lines of `ScalarRule` that call it, everything is the same but the time
of a step. For example, with a network of 33 weights each further call costs a hundredth of a
forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from dopaminergic import crowd
from dopaminergic.autocast import forget_casts
from dopaminergic.noise import UPDATE, perturbation
from dopaminergic.outcomes import Closure, mean_loss
from dopaminergic.points import BASE, Plan, one_sided, two_sided
from dopaminergic.progress import Change, Progress
from dopaminergic.rule import Decision, Group, Losses, decay_factors
from dopaminergic.scalars import as_array

if TYPE_CHECKING:
    from dopaminergic.scalar_rule import ScalarRule
    from dopaminergic.weights import Weights

PLANS = (one_sided(1), two_sided(1))
ALONG_FIRST = perturbation(0)


def plan_of(optimizer: ScalarRule, before: Progress) -> Plan | None:
    """The points of the next step, if it can be made here; else None.

    The optimizer's weights have begun the step then.
    """
    if (
        optimizer.settings["batched"]
        or optimizer._fleet
        or optimizer._ranks is not None
        or optimizer.takes_infinite
    ):
        return None
    plan = optimizer.points()
    if plan not in PLANS:
        return None
    # Buffers and silence need care in each evaluation, which the general path takes.
    if optimizer._buffers or not before.answered or before.silent or len(crowd.steps) > 1:
        return None
    if optimizer._waiting:
        return None
    if not optimizer._unchanged:
        weights = optimizer._weights
        weights.begin(before.step)
        if not weights.alone:
            return None
    return plan


def step(optimizer: ScalarRule, closure: Closure, before: Progress, plan: Plan) -> float:
    """`ForwardOptimizer.step` at the points that `plan_of` gave.

    Returns:
        The loss.
    """
    optimizer._pending = None
    weights = optimizer._weights
    (sigma,) = weights.sigmas
    values = _values(weights, closure, plan, sigma, before.step, optimizer._rule_name)
    losses = (
        Losses(values[0], values[1:], [])
        if plan[0] is BASE
        else Losses(None, values[:1], values[1:])
    )
    loss = losses.mean()
    if loss < optimizer._floor:
        optimizer._look_at_floor(loss)
    if not math.isfinite(values[0] + values[1]):
        optimizer._apply(optimizer._skip(before, 2))
        return loss
    (group,) = optimizer.param_groups
    rate = group["lr"]
    groups = [Group(rate if isinstance(rate, float) else as_array(rate), sigma, weights.sizes[0])]
    decision = optimizer.rule(before.rule, losses, groups)
    _follow(optimizer, decision, before, silent=values[0] == values[1])
    return loss


def _values(
    weights: Weights, closure: Closure, plan: Plan, sigma: float, step: int, rule: str
) -> list[float]:
    """The losses at the points of a plan; the weights stay at the last of them."""
    (generator,) = weights.generators
    random_state = generator.get_state()  # common random numbers: each evaluation starts here
    short = weights.short
    values = []
    for point in plan:
        if point is not BASE:
            if values:
                short = _find_short(weights)
                generator.set_state(random_state)
            if short is None:
                weights.move([(0, [point.side * sigma])])
            else:
                short(1.0, point.side * sigma, 0, step, ALONG_FIRST)
        forget_casts()
        values.append(mean_loss(closure(), rule))
    forget_casts()
    return values


def _find_short(weights: Weights) -> Callable[..., None] | None:
    """`Weights.short`, after a closure that may have moved the weights away.

    Where there is none, all that is called instead of it looks for itself.
    """
    if weights.short is not None:
        weights.check()
    return weights.short


def _follow(optimizer: ScalarRule, decision: Decision, before: Progress, *, silent: bool) -> None:
    """Change the weights as the rule says, unless they would leave the range of their dtype."""
    weights = optimizer._weights
    short = _find_short(weights)
    move = -decision.step_sizes[0] * decision.signals[0]
    if not weights.takes_one(move):
        optimizer._apply(optimizer._skip(before, 2))
        return
    after = Progress(
        decision.state,
        before.step + 1,
        before.forward_passes + 2,
        before.skipped_steps,
        decision.rpe,
        decision.rates[0],
        int(silent),
        True,
        before.doublings,
        before.chosen_sigma,
    )
    decay = optimizer.param_groups[0]["weight_decay"]
    if short is None or decay or optimizer._listeners:
        scales = decay_factors([decay], decision.rates, True) if decay else None
        optimizer._apply(Change([(0, [move])], scales, after, decision.rates))
    else:
        short(1.0, move, 0, before.step, UPDATE)
        optimizer._progress = after
