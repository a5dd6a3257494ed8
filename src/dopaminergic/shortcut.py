"""A step of one model with one parameter group and one direction, in fewer lines of Python.

Without this file, and the two lines of `ScalarRule` that call it, everything is the same but the
time of a step. For example, with a network of 33 weights each further call costs a hundredth of a
forward pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dopaminergic import crowd
from dopaminergic.autocast import forget_casts
from dopaminergic.noise import UPDATE, perturbation
from dopaminergic.outcomes import Closure, mean_loss
from dopaminergic.points import BASE, one_sided, two_sided
from dopaminergic.progress import Change, Progress
from dopaminergic.rule import Group, Losses, decay_factors
from dopaminergic.scalars import as_array

if TYPE_CHECKING:
    from dopaminergic.scalar_rule import ScalarRule

PLANS = (one_sided(1), two_sided(1))
ALONG_FIRST = perturbation(0)


def serves(optimizer: ScalarRule, before: Progress) -> bool:
    """Whether the next step can be made here; the optimizer's weights have begun the step then."""
    settings = optimizer.settings
    if (
        settings["directions"] > 1
        or settings["batched"]
        or optimizer._fleet
        or optimizer._ranks is not None
    ):
        return False
    if optimizer.takes_infinite or optimizer.points() not in PLANS:
        return False
    # Buffers and silence need care in each evaluation, which the general path takes.
    if optimizer._buffers or not before.answered or before.silent or len(crowd.steps) > 1:
        return False
    weights = optimizer._weights
    if optimizer._unchanged:
        return True
    weights.begin(before.step)
    return weights.alone


def step(optimizer: ScalarRule, closure: Closure, before: Progress) -> float:
    """`ForwardOptimizer.step`, where `serves` allows it.

    Returns:
        The loss.
    """
    weights = optimizer._weights
    name = optimizer._rule_name
    number = before.step
    plan = optimizer.points()
    optimizer._pending = None
    (group,) = optimizer.param_groups
    (sigma,) = weights.sigmas
    (generator,) = weights.generators
    random_state = generator.get_state()  # common random numbers: each evaluation starts here

    values = []
    for point in plan:
        if point is not BASE:
            if values:
                weights.check()
                generator.set_state(random_state)
            short = weights.short  # another one where `check` has found the weights elsewhere
            if short is None:
                weights.move([(0, [point.side * sigma])])
            else:
                short(1.0, point.side * sigma, 0, number, ALONG_FIRST)
        forget_casts()
        values.append(mean_loss(closure(), name))
    weights.check()
    forget_casts()

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
    rate = group["lr"]
    groups = [Group(rate if isinstance(rate, float) else as_array(rate), sigma, weights.sizes[0])]
    decision = optimizer.rule(before.rule, losses, groups)
    move = -decision.step_sizes[0] * decision.signals[0]
    if not weights.takes_one(move):
        optimizer._apply(optimizer._skip(before, 2))
        return loss
    after = Progress(
        decision.state,
        number + 1,
        before.forward_passes + 2,
        before.skipped_steps,
        decision.rpe,
        decision.rates[0],
        int(values[0] == values[1]),
        True,
        before.doublings,
        before.chosen_sigma,
    )
    short = weights.short
    if short is None or group["weight_decay"] or optimizer._listeners:
        decay = group["weight_decay"]
        scales = decay_factors([decay], decision.rates, True) if decay else None
        optimizer._apply(Change([(0, [move])], scales, after, decision.rates))
    else:
        short(1.0, move, 0, number, UPDATE)
        optimizer._progress = after
    return loss
