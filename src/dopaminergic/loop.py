"""The one loop, whatever the rule: evaluate, and apply what follows from it, or undo everything.

    begin -> evaluate the closure at the weights and at perturbed weights -> a change of the weights
          -> restore the weights and add the change, in one pass

Whatever happens inside a step, the weights afterwards are those before the step or those after it.
"""

from __future__ import annotations

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

from dopaminergic import checks, states
from dopaminergic.batched import MEMORY, Batched
from dopaminergic.distributed import Check, Ranks, fingerprint, ranks_of
from dopaminergic.interruption import uninterrupted
from dopaminergic.noise import Multiple, Term
from dopaminergic.on_use import OnUse
from dopaminergic.outcomes import Outcome
from dopaminergic.plain import plain
from dopaminergic.rule import Losses
from dopaminergic.scalars import Scalar, as_array, as_tensor
from dopaminergic.tracing import keep_tracers_out
from dopaminergic.weights import Weights

Closure = Callable[[], float | Tensor | Outcome]


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


class Loop(Optimizer):
    """Steps and probes that leave no weight perturbed, and a state that can be saved; for the rest see its subclass."""

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
        self._rule_name = rule = type(self).__name__
        given = {"directions": directions, "noise": noise, "seed": seed, "batched": batched, **settings}
        self.settings = checks.settings(rule, given)
        self._fleet = isinstance(self.settings["seed"], list)
        self._ranks: Ranks | None = ranks_of(process_group)
        self._agreed = False  # whether the ranks have been compared since the start
        params = checks.parameters(rule, params)
        if sigma is None:  # one for all groups: a rule goes farther in those with a larger one
            sigma = self._default_sigma(params)
        given = {"lr": lr, "sigma": sigma, "weight_decay": weight_decay}
        super().__init__(params, checks.rates(rule, given, self._replicas))
        checks.some_trainable(rule, self.param_groups)
        self._batched = self._make_batched()
        self._on_use = OnUse(self._rule_name)
        skipped = torch.zeros(len(self.settings["seed"]), dtype=torch.int64, device="cpu") if self._fleet else 0
        self._progress = Progress(self._start(), skipped_steps=skipped)
        self._weights = self._make_weights()
        self._pending: Change | None = None
        self._listeners: list[Callable[[Change], None]] = []  # told of each step that is done, by `journal`
        self._warned = self._warned_of_probes = False

    def _default_sigma(self, params: Any) -> float:
        return self.default_sigmas[checks.any_16_bits(params)]

    def _start(self) -> Any:
        """The rule's state before the first step."""
        return None

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        """Call the closure, through `_on_use`, at all points of a step, and say what follows.

        The weights may be left perturbed.
        """
        raise NotImplementedError

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
            rule=self._rule_name,
            replicas=self._replicas,
        )

    def _make_batched(self, **known: bool) -> Batched:
        return Batched(self._rule_name, self.settings.get("memory", MEMORY), **known)

    @property
    def forward_passes(self) -> int:
        """Evaluations of the closure that count towards a step (those of an interrupted step do not)."""
        return self._progress.forward_passes

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
        return self._guarded(self._apply_pending if closure is None else self._probe_and_update, closure)

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
        except BaseException as error:
            # Once more, since Ctrl-C may come while the first exception is dealt with; harmless if all is undone.
            self._undo(before)
            _set_grad_enabled(gradients)
            checks.explain(self._rule_name, error, closure)
            raise

    def _undo(self, before: Progress) -> None:
        self._batched.leave()
        self._on_use.leave()
        if self._progress is before:
            self._weights.restore(before.step)

    def _probe_and_update(self, closure: Closure, before: Progress) -> Any:
        self._pending = None
        losses, change = self._evaluated(closure, before)
        self._apply(change)
        return self._mean(losses)

    def _probe_only(self, closure: Closure, before: Progress) -> Any:
        if self._pending is not None and not self._warned_of_probes:
            self._warned_of_probes = True
            warnings.warn(
                f"{self._rule_name}: a second probe came before step(), so that what the first one found is lost, as "
                "where a framework accumulates gradients; average the losses of all micro-batches inside one closure",
                RuntimeWarning,
                stacklevel=checks.levels_up(),
            )
        self._pending = None
        losses, self._pending = self._evaluated(closure, before)
        self._weights.restore(before.step)
        return self._mean(losses)

    def _evaluated(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        self._on_use.extra = 0
        losses, change = self._evaluate(closure, before)
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
                f"{self._rule_name}.step() without a closure needs a probe first: pass opt.step(closure), or call "
                "opt.probe(closure) before it. accelerate and the Trainer of transformers call step() alone: write the "
                "loop yourself, and of a wrapped optimizer use what it wraps, wrapped.optimizer"
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
        with uninterrupted():  # no step is done that nobody is told of
            self._weights.update(change.terms, change.scales, commit)

    def _check(self, step: int) -> Check | None:
        """What all ranks compare in this step, if they do; in the first one frozen parameters too."""
        ranks: Any = self._ranks
        if self._agreed and step % ranks.check_every:
            return None
        groups = [{key: x for key, x in group.items() if key != "params"} for group in self.param_groups]
        parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad or not self._agreed]
        return lambda: fingerprint([self._identity(), self.settings, groups, self._progress], parameters)

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
                stacklevel=checks.levels_up(),
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
        saved = super().state_dict()
        groups = [plain(group) for group in saved["param_groups"]]  # schedulers and users may have put anything there
        return {**saved, "param_groups": groups, "forward": self._forward()}

    def _forward(self) -> dict[str, Any]:
        progress = self._progress._asdict()
        rule = progress.pop("rule")
        memory = [as_tensor(x) for x in rule] if rule else None
        forward = {"settings": plain(self.settings), "rule": plain(memory), "progress": plain(progress)}
        forward["batched"] = {"checked": self._batched.checked, "refused": self._batched.refused}
        forward["on_use"] = {"checked": self._on_use.checked, "refused": self._on_use.refused}
        return {**self._identity(), **forward}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another optimizer of the same kind, over a model of the same shape, stopped.

        Raises:
            ValueError: it is the state of another optimizer, model or dtype, of parameters in another order, or holds
                what no optimizer could have saved; nothing has changed then.
        """
        start = self._start()
        own = states.Own(self._rule_name, self._forward(), self.param_groups, start, self._replicas)
        loaded = states.read(state_dict, own)
        before = self.__dict__.copy()
        try:
            self._load(state_dict, loaded, start)
        except BaseException:  # of a hook, or Ctrl-C
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _load(self, state_dict: dict[str, Any], loaded: states.Loaded, start: Any) -> None:
        self._undo(self._progress)  # whatever a step could not take back, while it is known
        known = {key: value for key, value in state_dict.items() if key != "forward"}
        super().load_state_dict({**known, "param_groups": loaded.groups})
        for group in self.param_groups:  # once more, since a hook may have exchanged them
            group.update(checks.rates(f"{self._rule_name}.load_state_dict", group, self._replicas))
        self.settings = loaded.settings
        rule = loaded.rule
        if rule is not None and isinstance(start[0], np.ndarray):
            rule = [as_array(x) for x in rule]
        self._progress = Progress(None if rule is None else type(start)(*rule), **loaded.progress)
        self._on_use = OnUse(self._rule_name, **loaded.on_use)
        self._weights, self._pending, self._agreed = self._make_weights(), None, False
        self._batched = self._make_batched(**loaded.batched)

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
        before = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            checks.group(self._rule_name, self.param_groups[-1], self._replicas)
            checks.apart(self._rule_name, self.param_groups)
            if self._ranks is not None:
                self._ranks.check(self._rule_name, self.param_groups[-1]["params"])
        except BaseException:
            del self.param_groups[before:]
            raise
        self._pending = None  # a probe knew nothing of the new group


# torch.set_grad_enabled is this and the making of a context manager that a step does not need.
_set_grad_enabled = torch._C._set_grad_enabled  # pyright: ignore[reportPrivateUsage]
_hooked_step = Optimizer.profile_hook_step(Loop._step)  # pyright: ignore[reportPrivateUsage]
keep_tracers_out(Loop.step, Loop.probe)
