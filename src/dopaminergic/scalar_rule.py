"""A step of a rule that learns from losses: points x outcomes x a rule.

    for point in points: displace the weights, evaluate the closure   ->  losses
    decide: the rule makes signals of losses                          ->  a change of the weights

Subclasses bring a rule and nothing else; `optimizer.py` guards the step.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dopaminergic import checks, points
from dopaminergic.noise import Multiple
from dopaminergic.outcomes import Closure, mean_loss, read
from dopaminergic.points import Plan, Point
from dopaminergic.progress import Change, Progress
from dopaminergic.rule import Decision, Group, Losses, can_be_ranked, choose, decay_factors
from dopaminergic.scalars import Scalar, as_array, as_tensor, finite, select
from dopaminergic.shortcut import ShortSteps
from dopaminergic.weights.modes import random_states, rewind


class ScalarRule(ShortSteps):
    """Base of the rules that learn from losses; for its arguments see `ForwardOptimizer`.

    A subclass defines `rule`, and `start` and `points` where it needs other ones. `CONTRIBUTING.md`
    has a complete example.
    """

    # Whether the rule can use a loss of +inf, if any loss is finite; never one of NaN.
    takes_infinite = False

    # ---- for subclasses --------------------------------------------------------------------------

    def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        """The decision that follows from the losses of a step.

        It is a pure function of its arguments and of `settings`.

        Args:
            state: from `start`, or of the last decision.
            losses: at `points`; each a float, or a float64 array `(R,)` of a fleet.
            groups: of parameters, one each.
        """
        raise self._is_abstract()

    def points(self) -> Plan:
        """The points at which a step evaluates the closure.

        They are `one_sided(K)`, `two_sided(K)`, or different points of a rule's own.
        """
        directions = self.settings["directions"]
        return (
            points.two_sided(directions)
            if self.settings.get("two_sided")
            else points.one_sided(directions)
        )

    def _choose_sides(self, two_sided: bool | None) -> None:
        """Ask for losses to both sides of each direction, or to one side and at the weights.

        None asks for both sides if any weights have 16 bits.

        Raises:
            TypeError: `two_sided` is neither a bool nor None.
        """
        if not isinstance(two_sided, bool | None):
            raise TypeError(
                f"{self._rule_name}: two_sided must be True, False or None, got {two_sided!r}"
            )
        both = checks.any_16_bits(self.param_groups) if two_sided is None else two_sided
        self.settings["two_sided"] = both

    # ---- a step ----------------------------------------------------------------------------------

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take.

        The first step with large 16-bit weights may take one more.
        """
        return len(self.points())

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        plan = self.points()
        points.check(plan, self._rule_name)
        there: Sequence[Point] = plan
        extra = 0
        if self._ranks is None:
            values, groups, extra = self._values(closure, plan, before.step)
        else:
            there, values, groups = self._values_on_all_ranks(closure, plan, before.step)
        losses = Losses.at(there, values)
        if not self._fleet:
            return losses, self._decide(before, losses, groups, there, values, extra)
        with np.errstate(all="ignore"):  # a replica may have diverged
            return losses, self._decide(before, losses, groups, there, values, extra)

    def _values(
        self, closure: Closure, plan: Sequence[Point], step: int
    ) -> tuple[list[Scalar], list[Group], int]:
        """The losses at some points, the groups, and the number of further evaluations.

        The losses come in the order of the points. Further evaluations are those beyond one for
        each point.
        """
        weights = self._weights
        weights.begin(step)
        if not any(weights.sizes):
            checks.some_trainable(self._rule_name, self.param_groups)
        closure = functools.partial(weights.evaluate, closure)
        groups = self._groups()  # before the closure may change how weights are perturbed
        # Common random numbers: every evaluation starts where torch's generators are now.
        states = random_states(weights.generators)
        values: list[Scalar] = []
        last: int | None = None
        for number, point in enumerate(plan):
            if point.direction is not None:
                if self.settings["batched"]:
                    rewind(states)
                    found, extra = self._as_batches(closure, plan[number:], values, groups, step)
                    return values + found, groups, extra
                if (
                    last not in (None, point.direction)
                    and self._ranks is not None
                    and self._ranks.late
                ):
                    break
                last = point.direction
                weights.move([(point.direction, _multiples(groups, point.side))])
                rewind(states)
            values.append(self._loss(closure))
        return values, groups, 0

    def _values_on_all_ranks(
        self, closure: Closure, plan: Plan, step: int
    ) -> tuple[list[Point], list[Scalar], list[Group]]:
        """The points that all ranks have evaluated, the losses there, and the groups."""
        ranks: Any = self._ranks
        replicas = self.replicas or 1
        units = points.by_direction(plan)
        widest = max(map(len, units))

        part = ranks.part(len(units))
        mine = units[part.start : part.stop]
        own = [point for unit in mine for point in unit]
        with ranks.losses(len(units), widest * replicas, self._check(step)) as shared:
            seeded = ranks.seeded(closure, self._weights, self.settings["seed"], step)
            values, groups, _ = self._values(seeded, own, step)
            shared.send(_in_units(values, mine, widest, replicas))
        found = shared.found.reshape(-1, widest, replicas)
        there: list[Point] = []
        rows: list[np.ndarray] = []
        for losses, number in zip(found, shared.units, strict=True):
            there += units[number]
            rows += [losses[i] for i in range(len(units[number]))]
        if (
            self._weights.sharded
            and not self._agreed
            and all((row == rows[0]).all() for row in rows)
        ):
            warnings.warn(
                f"{self._rule_name}: no perturbation has changed the loss of this sharded model; "
                "if it is one of FSDP2, its root keeps the gathered weights: use "
                "fully_shard(model, reshard_after_forward=True)",
                RuntimeWarning,
                stacklevel=checks.levels_up(),
            )
        self._agreed = True
        return there, rows if self._fleet else [float(row[0]) for row in rows], groups

    def _as_batches(
        self,
        closure: Closure,
        plan: Sequence[Point],
        base: list[Scalar],
        groups: list[Group],
        step: int,
    ) -> tuple[list[Scalar], int]:
        """The losses at some points along directions, and the number of further evaluations.

        Further evaluations are those beyond one for each point.
        """
        extra = 0
        states = random_states(self._weights.generators)
        if not base and not (self._batched.checked or self._batched.refused):
            # The first batch is compared by this loss.
            base, extra = [self._loss(closure)], 1
        first = base[0] if base else 0.0
        reference = torch.as_tensor(first, dtype=torch.float64, device="cpu").reshape(-1)
        found: dict[Point, Scalar] = {}
        for side in dict.fromkeys(point.side for point in plan):
            rewind(states)
            some = [point for point in plan if point.side == side]
            losses, evaluations = self._batched(
                self._weights,
                closure,
                lambda returned: read(returned, self._rule_name, self.replicas).means().detach(),
                reference,
                points.directions(some),
                _multiples(groups, side),
                step,
            )
            rows = as_array(losses) if self._fleet else losses[:, 0].tolist()
            found.update(zip(some, rows, strict=True))
            extra += evaluations - len(some)
        return [found[point] for point in plan], extra

    def _loss(self, closure: Closure) -> Scalar:
        if self._fleet:
            return as_array(read(closure(), self._rule_name, self.replicas).means())
        return mean_loss(closure(), self._rule_name)

    def _groups(self) -> list[Group]:
        """The parameter groups as the rule sees them."""
        rates = [as_array(group["lr"]) for group in self.param_groups]
        return list(map(Group, rates, self._weights.sigmas, self._weights.sizes))

    def _decide(
        self,
        before: Progress,
        losses: Losses,
        groups: list[Group],
        there: Sequence[Point],
        values: list[Scalar],
        extra: int,
    ) -> Change:
        """Ask the rule for a change.

        Replicas with an outcome or an update that is not finite keep their state and weights.
        """
        usable = can_be_ranked(values) if self.takes_infinite else finite(sum(values))
        passes = len(values) + extra
        if usable is False:
            return self._skip(before, passes)
        decision = self.rule(before.rule, losses, groups)
        decays = [group["weight_decay"] for group in self.param_groups]
        numbers = points.directions(there)
        terms = decision.terms(numbers)
        scales = decay_factors(decays, decision.rates, usable) if any(decays) else None
        usable = usable & self._weights.takes(terms, scales)
        if usable is False:
            return self._skip(before, passes)
        after = before._replace(
            rule=decision.state,
            step=before.step + 1,
            forward_passes=before.forward_passes + passes,
            last_rpe=as_tensor(decision.rpe),
            last_learning_rate=as_tensor(decision.rates[0]),
        )
        if not self._fleet:
            return Change(terms, scales, after, decision.rates)
        if not usable.all():
            self._warn()
            terms = [(k, [select(usable, move, 0.0) for move in row]) for k, row in terms]
            scales = decay_factors(decays, decision.rates, usable) if scales is not None else None
            after = after._replace(
                rule=choose(usable, decision.state, before.rule),
                skipped_steps=before.skipped_steps + as_tensor(~usable),
                last_rpe=as_tensor(select(usable, decision.rpe, before.last_rpe)),
                last_learning_rate=as_tensor(
                    select(usable, decision.rates[0], before.last_learning_rate)
                ),
            )
        return Change(terms, scales, after, decision.rates)


def _multiples(groups: list[Group], side: int) -> list[Multiple]:
    """The distance of one side of a direction from the weights, for each group."""
    return [side * group.sigma for group in groups]


def _in_units(
    values: list[Scalar], units: list[list[Point]], widest: int, replicas: int
) -> np.ndarray:
    """Losses as float64 `(units, widest, replicas)`, filled up with 0.

    Units that are late are missing.
    """
    rows = np.array(values, np.float64).reshape(-1, replicas)
    filled = np.zeros((len(units), widest, replicas))
    done = 0
    for number, unit in enumerate(units):
        if done == len(rows):
            return filled[:number]
        filled[number, : len(unit)] = rows[done : done + len(unit)]
        done += len(unit)
    return filled
