"""A step of a rule that learns from losses: directions x outcomes x a rule.

Subclasses bring a rule and nothing else; the loop around it is in `loop.py`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dopaminergic import checks, crowd
from dopaminergic.autocast import forget_casts
from dopaminergic.batched import rewind
from dopaminergic.loop import Change, Closure, Loop, Progress
from dopaminergic.noise import Multiple
from dopaminergic.outcomes import mean_loss, mean_losses, mean_tensor
from dopaminergic.rule import Decision, Group, Losses, record
from dopaminergic.scalars import Scalar, as_array, as_tensor, clip, finite, select

Tried = tuple[list[Scalar], Sequence[int], list[Group], int]  # losses, their directions, groups, other evaluations


class ForwardOptimizer(Loop):
    """Base of all optimizers that learn from forward passes alone; use a subclass.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and `weight_decay`.
        lr: learning rate, >= 0, in the rule's own unit; for a fleet also a tensor of shape `(R,)`.
        sigma: perturbation scale, > 0: how far each weight moves in a perturbed pass; None: what `default_sigmas`
            says, larger if any of the weights have 16 bits, whose rounding would drown the regrets.
        directions: number K of random directions whose estimates are averaged, >= 1.
        noise: `"rademacher"` (each entry of a direction +1 or -1) or `"gaussian"`.
        seed: in [0, 2^63). Equal seeds give equal runs. A sequence of R seeds makes a fleet: every parameter then has a
            leading dimension R, and the closure returns R losses (or an outcome with that leading dimension).
        weight_decay: decoupled, >= 0: weights shrink by `weight_decay` times the learning rate of the gradient descent
            that the update amounts to (Loshchilov and Hutter 2019).
        batched: evaluate up to 32 directions as one batch where the closure allows it, which is faster for small models
            and takes the memory of so many copies of the weights and activations.
        process_group: of `torch.distributed`: every rank evaluates its own shard of the data, and losses are averaged.
            Or a `Ranks`, which says how ranks share data and directions. None: this process is alone; `"alone"` says
            so to a process that belongs to a group, which None warns of.
    """

    needs_base = True  # the loss at the weights; else those to both sides of them
    takes_infinite = False  # the rule makes something of a loss of +inf, if any loss is finite; never of NaN

    def _choose_sides(self, two_sided: bool | None) -> None:
        """Ask for losses to both sides, or for that at the weights; None: to both if any weights have 16 bits.

        Raises:
            TypeError: it is neither a bool nor None.
        """
        if not isinstance(two_sided, bool | None):
            raise TypeError(f"{self._rule_name}: two_sided must be True, False or None, got {two_sided!r}")
        both = checks.any_16_bits(self.param_groups) if two_sided is None else two_sided
        self.settings["two_sided"] = both
        self.needs_base = not both

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state_dict)
        if "two_sided" in self.settings:
            self._choose_sides(self.settings["two_sided"])

    def _rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        raise NotImplementedError(f"{type(self).__name__} is a base class; use a subclass such as Dopamine")

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take; the first one with large 16-bit weights, one more."""
        directions = self.settings["directions"]
        return 1 + directions if self.needs_base else 2 * directions

    def _probe_and_update(self, closure: Closure, before: Progress) -> Any:
        """With one model, one group and one direction the same in fewer lines of Python.

        With a network of 33 weights, each call on the way around costs as much as a hundredth of a forward pass.
        """
        settings, weights, step = self.settings, self._weights, before.step
        plain = not (settings["batched"] or self._fleet or self.takes_infinite)
        if settings["directions"] > 1 or not plain or self._ranks is not None:
            return super()._probe_and_update(closure, before)
        # What must be looked after in each evaluation is looked after there, and silence is counted there.
        if self._buffers or not before.answered or before.silent or len(crowd.steps) > 1:
            return super()._probe_and_update(closure, before)
        if not weights.begin_again(step):
            weights.begin(step)
            if not weights.simple:
                return super()._probe_and_update(closure, before)
        self._pending, name = None, self._rule_name
        (group,), (sigma,), (size,), (generator,) = self.param_groups, weights.sigmas, weights.sizes, weights.generators
        random_state = generator.get_state()  # common random numbers: each evaluation starts here
        forget_casts()
        base = mean_loss(closure(), name) if self.needs_base else None
        weights.check()
        write = weights.write or weights.move_one
        write(1.0, sigma, 0, step, 1)
        generator.set_state(random_state)
        forget_casts()
        plus = mean_loss(closure(), name)
        weights.check()
        write = weights.write or weights.move_one
        if base is None:
            write(1.0, -sigma, 0, step, 1)
            generator.set_state(random_state)
            forget_casts()
            minus = mean_loss(closure(), name)
            weights.check()
            write = weights.write or weights.move_one
            loss, losses = (plus + minus) / 2, record(Losses, (None, [plus], [minus]))
        else:
            loss, losses = base, record(Losses, (base, [plus], []))
        forget_casts()
        if loss < self._floor:
            self._look_at_floor(loss)
        answered = loss != plus
        if math.isfinite(loss + plus):
            rate = group["lr"]
            groups = [record(Group, (rate if isinstance(rate, float) else as_array(rate), sigma, size))]
            rule, (signal,), (move,), (rate,), rpe = self._rule(before.rule, losses, groups)
            move *= -signal
            if weights.takes_one(move):
                _, _, passes, skipped, _, _, _, _, *rest = before
                silent = int(not answered)
                after = record(Progress, (rule, step + 1, passes + 2, skipped, rpe, rate, silent, True, *rest))
                decay = group["weight_decay"]
                if weights.write is None or decay or self._listeners:
                    self._apply(Change([(0, [move])], shrinks([decay], [rate], True) if decay else None, after))
                else:
                    write(1.0, move, 0, step, 0)
                    self._progress = after
                return loss
        self._apply(self._skip(before, 2))
        return loss

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        """Call the closure at all points of a step; leaves the weights perturbed along the last direction."""
        units = self.needs_base + self.settings["directions"]
        try_all = self._try if self._ranks is None else self._try_on_all_ranks
        found, numbers, groups, extra = try_all(closure, before.step, range(units))
        losses = Losses(found[0], found[1:], []) if self.needs_base else Losses(None, found[::2], found[1::2])
        if not self._fleet:
            return losses, self._decide(before, losses, found, numbers, groups, extra)
        with np.errstate(all="ignore"):  # a replica may have lost its way
            return losses, self._decide(before, losses, found, numbers, groups, extra)

    def _try(self, closure: Closure, step: int, units: range) -> Tried:
        """Losses of some units of a step: the weights themselves (number 0, if needed), then the directions."""
        weights = self._weights
        weights.begin(step)
        if not any(weights.sizes):
            checks.some_trainable(self._rule_name, self.param_groups)
        if weights.on_use_blocks:
            closure = functools.partial(self._on_use, weights, closure)
        rates = [as_array(group["lr"]) for group in self.param_groups]
        groups = list(map(Group, rates, weights.sigmas, weights.sizes))
        signs = (1,) if self.needs_base else (1, -1)
        displacements: list[list[Multiple]] = [[sign * sigma for sigma in weights.sigmas] for sign in signs]
        # Common random numbers: every evaluation starts where torch's generators are now.
        random_states = [(generator, generator.get_state()) for generator in weights.generators]
        base = [self._loss(closure)] if self.needs_base and 0 in units else []
        numbers = range(max(0, units.start - self.needs_base), max(0, units.stop - self.needs_base))
        tried, extra = [], 0
        if self.settings["batched"] and numbers:
            rewind(random_states)
            tried, extra = self._as_batches(closure, displacements, base, numbers, step)
        for k in () if self.settings["batched"] else numbers:
            if tried and self._ranks is not None and self._ranks.late:
                break
            for displacement in displacements:
                weights.move([(k, displacement)])
                for generator, state in random_states:
                    generator.set_state(state)
                tried.append(self._loss(closure))
        return base + tried, numbers, groups, extra

    def _try_on_all_ranks(self, closure: Closure, step: int, units: range) -> Tried:
        ranks: Any = self._ranks
        groups: list[Group] = []

        def work() -> list[float]:
            seeded = ranks.seeded(closure, self._weights, self.settings["seed"], step)
            found, _, groups[:], _ = self._try(seeded, step, ranks.part(len(units)))
            return np.concatenate(found).tolist() if self._fleet and found else found

        width = (2 - self.needs_base) * (self._replicas or 1)
        found, there = ranks.losses(work, len(units), width, self._check(step))
        found = found.reshape(-1)
        if self._weights.sharded and not self._agreed and (found == found[0]).all():
            warnings.warn(
                f"{self._rule_name}: no perturbation has changed the loss of this sharded model; if it is one "
                "of FSDP2, its root keeps the gathered weights: use fully_shard(model, reshard_after_forward=True)",
                RuntimeWarning,
                stacklevel=checks.levels_up(),
            )
        self._agreed = True
        numbers = [unit - self.needs_base for unit in there if unit >= self.needs_base]
        if self._fleet:
            return list(found.reshape(-1, self._replicas or 1)), numbers, groups, 0
        return found.tolist(), numbers, groups, 0

    def _as_batches(
        self, closure: Closure, displacements: list[list[Multiple]], base: list[Scalar], numbers: range, step: int
    ) -> tuple[list[Scalar], int]:
        """Losses in the order of the loop above, and how many evaluations it took beyond them."""
        extra = 0
        random_states = [(generator, generator.get_state()) for generator in self._weights.generators]
        if not base and not (self._batched.checked or self._batched.refused):
            base, extra = [self._loss(closure)], 1  # what the first batch is compared by
        first = base[0] if base else 0.0
        reference, found = torch.as_tensor(first, dtype=torch.float64, device="cpu").reshape(-1), []
        for displacement in displacements:
            rewind(random_states)
            losses, evaluations = self._batched(
                self._weights,
                closure,
                lambda returned: mean_tensor(returned, self._rule_name, self._replicas),
                reference,
                numbers,
                displacement,
                step,
            )
            found.append(as_array(losses) if self._fleet else losses[:, 0].tolist())
            extra += evaluations - len(numbers)
        return [loss for pair in zip(*found, strict=True) for loss in pair], extra

    def _loss(self, closure: Closure) -> Scalar:
        if self._fleet:
            return as_array(mean_losses(closure(), self._rule_name, len(self.settings["seed"])))
        return mean_loss(closure(), self._rule_name)

    def _decide(
        self,
        before: Progress,
        losses: Losses,
        tried: list[Scalar],
        numbers: Sequence[int],
        groups: list[Group],
        extra: int,
    ) -> Change:
        """Ask the rule. Replicas with an outcome or an update that is not finite keep their state and weights."""
        usable, passes = comparable(tried) if self.takes_infinite else finite(sum(tried)), len(tried) + extra
        if usable is False:
            return self._skip(before, passes)
        rule, signals, steps, rates, rpe = self._rule(before.rule, losses, groups)
        share = -1.0 / len(signals)
        rows = [[step * share * signal for step in steps] for signal in signals]
        decays = [group["weight_decay"] for group in self.param_groups]
        scales = shrinks(decays, rates, usable) if any(decays) else None
        terms = list(zip(numbers, rows, strict=True))
        usable = usable & self._weights.takes(terms, scales)
        if usable is False:
            return self._skip(before, passes)
        rate, skipped = rates[0], before.skipped_steps
        if self._fleet:
            if not usable.all():
                self._warn()
                rows = [[select(usable, x, 0.0) for x in row] for row in rows]
                terms = list(zip(numbers, rows, strict=True))
                scales = shrinks(decays, rates, usable) if scales is not None else None
                rule, skipped = chosen(usable, rule, before.rule), skipped + as_tensor(~usable)
                rpe, rate = select(usable, rpe, before.last_rpe), select(usable, rate, before.last_learning_rate)
            rpe, rate = as_tensor(rpe), as_tensor(rate)
        after = before._replace(
            rule=rule,
            step=before.step + 1,
            forward_passes=before.forward_passes + passes,
            skipped_steps=skipped,
            last_rpe=rpe,
            last_learning_rate=rate,
        )
        return Change(terms, scales, after)


def comparable(losses: list[Scalar]) -> Scalar:
    """Whether losses can be ranked: some are finite, and none is NaN or -inf, than which nothing could be better."""
    known, some = True, False
    for loss in losses:
        known, some = known & (loss > -math.inf), some | finite(loss)
    return known & some


def shrinks(decays: list[float], rates: list[Scalar], usable: Scalar) -> list[Multiple]:
    """What weight decay leaves of the weights of each group."""
    shrinks = [clip(1.0 - rate * decay, 0.0, 1.0) for rate, decay in zip(rates, decays, strict=True)]
    return [as_array(select(usable, shrink, 1.0)) for shrink in shrinks]


def chosen(usable: Scalar, new: Any, old: Any) -> Any:
    """The new state of the rule where it is usable; rules without a state have None."""
    return new if new is None else type(new)(*(select(usable, n, o) for n, o in zip(new, old, strict=True)))
