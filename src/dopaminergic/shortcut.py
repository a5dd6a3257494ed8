"""A step of one model with one parameter group and one direction, in fewer lines of Python.

If `ScalarRule` stood on `WeightOptimizer` itself, everything would be the same but the time of a
step. For example, with a network of 33 weights each further call costs a hundredth of a forward
pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dopaminergic import crowd
from dopaminergic.autocast import forget_casts
from dopaminergic.noise import UPDATE, perturbation
from dopaminergic.outcomes import Closure, mean_loss
from dopaminergic.points import BASE, Plan, one_sided, two_sided
from dopaminergic.progress import Change, Progress
from dopaminergic.rule import Decision, Group, Losses, decay_factors
from dopaminergic.scalars import as_array
from dopaminergic.weight_optimizer import WeightOptimizer
from dopaminergic.weights import Weights

PLANS = (one_sided(1), two_sided(1))
ALONG_FIRST = perturbation(0)


class ShortSteps(WeightOptimizer):
    """Takes the shorter way of a step where there is one; `ScalarRule` tells about its hooks."""

    takes_infinite = False

    def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        """The decision that follows from the losses of a step."""
        raise self._is_abstract()

    def points(self) -> Plan:
        """The points at which a step evaluates the closure."""
        raise self._is_abstract()

    def _probe_and_update(self, closure: Closure, before: Progress) -> Any:
        plan = self._short_plan(before)
        if plan is None:
            return super()._probe_and_update(closure, before)
        return self._step_shortly(closure, before, plan)

    def _short_plan(self, before: Progress) -> Plan | None:
        """The points of the next step, if it can be made here; else None.

        The weights have begun the step then.
        """
        if (
            self.settings["batched"]
            or self._fleet
            or self._ranks is not None
            or self.takes_infinite
        ):
            return None
        plan = self.points()
        if plan not in PLANS:
            return None
        # Buffers and silence need care in each evaluation, which the general path takes.
        if self._buffers or not before.answered or before.silent or len(crowd.steps) > 1:
            return None
        if self._waiting:
            return None
        if not self._unchanged:
            self._weights.begin(before.step)
            if not self._weights.alone:
                return None
        return plan

    def _step_shortly(self, closure: Closure, before: Progress, plan: Plan) -> float:
        """`ForwardOptimizer.step` at the points that `_short_plan` gave.

        Returns:
            The loss.
        """
        self._pending = None
        weights = self._weights
        (sigma,) = weights.sigmas
        values = _values(weights, closure, plan, sigma, before.step, self._rule_name)
        losses = (
            Losses(values[0], values[1:], [])
            if plan[0] is BASE
            else Losses(None, values[:1], values[1:])
        )
        loss = losses.mean()
        if loss < self._floor:
            self._look_at_floor(loss)
        if not math.isfinite(values[0] + values[1]):
            self._apply(self._skip(before, 2))
            return loss
        (group,) = self.param_groups
        rate = group["lr"]
        rate = rate if isinstance(rate, float) else as_array(rate)
        decision = self.rule(before.rule, losses, [Group(rate, sigma, weights.sizes[0])])
        self._follow(decision, before, silent=values[0] == values[1])
        return loss

    def _follow(self, decision: Decision, before: Progress, *, silent: bool) -> None:
        """Change the weights as the rule says, unless they would leave the range of their dtype."""
        short = _find_short(self._weights)
        move = -decision.step_sizes[0] * decision.signals[0]
        if not self._weights.takes_one(move):
            self._apply(self._skip(before, 2))
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
        decay = self.param_groups[0]["weight_decay"]
        if short is None or decay or self._listeners:
            scales = decay_factors([decay], decision.rates, True) if decay else None
            self._apply(Change([(0, [move])], scales, after, decision.rates))
        else:
            short(1.0, move, 0, before.step, UPDATE)
            self._progress = after


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
