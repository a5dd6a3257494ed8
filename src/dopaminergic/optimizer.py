"""The one loop: a step = directions x outcomes x a rule.

    begin -> evaluate the closure at the weights and at perturbed weights -> the rule turns losses into coefficients
          -> restore the weights and add coefficients times directions, in one pass

Subclasses bring a rule and nothing else. Whatever happens inside a step, the weights afterwards are those before the
step or those after it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,
    _global_optimizer_post_hooks,  # pyright: ignore[reportPrivateUsage]
    _global_optimizer_pre_hooks,  # pyright: ignore[reportPrivateUsage]
)

from dopaminergic import checks
from dopaminergic.batched import MEMORY, Batched, rewind
from dopaminergic.distributed import Check, Ranks, fingerprint, ranks_of
from dopaminergic.noise import Multiple, Term
from dopaminergic.on_use import OnUse
from dopaminergic.outcomes import Outcome, mean_loss, mean_losses, mean_tensor
from dopaminergic.scalars import Scalar, as_array, as_tensor, clip, finite, mean, select
from dopaminergic.weights import Weights, _uninterrupted

Closure = Callable[[], float | Tensor | Outcome]


class Losses(NamedTuple):
    """What the closure returned in one step; each entry one loss, or one for each replica.

    Attributes:
        base: at the unperturbed weights; None for a rule that does not ask for it.
        plus: at weights + sigma z_k, one entry for each of the K directions.
        minus: at weights - sigma z_k; empty for a rule that does not ask for them.
    """

    base: Scalar | None
    plus: list[Scalar]
    minus: list[Scalar]

    def mean(self) -> Scalar:
        """The loss at the weights: measured, or else the mean around them."""
        return self.base if self.base is not None else mean(self.plus + self.minus)


Tried = tuple[list[Scalar], Sequence[int], list["Group"], int]  # losses, their directions, groups, other evaluations


class Group(NamedTuple):
    """What a rule needs to know of a parameter group.

    Attributes:
        lr: learning rate, in the rule's own unit.
        sigma: perturbation scale, the change of each weight in a perturbed pass; in large models perturbed in place by
            signs, what was asked for rounded to 6 significant bits.
        size: number of trainable weights.
    """

    lr: Scalar
    sigma: float
    size: int


class Decision(NamedTuple):
    """What a rule makes of the losses. Group g moves by -(step_sizes[g] / K) * sum_k signals[k] z_k.

    Attributes:
        state: the rule's next state.
        signals: one for each direction.
        step_sizes: one for each group; the change of a weight for a signal of 1.
        rates: one for each group; the learning rate of gradient descent that has the same mean update.
        rpe: the reward prediction error, averaged over directions.
    """

    state: Any
    signals: list[Scalar]
    step_sizes: list[Scalar]
    rates: list[Scalar]
    rpe: Scalar


class Progress(NamedTuple):
    """All that changes from step to step besides the weights; replaced as a whole when a step is done."""

    rule: Any
    step: int = 0
    forward_passes: int = 0
    skipped_steps: Any = 0
    last_rpe: Any = 0.0
    last_learning_rate: Any = 0.0


class Change(NamedTuple):
    """What a step does once it is applied: terms and scales of the weights, and what comes after."""

    terms: list[Term]
    scales: list[Multiple] | None
    after: Progress


class ForwardOptimizer(Optimizer):
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
            Or a `Ranks`, which says how ranks share data and directions; None: this process is alone.
    """

    needs_base = True
    needs_minus = False
    shares_sigma = False  # `sigma` is the length of a perturbation of all weights together
    default_sigmas = (1e-3, 1e-2)  # without and with 16-bit weights

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: Any,
        sigma: float | None = None,
        directions: int = 1,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        batched: bool = False,
        process_group: Any = None,
        **settings: Any,
    ) -> None:
        self._rule_name = type(self).__name__
        checks.directions(self._rule_name, directions)
        checks.noise(self._rule_name, noise)
        seeds = checks.seeds(self._rule_name, seed)
        self._fleet = isinstance(seeds, list)
        self._ranks: Ranks | None = ranks_of(process_group)
        self._agreed = False  # whether the ranks have been compared since the start
        self.settings = {"directions": directions, "noise": noise, "seed": seeds, "batched": batched, **settings}
        params = checks.parameters(self._rule_name, params)
        if sigma is None:  # one for all groups: a rule goes farther in those with a larger one
            sigma = self.default_sigmas[checks.any_16_bits(params)]
        super().__init__(params, {"lr": lr, "sigma": sigma, "weight_decay": weight_decay})
        checks.some_trainable(self._rule_name, self.param_groups)
        self._batched = self._make_batched()
        self._on_use = OnUse(self._rule_name)
        skipped = torch.zeros(len(self.settings["seed"]), dtype=torch.int64) if self._fleet else 0
        self._progress = Progress(self._start(), skipped_steps=skipped)
        self._weights = self._make_weights()
        self._pending: Change | None = None
        self._listeners: list[Callable[[Change], None]] = []  # told of each step that is done, by `journal`
        self._warned = False

    def _start(self) -> Any:
        """The rule's state before the first step."""
        return None

    def _rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
        raise NotImplementedError(f"{type(self).__name__} is a base class; use a subclass such as Dopamine")

    @property
    def _replicas(self) -> int | None:
        """R of a fleet; None for one model."""
        return len(self.settings["seed"]) if self._fleet else None

    def zero(self) -> Scalar:
        """0, in the form of this optimizer's losses: a float, or float64 zeros of shape `(R,)`."""
        return np.zeros(len(self.settings["seed"])) if self._fleet else 0.0

    def _make_weights(self) -> Weights:
        seeds = self.settings["seed"] if self._fleet else [self.settings["seed"]]
        seeds = np.array(seeds, np.uint64)
        # Gaussian directions are taken back in place only to rounding, and each rank takes back others.
        keep = self.settings["noise"] == "gaussian" and self._ranks is not None and self._ranks.shares > 1
        return Weights(
            self.param_groups,
            seeds,
            self.settings["noise"],
            shared=self.shares_sigma,
            keep_copies=keep,
            on_use=not self._on_use.refused,
        )

    def _make_batched(self, **known: bool) -> Batched:
        return Batched(self._rule_name, self.settings.get("memory", MEMORY), **known)

    @property
    def forward_passes(self) -> int:
        """Evaluations of the closure that count towards a step (those of an interrupted step do not)."""
        return self._progress.forward_passes

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take; the first one with large 16-bit weights, one more."""
        return self.needs_base + (1 + self.needs_minus) * self.settings["directions"]

    @property
    def skipped_steps(self) -> Any:
        """Steps without an update because an outcome was not finite; for a fleet an int64 tensor of shape `(R,)`."""
        return self._progress.skipped_steps

    @property
    def last_rpe(self) -> Any:
        """Reward prediction error of the last step; for a fleet a tensor of shape `(R,)`."""
        return self._progress.last_rpe

    @property
    def last_learning_rate(self) -> Any:
        """Learning rate of gradient descent that the last update amounts to, in the first group."""
        return self._progress.last_learning_rate

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluate and update; or, without a closure, apply what the last `probe` found.

        Args:
            closure: returns a loss: a float, a 0-d tensor, a 1-d tensor of per-sample losses, or an `Outcome`. It is
                called without gradients, with the same random numbers each time, and may do anything else.

        Returns:
            The loss at the weights before the update: a float, or float64 of shape `(R,)` for a fleet; None without a
            closure.

        Raises:
            TypeError: the closure returned something that is not a loss.
            RuntimeError: there was neither a closure nor a `probe`.
        """
        # torch's own wrapper costs as much as a small network, so it is only used when somebody listens.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]
        ):
            return _hooked_step(self, closure)
        return self._step(closure)

    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]  (tells torch not to wrap it again)

    def _step(self, closure: Closure | None) -> Any:
        return self._guarded(self._apply_pending if closure is None else self._probe_and_update, closure)

    def probe(self, closure: Closure) -> Any:
        """First half of a step, for loops that call `step()` themselves: evaluate, and leave the weights as they were.

        Args:
            closure: as for `step`.

        Returns:
            The loss, as `step` does. A `probe` that no `step()` follows is forgotten by the next one and by
            `state_dict`.
        """
        return self._guarded(self._probe_only, closure)

    def _guarded(self, work: Callable[[Any, Progress], Any], closure: Closure | None) -> Any:
        if self._weights.unfinished is not None:
            self._undo(self._progress)  # the last step could not be completed, for want of memory say
        before, gradients = self._progress, torch.is_grad_enabled()
        try:
            _set_grad_enabled(False)
            try:
                loss = work(closure, before)
            except BaseException:
                self._undo(before)
                raise
            _set_grad_enabled(gradients)
            return loss
        except BaseException:
            # Once more, since Ctrl-C may come while the first exception is dealt with; harmless if all is undone.
            self._undo(before)
            _set_grad_enabled(gradients)
            raise

    def _undo(self, before: Progress) -> None:
        self._batched.leave()
        self._on_use.leave()
        if self._progress is before:
            self._weights.restore(before.step)

    def _probe_and_update(self, closure: Closure, before: Progress) -> Any:
        self._pending = None
        losses, change = self._evaluate_on_use(closure, before)
        self._apply(change)
        return self._mean(losses)

    def _probe_only(self, closure: Closure, before: Progress) -> Any:
        self._pending = None
        losses, self._pending = self._evaluate_on_use(closure, before)
        self._weights.restore(before.step)
        return self._mean(losses)

    def _evaluate_on_use(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        self._on_use.extra = 0
        losses, change = self._evaluate(lambda: self._on_use(self._weights, closure), before)
        # Ranks count alike, though not each of them may have evaluated anything.
        if not self._on_use.extra or self._ranks is not None:
            return losses, change
        passes = change.after.forward_passes + self._on_use.extra
        return losses, change._replace(after=change.after._replace(forward_passes=passes))

    def _mean(self, losses: Losses) -> Any:
        if not self._fleet:
            return losses.mean()
        with np.errstate(all="ignore"):  # a replica may have lost its way
            return as_tensor(losses.mean())

    def _apply_pending(self, _: None, before: Progress) -> None:
        self._weights.begin(before.step)
        change = self._pending
        if change is None:
            raise RuntimeError(
                f"{self._rule_name}.step() without a closure needs a probe first: call opt.probe(closure), "
                "or pass the closure as opt.step(closure)"
            )
        self._apply(change)

    def _apply(self, change: Change) -> None:
        def commit() -> None:
            self._pending = None  # not before: a step that is interrupted can be tried again
            self._progress = change.after
            for listener in self._listeners:
                listener(change)

        if not self._listeners:
            self._weights.update(change.terms, change.scales, commit)
            return
        with _uninterrupted():  # no step is done that nobody is told of
            self._weights.update(change.terms, change.scales, commit)

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
        groups = [
            Group(as_array(group["lr"]), sigma, size)
            for group, sigma, size in zip(self.param_groups, weights.sigmas, weights.sizes, strict=True)
        ]
        signs = (1, -1) if self.needs_minus else (1,)
        displacements: list[list[Multiple]] = [[sign * g.sigma for g in groups] for sign in signs]
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

        width = (1 + self.needs_minus) * (self._replicas or 1)
        found, there = ranks.losses(work, len(units), width, self._check(step))
        found = found.reshape(-1)
        if self._weights.sharded and not self._agreed and (found == found[0]).all():
            warnings.warn(
                f"{self._rule_name}: no perturbation has changed the loss of this sharded model; if it is one "
                "of FSDP2, its root keeps the gathered weights: use fully_shard(model, reshard_after_forward=True)",
                RuntimeWarning,
                stacklevel=10,
            )
        self._agreed = True
        numbers = [unit - self.needs_base for unit in there if unit >= self.needs_base]
        if self._fleet:
            return list(found.reshape(-1, self._replicas or 1)), numbers, groups, 0
        return found.tolist(), numbers, groups, 0

    def _check(self, step: int) -> Check | None:
        """What all ranks compare in this step, if they do; in the first one frozen parameters too."""
        ranks: Any = self._ranks
        if self._agreed and step % ranks.check_every:
            return None
        groups = [{key: x for key, x in group.items() if key != "params"} for group in self.param_groups]
        parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad or not self._agreed]
        return lambda: fingerprint([self._identity(), self.settings, groups, self._progress], parameters)

    def _as_batches(
        self, closure: Closure, displacements: list[list[Multiple]], base: list[Scalar], numbers: range, step: int
    ) -> tuple[list[Scalar], int]:
        """Losses in the order of the loop above, and how many evaluations it took beyond them."""
        extra = 0
        random_states = [(generator, generator.get_state()) for generator in self._weights.generators]
        if not base and not (self._batched.checked or self._batched.refused):
            base, extra = [self._loss(closure)], 1  # what the first batch is compared by
        reference, found = torch.as_tensor(base[0] if base else 0.0, dtype=torch.float64).reshape(-1), []
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
        usable, passes = finite(sum(tried)), len(tried) + extra
        if usable is False:
            return self._skip(before, passes)
        rule, signals, steps, rates, rpe = self._rule(before.rule, losses, groups)
        share = -1.0 / len(signals)
        rows = [[step * share * signal for step in steps] for signal in signals]
        usable = usable & finite(sum(map(sum, rows)))
        if usable is False:
            return self._skip(before, passes)
        rate, skipped = rates[0], before.skipped_steps
        if self._fleet and not usable.all():
            self._warn()
            rows = [[select(usable, x, 0.0) for x in row] for row in rows]
            rule, skipped = chosen(usable, rule, before.rule), skipped + as_tensor(~usable)
            rpe, rate = select(usable, rpe, before.last_rpe), select(usable, rate, before.last_learning_rate)
        told = as_tensor(rpe), as_tensor(rate)
        after = Progress(rule, before.step + 1, before.forward_passes + passes, skipped, *told)
        decays = [group["weight_decay"] for group in self.param_groups]
        scales = shrinks(decays, rates, usable) if any(decays) else None
        return Change(list(zip(numbers, rows, strict=True)), scales, after)

    def _skip(self, before: Progress, passes: int) -> Change:
        self._warn()
        after = before._replace(
            step=before.step + 1,
            forward_passes=before.forward_passes + passes,
            skipped_steps=before.skipped_steps + 1,
        )
        return Change([], None, after)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._rule_name}: the closure returned a loss that is not finite, or one so large that the update "
                "is not; the step was skipped, the weights are as before. More are counted in `skipped_steps`.",
                RuntimeWarning,
                stacklevel=11,
            )

    # ---- saving and loading -----------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        return {
            "optimizer": self._rule_name,
            "shapes": [list(p.shape) for p in parameters],
            "dtypes": [str(p.dtype) for p in parameters],
        }

    def state_dict(self) -> dict[str, Any]:
        """All but the weights that a run needs to continue bit for bit; `torch.load(weights_only=True)` reads it."""
        progress = self._progress._asdict()
        rule = progress.pop("rule")
        memory = [as_tensor(x) for x in rule] if rule else None
        forward = {"settings": dict(self.settings), "rule": memory, "progress": progress}
        forward["batched"] = {"checked": self._batched.checked, "refused": self._batched.refused}
        forward["on_use"] = {"checked": self._on_use.checked, "refused": self._on_use.refused}
        return {**super().state_dict(), "forward": {**self._identity(), **forward}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another optimizer of the same kind, over a model of the same shape, stopped.

        Raises:
            ValueError: it is the state of another optimizer, model or dtype; nothing has changed then.
        """
        checks.state_dict(self._rule_name, state_dict, self._identity())
        forward = copy.deepcopy(state_dict["forward"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "forward"})
        start = self._start()
        self.settings = forward["settings"]
        self._fleet = isinstance(self.settings["seed"], list)
        if start and isinstance(start[0], np.ndarray):
            forward["rule"] = [as_array(x) for x in forward["rule"]]
        self._progress = Progress(type(start)(*forward["rule"]) if start else None, **forward["progress"])
        self._on_use = OnUse(self._rule_name, **forward.get("on_use", {}))
        self._weights, self._pending, self._agreed = self._make_weights(), None, False
        self._batched = self._make_batched(**forward.get("batched", {}))

    def __getstate__(self) -> dict[str, Any]:
        # Buffers and addresses belong to this process and these tensors, the `step` that a scheduler puts here and
        # whoever listens to this optimizer; a copy makes its own.
        own = ("_weights", "_pending", "_listeners", "step")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "settings" in self.__dict__:
            self._weights, self._pending = self._make_weights(), None
            self.__dict__.setdefault("_listeners", [])  # `load_state_dict` comes here too, and has some

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own `lr`, `sigma` and `weight_decay` if given."""
        super().add_param_group(param_group)
        try:
            checks.group(self._rule_name, self.param_groups[-1], self._replicas)
            checks.apart(self._rule_name, self.param_groups)
            if self._ranks is not None:
                self._ranks.check(self._rule_name, self.param_groups[-1]["params"])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise


# torch.set_grad_enabled is this and the making of a context manager that a step does not need.
_set_grad_enabled = torch._C._set_grad_enabled  # pyright: ignore[reportPrivateUsage]
_hooked_step = Optimizer.profile_hook_step(ForwardOptimizer._step)  # pyright: ignore[reportPrivateUsage]


def shrinks(decays: list[float], rates: list[Scalar], usable: Scalar) -> list[Multiple]:
    """What weight decay leaves of the weights of each group."""
    shrinks = [clip(1.0 - rate * decay, 0.0, 1.0) for rate, decay in zip(rates, decays, strict=True)]
    return [as_array(select(usable, shrink, 1.0)) for shrink in shrinks]


def chosen(usable: Scalar, new: Any, old: Any) -> Any:
    """The new state of the rule where it is usable; rules without a state have None."""
    return new if new is None else type(new)(*(select(usable, n, o) for n, o in zip(new, old, strict=True)))
