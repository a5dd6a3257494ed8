"""NodeDopamine: credit through perturbed activities, with learned expectations.

    every sample and unit has its own trial xi  ->  a vector of regrets for each sample
    feedback expects the regrets  ->  its prediction errors teach it, and correct the credit
    dW = presynaptic activity x credit

A rule that perturbs weights shares one trial among all samples of a batch. Here B samples tell B
independent regrets about far fewer units. Feedback from outcomes to units says which regret to
expect of each trial, so that only its prediction error carries noise.

Defined in algorithms.md. Node perturbation: Werfel, Xie and Seung (2005); learned feedback by
perturbations: Lansdell, Prakash and Kording (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dopaminergic import checks, states
from dopaminergic.activities import feedback
from dopaminergic.activities.estimates import estimates, wide
from dopaminergic.activities.evaluations import Evaluations, Record
from dopaminergic.activities.families import Family, credited, families
from dopaminergic.activities.gauss_newton import (
    Aligned,
    NotInLine,
    add_readout,
    add_rows,
    align,
    inputs_of,
    paths,
    structure,
    synapses_of,
)
from dopaminergic.evaluation import Evaluation
from dopaminergic.noise import Combination
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Closure
from dopaminergic.progress import Progress
from dopaminergic.rule import Losses
from dopaminergic.scalars import Scalar
from dopaminergic.weights.interruption import uninterrupted

PRIMAL = 1500  # weights for which the Jacobian is written out


class NodeState(NamedTuple):
    """The controllers' numbers, each float64 `(R,)`.

    Attributes:
        damping: lambda.
        gain: factor on the length of first-order steps.
        actual: running mean of improvements' sizes.
        promised: running mean of expected improvements' sizes.
        comparisons: weight of those means.
        expected: improvement that the last step promised.
        last_loss: before the last step.
        updates: number of steps that changed weights.
    """

    damping: Tensor
    gain: Tensor
    actual: Tensor
    promised: Tensor
    comparisons: Tensor
    expected: Tensor
    last_loss: Tensor
    updates: Tensor


class NodeChange(NamedTuple):
    """The effect of a step once it is applied.

    Attributes:
        updates: amounts that are added to parameters, by their numbers.
        memory: all that the rule has learned, by name.
        after: the progress that follows.
    """

    updates: dict[int, Tensor]
    memory: dict[str, Tensor]
    after: Progress


class Still:
    """In the place of `Weights`: an evaluation of this optimizer displaces none."""

    in_place = False


class Step(NamedTuple):
    """All that a step has found out before its update.

    Attributes:
        record: of the network as it is.
        found: its families.
        slope: r, `(R, B, T, C)`.
        credits: of each family.
        memory: what the feedback has learned.
    """

    record: Record
    found: list[Family]
    slope: Tensor
    credits: list[Tensor]
    memory: dict[str, Tensor]


class NodeDopamine(ForwardOptimizer):
    """Learns from perturbed activities; see the module."""

    default_sigmas = (0.01, 0.05)

    def __init__(
        self,
        params: Any,
        *,
        lr: Any = 1.0,
        sigma: float | None = None,
        span: int = 8,
        damping: float = 1.0,
        tau: float = 0.25,
        kappa: float = 0.02,
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        process_group: Any = None,
    ) -> None:
        if isinstance(params, nn.Module):
            params = params.named_parameters()
        super().__init__(
            params,
            lr=lr,
            sigma=sigma,
            seed=seed,
            weight_decay=weight_decay,
            process_group=process_group,
            span=span,
            damping=damping,
            tau=tau,
            kappa=kappa,
        )

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take."""
        return 4

    def start(self) -> NodeState:
        """The first state, in which nothing is known."""
        zero = torch.zeros(self._replicas or 1, dtype=torch.float64, device="cpu")
        return NodeState(*[zero] * len(NodeState._fields))._replace(
            damping=zero + self.settings["damping"], gain=zero + 1.0
        )

    def _default_sigma(self, params: Any, casts: Collection[torch.dtype] = ()) -> float:
        return self.default_sigmas[bool(casts) or checks.any_16_bits(params)]

    def _prepare(self, loaded: states.Loaded | None) -> None:
        self._memory: dict[str, Tensor] = {}
        self._aligned: dict[Any, Aligned | None] = {}
        self._before: list[Tensor] | None = None

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _found_out(self) -> dict[str, Any]:
        return {"batched": {}, "on_use": {}}

    def _begin(self, step: int) -> None:
        pass

    def _watched(self, closure: Closure) -> Closure:
        def remember(casts: set[torch.dtype]) -> None:
            self._casts = casts

        still: Any = Still()
        return Evaluation(closure, still, self._buffers, remember, self._rule_name)

    # ---- a step ----------------------------------------------------------------------------------

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Any]:
        parameters = self._parameters
        devices = {p.device for p in parameters}
        generators = [torch.default_generator]
        generators += [torch.cuda.default_generators[d.index] for d in devices if d.type == "cuda"]
        sigma = self.param_groups[0]["sigma"]
        evaluations = Evaluations(
            closure,
            parameters,
            sigma,
            rule=self._rule_name,
            replicas=self._replicas,
            generators=generators,
        )
        record = evaluations.record()
        losses = Losses(self._own(record.loss.loss), [], [])
        if not bool(record.loss.loss.isfinite().all()):
            return losses, self._skip(before, 1)
        trainable = {i for i, p in enumerate(parameters) if p.requires_grad}
        for i, one in enumerate(record.tape.derived):
            if one.weight.number in trainable:
                trainable.add(len(parameters) + i)
        units = credited(record.tape.nodes, record.outcome, trainable)
        found = families(
            units, self._replicas, record.shape[1], record.shape[2], lambda n: str(n)
        )
        self._draw(found, before.step)
        outcome = evaluations.perturbed(record, [(f, sigma * f.trials) for f in found])
        step = self._learn(record, found, (outcome - record.loss.values) / sigma)
        primal = self._jacobian(step, trainable)
        if primal is not None:
            return losses, self._gauss_newton(evaluations, before, step, primal)
        return losses, self._first_order(before, step, trainable)

    def _draw(self, found: list[Family], step: int) -> None:
        """The trials xi of every family: +1 or -1, from (seed, step, family, sample, unit)."""
        if not found:
            return
        seeds = self.settings["seed"] if self._fleet else [self.settings["seed"]]
        targets = [torch.zeros(f.shape, dtype=torch.float32) for f in found]
        draw = Combination(
            targets, list(range(len(found))), np.array(seeds, np.uint64), "rademacher"
        )
        draw([(0, [1.0])], None, step)
        for family, trials in zip(found, targets, strict=True):
            family.trials = trials.to(family.gains.device, wide(family.gains).dtype)

    def _learn(self, record: Record, found: list[Family], regrets: Tensor) -> Step:
        """What feedback expects of the trials, what it learns, and the credit that it gives."""
        shape = record.shape
        slope = record.loss.slope.view(shape)
        unexpected = regrets.view(shape)
        memory = dict(self._memory)
        span = self.settings["span"]
        count = sum(family.size for family in found)
        samples = shape[1]
        features: list[Tensor] = []
        kernels: list[Tensor] = []
        names: list[str] = []
        for family in found:
            times = feedback.times_of(family, shape[2], span)
            form = feedback.shape_of(family, times, (shape[2], shape[3]))
            name = f"feedback {family.name} {tuple(form[1:])}"
            names.append(name)
            kernel = memory.get(name)
            kernels.append(regrets.new_zeros(form) if kernel is None else kernel)
            features.append(feedback.rows(family.trials * wide(family.gains), times))
            predicted = torch.bmm(features[-1], kernels[-1].flatten(1, -2))
            unexpected = unexpected - predicted.view(shape)
        credits: list[Tensor] = []
        scalar = (unexpected * slope).sum(-1)  # (R, B, T)
        share = samples / (samples + count)
        for family, kernel in zip(found, kernels, strict=True):
            times = feedback.times_of(family, shape[2], span)
            credit = feedback.credit(slope, kernel, family, times) * wide(family.gains)
            error = scalar.sum(2)[..., None, None]
            if times is not None:
                later = torch.nn.functional.pad(scalar, (times.lag, 0))
                error = later.flip(2).cumsum(2).flip(2)[..., None]
            credits.append(credit + share * error * family.trials)
        for timed in (True, False):
            mine = [
                i for i, f in enumerate(found)
                if (feedback.times_of(f, shape[2], span) is not None) == timed
            ]
            if not mine:
                continue
            rows = unexpected.flatten(1, 2) if timed else unexpected.flatten(2)
            units = sum(features[i].shape[2] for i in range(len(found)))
            changes = feedback.learned([features[i] for i in mine], rows, units)
            for i, change in zip(mine, changes, strict=True):
                memory[names[i]] = kernels[i] + change.view(kernels[i].shape)
        return Step(record, found, slope, credits, memory)

    def _nodes(self, step: Step) -> dict[Any, Tensor]:
        credits: dict[Any, Tensor] = {}
        for family, credit in zip(step.found, step.credits, strict=True):
            for node, part in zip(family.nodes, family.of_calls(credit), strict=True):
                credits[node] = part
        record = step.record
        if record.outcome is not None:
            node = record.outcome
            span = max(node.place.span, record.place.span)
            memory = step.slope.new_zeros(span)
            record.place.within(memory).copy_(step.slope.reshape(record.place.shape))
            credits[node] = node.place.within(memory)
        return credits

    # ---- first order -----------------------------------------------------------------------------

    def _first_order(self, before: Progress, step: Step, trainable: set[int]) -> NodeChange:
        record = step.record
        parameters = self._parameters
        found = estimates(
            record.tape.nodes, self._nodes(step), parameters, record.tape.derived, trainable
        )
        state = self._controlled(before.rule, record.loss.loss)
        memory = step.memory
        updates: dict[int, Tensor] = {}
        promise = torch.zeros_like(state.gain)
        count = float(state.updates.max()) + 1.0
        for number, estimate in found.items():
            m = memory.get(f"m {number}", torch.zeros_like(estimate))
            v = memory.get(f"v {number}", torch.zeros_like(estimate))
            m = m + 0.1 * (estimate - m)
            v = v + 0.01 * (estimate * estimate - v)
            memory[f"m {number}"] = m
            memory[f"v {number}"] = v
            direction = (m / (1 - 0.9**count)) / ((v / (1 - 0.99**count)).sqrt() + 1e-10)
            rate = self._rates(state.gain * 3e-3)
            amount = direction * self._spread(rate, direction)
            updates[number] = -amount
            promise = promise + self._summed(amount * estimate)
        state = state._replace(
            expected=promise, last_loss=record.loss.loss, updates=state.updates + 1.0
        )
        after = before._replace(
            rule=state,
            step=before.step + 1,
            forward_passes=before.forward_passes + 3,
            last_learning_rate=self._own(state.gain * 3e-3),
        )
        return NodeChange(updates, memory, after)

    def _rates(self, rate: Tensor) -> Tensor:
        return rate * self.param_groups[0]["lr"]

    def _spread(self, rate: Tensor, like: Tensor) -> Tensor:
        rate = rate.to(like.device, like.dtype)
        if not self._fleet:
            return rate[0]
        return rate.view(-1, *[1] * (like.ndim - 1))

    def _summed(self, x: Tensor) -> Tensor:
        return x.reshape(self._replicas or 1, -1).sum(1).double().cpu()

    def _controlled(self, state: NodeState, loss: Tensor) -> NodeState:
        """The length of steps, by actual against expected improvement on the next batch."""
        known = state.updates > 0
        actual = state.last_loss - loss
        tau = self.settings["tau"]
        a = 0.99 * state.actual + 0.01 * actual.abs()
        p = 0.99 * state.promised + 0.01 * state.expected.abs()
        n = 0.99 * state.comparisons + 0.01
        surprise = (actual - tau * state.expected) / ((a + p) / n + 1e-12)
        gain = state.gain * (self.settings["kappa"] * surprise.clamp(-3, 3)).exp()
        return state._replace(
            actual=torch.where(known, a, state.actual),
            promised=torch.where(known, p, state.promised),
            comparisons=torch.where(known, n, state.comparisons),
            gain=torch.where(known, gain.clamp(0.01, 100), state.gain),
        )

    # ---- Gauss-Newton ----------------------------------------------------------------------------

    def _jacobian(self, step: Step, trainable: set[int]) -> Tensor | None:
        """J `(R, n, d)`; None where it is not written out."""
        parameters = self._parameters
        replicas = self._replicas or 1
        starts: dict[int, int] = {}
        total = 0
        for number in sorted(trainable):
            if number < len(parameters):
                starts[number] = total
                total += parameters[number].numel() // replicas
        record = step.record
        if total > PRIMAL or record.outcome is None or record.tape.derived:
            return None

        def columns_of(weight: Any) -> Tensor | None:
            if weight.number not in starts:
                return None
            own = weight.place._replace(offset=weight.place.offset - parameters[weight.number].storage_offset())
            elements = own.elements().view(own.shape)
            if self._fleet:
                elements = elements[:1]
            return elements + starts[weight.number]

        shape = record.shape
        # The kernels after learning know more.
        jacobian = torch.zeros(*shape, total, dtype=torch.float64)
        try:
            for family in step.found:
                key = tuple(structure(node) for node in family.nodes)
                if key not in self._aligned:
                    self._aligned[key] = self._line_up(
                        [paths(node, node.place) for node in family.nodes], family.layout, columns_of
                    )
                aligned = self._aligned[key]
                if aligned is None:
                    return None
                inputs = inputs_of(aligned, [synapses_of(node) for node in family.nodes])
                times = feedback.times_of(family, shape[2], self.settings["span"])
                form = feedback.shape_of(family, times, (shape[2], shape[3]))
                kernel = step.memory[f"feedback {family.name} {tuple(form[1:])}"]
                add_rows(jacobian, family, aligned, inputs, kernel.double(), times)
            node: Any = record.outcome
            key = (structure(node), record.place)
            if key not in self._aligned:
                self._aligned[key] = self._line_up(
                    [paths(node, record.place)], record.layout, columns_of
                )
            aligned = self._aligned[key]
            if aligned is None:
                return None
            add_readout(jacobian, aligned, inputs_of(aligned, [synapses_of(node)]))
        except NotInLine:
            return None
        return jacobian.flatten(1, 3)

    def _line_up(self, calls: Any, layout: Any, columns_of: Any) -> Aligned | None:
        try:
            return align(calls, layout, columns_of)
        except NotInLine:
            return None

    def _gauss_newton(
        self, evaluations: Evaluations, before: Progress, step: Step, jacobian: Tensor
    ) -> NodeChange:
        loss = step.record.loss
        state = before.rule
        memory = step.memory
        slope = loss.slope.double()
        turned = jacobian.mT
        now = loss.curve(turned.to(loss.values.dtype)).double() @ jacobian
        gradient = torch.bmm(turned, slope[..., None])[..., 0]
        old = memory.get("curvature")
        curvature = now if old is None else 0.9 * old + 0.1 * now
        memory["curvature"] = curvature
        size = curvature.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(curvature.shape[-1], dtype=torch.float64)
        damped = curvature + (state.damping * size)[:, None, None] * eye
        proposal = torch.linalg.solve(damped, gradient)
        share = 0.5 * self.param_groups[0]["lr"]
        taken = proposal * share
        updates = self._as_updates(-taken)
        self._move(updates)
        try:
            trial = evaluations.at_trial()
        finally:
            self._take_back(before.step)
        actual = loss.loss - trial
        expected = (gradient * taken).sum(-1) - 0.5 * torch.einsum(
            "rd,rde,re->r", taken, now, taken
        )
        accepted = actual > 0
        updates = self._as_updates(torch.where(accepted[:, None], -taken, 0.0))
        worse = ~accepted | (expected <= 0) | (actual < 0.5 * expected)
        better = actual > 0.75 * expected
        factor = torch.where(worse, 3.0, torch.where(better, 0.5, 1.0)).double()
        state = state._replace(
            damping=(state.damping * factor).clamp(1e-8, 1e4),
            last_loss=loss.loss,
            updates=state.updates + 1.0,
        )
        after = before._replace(
            rule=state,
            step=before.step + 1,
            forward_passes=before.forward_passes + 4,
            last_rpe=self._own(actual - expected),
        )
        return NodeChange(updates, memory, after)

    def _as_updates(self, flat: Tensor) -> dict[int, Tensor]:
        updates: dict[int, Tensor] = {}
        start = 0
        replicas = self._replicas or 1
        for number, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                size = parameter.numel() // replicas
                part = flat[:, start : start + size].reshape(parameter.shape)
                updates[number] = part.to(parameter.dtype)
                start += size
        return updates

    # ---- writing ---------------------------------------------------------------------------------

    def _move(self, updates: dict[int, Tensor]) -> None:
        self._before = [p.detach().clone() for p in self._parameters]
        parameters = self._parameters
        for number, amount in updates.items():
            parameters[number].detach().add_(amount)

    def _take_back(self, step: int) -> None:
        if self._before is None:
            return
        with uninterrupted():
            for parameter, old in zip(self._parameters, self._before, strict=True):
                parameter.detach().copy_(old)
            self._before = None

    def _write(self, change: Any, commit: Callable[[], None]) -> None:
        parameters = self._parameters
        with uninterrupted():
            for number, amount in change.updates.items():
                parameters[number].detach().add_(amount.to(parameters[number].dtype))
            self._memory = change.memory
            commit()

    def _is_silent(self, losses: Losses, change: Any) -> bool:
        return False

    def _skip(self, before: Progress, passes: int) -> Any:
        self._warn()
        after = before._replace(
            step=before.step + 1,
            forward_passes=before.forward_passes + passes,
            skipped_steps=before.skipped_steps + 1,
        )
        return NodeChange({}, self._memory, after)

    def _own(self, x: Tensor) -> Scalar:
        return x if self._fleet else float(x)


__all__ = ["NodeDopamine"]
_unused: Any = (math, Iterable)
