"""Optimizers that perturb activities: how a model's units belong to a step.

    record the network as it is -> draw a trial for every unit of every sample
        -> evaluate with perturbed units -> a change of the weights

Weights stay as they are meanwhile. They move only for a trial of the step itself, of which copies
are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dopaminergic import checks, states
from dopaminergic.activities.estimates import Estimate, Product, estimates, wide
from dopaminergic.activities.evaluations import Evaluations, Record
from dopaminergic.activities.families import Family, credited, families, shortened, weights_of
from dopaminergic.activities.large import LargeStep
from dopaminergic.activities.memory import COPIES, check_memory
from dopaminergic.activities.separation import CHECKS, OPEN, separate
from dopaminergic.evaluation import Evaluation
from dopaminergic.noise import Combination
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Closure
from dopaminergic.progress import Progress
from dopaminergic.rule import Losses
from dopaminergic.scalars import Scalar
from dopaminergic.weights.interruption import uninterrupted


class NodeChange(NamedTuple):
    """The effect of a step once it is applied.

    Attributes:
        updates: amounts that are added to parameters, by their numbers; for large matrices steps
            that make them part by part.
        memory: all that the rule has learned, by name.
        after: the progress that follows.
    """

    updates: dict[int, Tensor | LargeStep]
    memory: dict[str, Tensor]
    after: Progress


class Trial(NamedTuple):
    """All that a step has seen before it decides.

    Attributes:
        evaluations: for one more.
        record: of the network as it is.
        found: its families, with their trials.
        regrets: D, `(R, B, T, C)`.
        loss_regrets: how the loss of each sample answered, over sigma, `(R, B)`.
        memory: all that is kept, by name.
        trainable: numbers of weights that may change, derived ones too.
        usable: replicas whose loss is finite, `(R,)`.
    """

    evaluations: Evaluations
    record: Record
    found: list[Family]
    regrets: Tensor
    loss_regrets: Tensor
    memory: dict[str, Tensor]
    trainable: set[int]
    usable: Tensor


class Still:
    """In the place of `Weights`: an evaluation of these optimizers displaces none."""

    in_place = False


class NodeOptimizer(ForwardOptimizer):
    """Base of `NodePerturbation` and `NodeDopamine`; use one of them."""

    default_sigmas = (1e-3, 3e-2)  # without and with 16-bit weights
    perturbs_readout = False
    takes_micro_batches = False  # each site must see all samples of a step at once

    def __init__(self, model: Any, **settings: Any) -> None:
        if isinstance(model, nn.Module):
            model = model.named_parameters()
        if settings.get("process_group") not in (None, "alone"):
            raise ValueError(
                f"{type(self).__name__}: ranks are not supported, since a step is as many numbers "
                "as there are weights; train on one rank, or take Dopamine2 or VectorDopamine"
            )
        super().__init__(model, **settings)

    # ---- what a rule says ------------------------------------------------------------------------

    def _decide(self, before: Progress, trial: Trial) -> NodeChange:
        """The change that follows from a trial."""
        raise self._is_abstract()

    def _credits(self, trial: Trial) -> dict[Any, Tensor]:
        """The credit of every unit's input, by nodes."""
        raise self._is_abstract()

    def estimates(self, closure: Closure) -> dict[int, Tensor]:
        """The estimates of the gradient in the next step, which is not made.

        Weights, state and counters stay as they are.

        Args:
            closure: as for `step`.

        Returns:
            Tensors in the shapes of parameters, by their numbers; empty where the step would only
            learn how to see the network.
        """
        self._wanted = {}
        try:
            with self.unheard():
                self.probe(closure)
            return self._wanted
        finally:
            self._wanted = None

    def _estimates(self, trial: Trial, credits: dict[Any, Tensor]) -> Iterator[Estimate]:
        """The estimates of a trial's credits, one parameter after another."""
        return estimates(
            trial.record.tape.nodes,
            credits,
            self.parameters,
            trial.record.tape.derived,
            trial.trainable,
            self.replicas,
        )

    # ---- between steps ---------------------------------------------------------------------------

    def _prepare(self, loaded: states.Loaded | None) -> None:
        self._memory: dict[str, Tensor] = {}
        self._kept: dict[int, Tensor] = {}  # copies of weights while a step is tried
        self._wanted: dict[int, Tensor] | None = None  # estimates that somebody asks for

    def _default_sigma(self, params: Any, casts: Collection[torch.dtype] = ()) -> float:
        return self.default_sigmas[bool(casts) or checks.any_16_bits(params)]

    def _found_out(self) -> dict[str, Any]:
        return {"batched": {}, "on_use": {}, "memory": dict(self._memory)}

    def check_state_dict(self, state_dict: Any) -> states.Loaded:
        """Look at the memory of nodes too; see `Stateful`."""
        loaded = super().check_state_dict(state_dict)
        place = f"{self._rule_name}.load_state_dict"
        memory = state_dict["forward"]["memory"]
        check_memory(memory, self.parameters, self.replicas, place)
        return loaded

    def _load(self, state_dict: dict[str, Any], loaded: states.Loaded, start: Any) -> None:
        super()._load(state_dict, loaded, start)
        memory = state_dict["forward"]["memory"]
        self._memory = {name: value.detach().clone() for name, value in memory.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters of all groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self) -> list[str]:
        names: list[str] = []
        for group in self.param_groups:
            there = group.get("param_names")
            start = len(names)
            names.extend(there or [str(start + i) for i in range(len(group["params"]))])
        return names

    # ---- a step ----------------------------------------------------------------------------------

    def _begin(self, step: int) -> None:
        pass

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Tell no listener of the steps made within, and forget them and what they taught."""
        memory = self._memory
        try:
            with super().unheard():
                yield
        finally:
            self._memory = memory

    def _watched(self, closure: Closure) -> Closure:
        def remember(casts: set[torch.dtype]) -> None:
            self._casts = casts

        still: Any = Still()
        return Evaluation(closure, still, self._buffers, remember, self._rule_name)

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Any]:
        parameters = self.parameters
        sigma = self.param_groups[0]["sigma"]
        evaluations = Evaluations(
            closure,
            parameters,
            sigma,
            rule=self._rule_name,
            replicas=self.replicas,
            generators=_generators(parameters),
            copies=COPIES in self._memory,
        )
        record = evaluations.record()
        losses = Losses(self._own(record.loss.loss), [], [])
        usable = record.loss.loss.isfinite()
        if not bool(usable.any()):
            return losses, self._skip(before, 1)
        trainable = self._trainable(record)
        found = self._families(record, trainable, sigma)
        memory = dict(self._memory)
        if not self._separated(evaluations, record, found, memory):
            return losses, self._only_learned(before, evaluations.count, memory, usable)
        self._draw(found, before.step)
        noise = [(family, sigma * family.reach * family.trials) for family in found]
        values, after = evaluations.perturbed(record, noise)
        if not record.tape.is_intact:
            memory[COPIES] = torch.ones((), dtype=torch.int64, device="cpu")
            return losses, self._only_learned(before, evaluations.count, memory, usable)
        trial = Trial(
            evaluations,
            record,
            found,
            ((values - record.loss.values) / sigma).view(record.shape),
            (after - record.losses).to(values.dtype) / sigma,
            memory,
            trainable,
            usable,
        )
        if self._wanted is not None:
            for number, estimate, _ in self._estimates(trial, self._credits(trial)):
                whole = estimate.whole() if isinstance(estimate, Product) else estimate
                self._wanted[number] = whole
        change = self._decide(before, trial)
        passes = before.forward_passes + evaluations.count + self.products
        after = change.after._replace(step=before.step + 1, forward_passes=passes)
        return losses, self._checked(before, change._replace(after=after), usable)

    def _only_learned(
        self, before: Progress, count: int, memory: dict[str, Tensor], usable: Tensor
    ) -> NodeChange:
        """The end of a step that has learned how to see the network, and moves no weight."""
        passes = before.forward_passes + count
        after = before._replace(step=before.step + 1, forward_passes=passes)
        return self._checked(before, NodeChange({}, memory, after), usable)

    def _separated(
        self, evaluations: Evaluations, record: Record, found: list[Family], memory: Any
    ) -> bool:
        """Whether the layouts of all families are known, and the step has passes left to learn.

        Otherwise the next step goes on, and announces that it may take more passes.
        """
        sigma, rule = self.param_groups[0]["sigma"], self._rule_name
        announced = self._open_checks
        most = announced or self.most_passes - 1
        known = separate(evaluations, record, found, sigma, memory, self._tell, rule, most)
        if known and evaluations.count - 1 <= announced:
            memory.pop(OPEN, None)
            return True
        memory[OPEN] = torch.ones((), dtype=torch.int64, device="cpu")
        return False

    @property
    def _open_checks(self) -> int:
        """Evaluations that the next step may take to find the layouts of families."""
        return CHECKS if self._progress.step == 0 or OPEN in self._memory else 0

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take.

        The first one may also try how samples and time steps lie in tensors.
        """
        return self.most_passes + self._open_checks

    most_passes = 4  # of a step in which no layouts are to be found
    products = 1  # passes that the arithmetic of a step is counted as, beside its evaluations

    def _trainable(self, record: Record) -> set[int]:
        """Numbers of weights that may change; says which of them cannot be trained here."""
        parameters = self.parameters
        trainable = {i for i, p in enumerate(parameters) if p.requires_grad}
        if not trainable:
            checks.some_trainable(self._rule_name, self.param_groups)
        for i, one in enumerate(record.tape.derived):
            if one.weight.number in trainable:
                trainable.add(len(parameters) + i)
        strange = {n: op for n, op in record.tape.strange.items() if n in trainable}
        if strange:
            names = self._names()
            listed = ", ".join(
                f"{shortened(names[n], 28) if n < len(names) else 'a function of weights'} "
                f"({shortened(op, 24)})"
                for n, op in list(strange.items())[:2]
            )
            more = f" and {len(strange) - 2} more" if len(strange) > 2 else ""
            self._tell(
                "strange",
                f"{self._rule_name}: some weights get no credit where they enter operations of "
                f"other kinds: {listed}{more}; write these as matrix products, convolutions, "
                "embeddings or norms, or use another optimizer for them",
            )
        return trainable

    def _families(self, record: Record, trainable: set[int], sigma: float) -> list[Family]:
        outcome = None if self.perturbs_readout else record.outcome
        nodes = record.tape.nodes
        if self.perturbs_readout and record.outcome is not None:
            record.outcome.consumed = True
        units = credited(nodes, outcome, trainable)
        names = self._names()
        _, samples, times, _ = record.shape
        try:
            found = families(
                units,
                self.replicas,
                samples,
                times,
                sigma,
                lambda n: names[n] if n < len(names) else f"derived {n - len(names)}",
            )
        except ValueError as error:
            raise ValueError(
                f"{self._rule_name}: {error}; the first dimension of outcomes must be the samples "
                "(batch_first=True, or transpose them), and each site must see all of them"
            ) from None
        known = [] if record.outcome is None else weights_of(record.outcome)
        if not found and not any(weight.number in trainable for weight in known):
            raise ValueError(
                f"{self._rule_name}: no operation of the closure combines trainable weights with "
                "activities, so that there is nothing to perturb; call the model that was given to "
                "the optimizer within the closure, with weights that are not frozen"
            )
        return found

    def _draw(self, found: list[Family], step: int) -> None:
        """The trials xi of every family: +1 or -1, from (seed, step, family, sample, unit)."""
        if not found:
            return
        seeds = self.settings["seed"] if self._fleet else [self.settings["seed"]]
        targets = [torch.zeros(family.shape, dtype=torch.float32, device="cpu") for family in found]
        draw = Combination(
            targets, list(range(len(found))), np.array(seeds, np.uint64), self.settings["noise"]
        )
        draw([(0, [1.0])], None, step)
        for family, trials in zip(found, targets, strict=True):
            gains = wide(family.gains)
            family.trials = trials.to(gains.device, gains.dtype)

    def _checked(self, before: Progress, change: NodeChange, usable: Tensor) -> NodeChange:
        """The change, without replicas that lost their way."""
        replicas = self.replicas or 1
        for number, amount in change.updates.items():
            parameter = self.parameters[number].detach()
            if isinstance(amount, LargeStep):
                usable = usable & amount.fits(parameter)
                continue
            new = (parameter + amount).to(parameter.dtype)
            usable = usable & new.reshape(replicas, -1).isfinite().all(1).cpu()
        if bool(usable.all()):
            return change
        self._warn()
        if not self._fleet:
            return self._skip(before, change.after.forward_passes - before.forward_passes)

        def chosen(new: Tensor, old: Tensor | None) -> Tensor:
            mask = usable.to(new.device).view(-1, *[1] * (new.ndim - 1))
            return torch.where(mask, new, torch.zeros_like(new) if old is None else old)

        memory = dict(change.memory)
        for name, new in change.memory.items():
            if new.is_floating_point() and new.shape[:1] == (replicas,):
                memory[name] = chosen(new, self._memory.get(name))
        rule = change.after.rule
        if rule is not None:
            rule = type(rule)(*map(chosen, rule, before.rule))
        after = change.after._replace(
            rule=rule, skipped_steps=before.skipped_steps + (~usable).long()
        )
        updates: dict[int, Any] = {n: chosen(new, None) for n, new in change.updates.items()}  # pyright: ignore[reportArgumentType]
        return NodeChange(updates, memory, after)

    def _skip(self, before: Progress, passes: int) -> Any:
        self._warn()
        return NodeChange({}, self._memory, before.after_skipping(passes))

    def _is_silent(self, losses: Losses, change: Any) -> bool:
        return False

    # ---- the weights -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _moved(self, updates: dict[int, Tensor]) -> Iterator[None]:
        """Weights as they would be after a step, within the block."""
        parameters = self.parameters
        self._kept = {number: parameters[number].detach().clone() for number in updates}
        try:
            for number, amount in updates.items():
                parameters[number].detach().add_(amount)
            yield
        finally:
            self._take_back(0)

    def _take_back(self, step: int) -> None:
        if not self._kept:
            return
        with uninterrupted():
            parameters = self.parameters
            for number, old in self._kept.items():
                parameters[number].detach().copy_(old)
            self._kept = {}

    def _probe_only(self, closure: Closure, before: Progress) -> Any:
        loss = super()._probe_only(closure, before)
        # The activities of which large steps are made may be written until the step is taken.
        change: Any = self._pending
        updates = {
            number: amount.whole(self.parameters[number])
            if isinstance(amount, LargeStep)
            else amount
            for number, amount in change.updates.items()
        }
        self._pending = change._replace(updates=updates)
        return loss

    def _write(self, change: Any, commit: Callable[[], None]) -> None:
        parameters = self.parameters
        with uninterrupted():
            for number, amount in change.updates.items():
                parameter = parameters[number].detach()
                if isinstance(amount, LargeStep):
                    for part, added in amount.parts(parameter):
                        part.add_(added)
                else:
                    parameter.add_(amount)
            self._memory = change.memory
            commit()

    def rates(self, number: int) -> dict[str, Any]:
        """The group of a parameter: its `lr` and `weight_decay`."""
        for group in self.param_groups:
            if number < len(group["params"]):
                return group
            number -= len(group["params"])
        raise IndexError(number)

    def spread(self, x: Any, like: Tensor) -> Any:
        """Numbers of replicas, for products with a parameter."""
        if not self._fleet:
            return float(x) if isinstance(x, Tensor) else x
        x = torch.as_tensor(x, dtype=torch.float64, device="cpu").to(like.device, like.dtype)
        return x.reshape(-1, *[1] * (like.ndim - 1))

    def by_replica(self, x: Tensor) -> Tensor:
        """Sums over the weights of each replica, float64 `(R,)` on the CPU."""
        return x.reshape(self.replicas or 1, -1).sum(1).cpu().double()

    def _own(self, x: Tensor) -> Scalar:
        """Numbers in the form of this optimizer's losses: `(R,)` for a fleet, else a float."""
        return x if self._fleet else float(x)


def _generators(parameters: Sequence[Tensor]) -> list[torch.Generator]:
    found = [torch.default_generator]
    for device in {p.device for p in parameters if p.device.type == "cuda"}:
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found
