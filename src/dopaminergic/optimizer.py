"""The base of all optimizers: a step is done wholly, or everything is as before it.

    begin -> evaluate the closure at the points of the step -> a change
          -> restore what was perturbed and apply the change, in one pass

What is perturbed, and how a change follows from outcomes, is the business of subclasses:
`ScalarRule` learns from losses, `VectorDopamine` from all outcomes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,  # pyright: ignore[reportPrivateUsage]
    _global_optimizer_pre_hooks,  # pyright: ignore[reportPrivateUsage]
)

from dopaminergic import checks, crowd, silence
from dopaminergic.distributed import Check
from dopaminergic.fingerprint import fingerprint
from dopaminergic.outcomes import Closure
from dopaminergic.progress import Change, Progress
from dopaminergic.rule import Losses
from dopaminergic.scalars import Scalar, as_tensor
from dopaminergic.stateful import Stateful
from dopaminergic.tracing import keep_tracers_out
from dopaminergic.weights.interruption import room_on_the_stack, uninterrupted


class ForwardOptimizer(Stateful):
    """Base of all optimizers that learn from forward passes alone; use a subclass.

    Args:
        params: parameters, named parameters, or groups with their own `lr`, `sigma` and
            `weight_decay`.
        lr: learning rate, >= 0, in the rule's own unit; for a fleet also a tensor of shape `(R,)`.
        sigma: perturbation scale, > 0: how far each weight moves in a perturbed pass; None: what
            `default_sigmas` says, larger if any of the weights have 16 bits, whose rounding would
            drown the regrets.
        directions: number K of random directions whose estimates are averaged, >= 1.
        noise: `"rademacher"` (each entry of a direction +1 or -1) or `"gaussian"`.
        seed: in [0, 2^63). Equal seeds give equal runs. A sequence of R seeds makes a fleet: every
            parameter then has a leading dimension R, and the closure returns R losses (or an
            outcome with that leading dimension).
        weight_decay: decoupled, >= 0: weights shrink by `weight_decay` times the learning rate of
            the gradient descent that the update amounts to (Loshchilov and Hutter 2019).
        batched: evaluate up to 32 directions as one batch where the closure allows it, which is
            faster for small models and takes the memory of so many copies of the weights and
            activations.
        process_group: of `torch.distributed`: every rank evaluates its own shard of the data, and
            losses are averaged. Or a `Ranks`, which says how ranks share data and directions. None:
            this process is alone; `"alone"` says so to a process that belongs to a group, which
            None warns of.
        settings: of the rule; `state_dict` holds them.

    A subclass says how it starts (`start`), how it evaluates (`_evaluate`), and what a step writes
    and takes back.
    """

    _thread: int | None = None  # which thread is within a step

    # ---- the subclass ----------------------------------------------------------------------------

    def _get_ready(self) -> None:
        """What comes before a step, and must not be taken back with it."""

    def _begin(self, step: int) -> None:
        """Look at what is perturbed as it is now."""
        raise self._is_abstract()

    def _evaluate(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        """Call the closure at all points of a step, and find the change that follows.

        Weights may be left perturbed.
        """
        raise self._is_abstract()

    def _write(self, change: Change, commit: Callable[[], None]) -> None:
        """Take back what is perturbed and apply a change; call `commit` once all is written."""
        raise self._is_abstract()

    def _leave(self) -> None:
        """End an evaluation that was interrupted; harmless at any time."""

    def _take_back(self, step: int) -> None:
        """Bring everything back to where it was when `step` began; harmless when it is there."""
        raise self._is_abstract()

    def _watched(self, closure: Closure) -> Closure:
        """The closure of one step, looked after at each of its calls."""
        raise self._is_abstract()

    @property
    def next_passes(self) -> int:
        """The most forward passes that the next step may take."""
        raise self._is_abstract()

    def _extra_passes(self) -> int:
        """Evaluations of this step that `_evaluate` does not count."""
        return 0

    def _may_look_farther(self) -> bool:
        """Whether sigma may be doubled where no loss answers."""
        return False

    # ---- the loop --------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluate and update; or, without a closure, apply what the last `probe` found.

        Args:
            closure: returns a loss: a float, a 0-d tensor, a 1-d tensor of per-sample losses, or an
                `Outcome`. It is called without gradients, with the same random numbers each time,
                and may do anything else.

        Returns:
            The loss at the weights before the update: a float, or float64 of shape `(R,)` for a
            fleet; None without a closure.

        Raises:
            TypeError: the closure returned something that is not a loss.
            RuntimeError: there was neither a closure nor a `probe`.
        """
        # torch's own wrapper costs as much as a small network, so it is only used when somebody
        # listens.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]
        ):
            return _hooked_step(self, closure)
        return self.step_unhooked(closure)

    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]  (tells torch not to wrap it again)

    def step_unhooked(self, closure: Closure | None) -> Any:
        """`step`, of which neither hooks nor schedulers hear."""
        if self._waiting:
            closure = self._joined(closure)
        work = self._apply_pending if closure is None else self._probe_and_update
        return self._guarded(work, closure)

    def probe(self, closure: Closure, *, more: bool = False) -> Any:
        """First half of a step, for loops that call `step()` themselves.

        It evaluates the closure, and leaves the weights as they were.

        Args:
            closure: as for `step`.
            more: whether more micro-batches of the same step are to come. The closure then waits,
                and is evaluated together with the next ones, by a `probe` without `more` or by
                `step`. The loss is the mean over the samples of all. `zero_grad` forgets what
                waits.

        Returns:
            The loss, as `step` does; None with `more`. A `probe` that no `step()` follows is
            forgotten by the next one and by `state_dict`.

        Raises:
            RuntimeError: a variable of a closure that waits was bound anew.
        """
        if more:
            self._wait(closure)
            return None
        return self._guarded(self._probe_only, self._joined(closure) if self._waiting else closure)

    def _guarded(self, work: Callable[[Any, Progress], Any], closure: Closure | None) -> Any:
        if self._thread is not None:
            self._refuse_within_a_step("step")
        self._get_ready()
        before = self._progress
        gradients = torch.is_grad_enabled()
        try:
            self._thread = crowd.steps[id(self)] = threading.get_ident()
            _set_grad_enabled(False)
            try:
                self._check_groups()
                return work(closure, before)
            except BaseException:
                self._undo(before)
                raise
        except BaseException as error:
            # Once more, since Ctrl-C may come while the first exception is dealt with; harmless if
            # all is undone.
            with room_on_the_stack():
                self._undo(before)
            if self._ranks is not None and self._progress is before:
                self._ranks.stop(error)
            checks.explain(self._rule_name, error, closure)
            raise
        finally:
            if self._ranks is not None:
                self._ranks.settle()
            _set_grad_enabled(gradients)
            crowd.steps.pop(id(self), None)
            self._thread = None

    def _refuse_within_a_step(self, name: str) -> None:
        """Raise if a step of this optimizer is in progress, in this thread or in another."""
        thread = self._thread
        if thread is None:
            return
        frame = sys._current_frames().get(thread)
        while frame is not None:
            if (
                frame.f_code is ForwardOptimizer._guarded.__code__
                and frame.f_locals.get("self") is self
            ):
                where = "its own closure" if thread == threading.get_ident() else "another thread"
                raise RuntimeError(
                    f"{self._rule_name}: {name} was called from {where} while a step is in "
                    "progress, when weights are perturbed; call it between steps, or use an "
                    "optimizer of its own for an inner loop"
                )
            frame = frame.f_back
        self._thread = None  # an interruption came before the step could say that it had ended

    def _check_groups(self) -> None:
        """Raise if a schedule has made a setting of a group impossible, NaN for example."""
        for group in self.param_groups:
            lr = group["lr"]
            plain_number = type(lr) is float or isinstance(lr, float | int)
            if not (plain_number and checks.usable(lr, group["sigma"], group["weight_decay"])):
                group.update(checks.rates(self._rule_name, group, self.replicas))

    def _undo(self, before: Progress) -> None:
        self._leave()
        if self._progress is before:
            self._take_back(before.step)
            self._buffers.undo()

    def _probe_and_update(self, closure: Closure, before: Progress) -> Any:
        self._pending = None
        losses, change = self._evaluated(closure, before)
        self._apply(change)
        return self._mean(losses)

    def _probe_only(self, closure: Closure, before: Progress) -> Any:
        self._forget_probe()
        losses, change = self._evaluated(closure, before)
        self._take_back(before.step)
        self._buffers.end()
        self._pending, self._waiting = change, ()
        return self._mean(losses)

    def _evaluated(self, closure: Closure, before: Progress) -> tuple[Losses, Change]:
        if self._ranks is not None:
            self._ranks.begin(self._rule_name, before.step)
        others = crowd.look(threading.get_ident())
        losses, change = self._evaluate(self._watched(closure), before)
        crowd.tell(self._rule_name, others)
        change = self._heard(losses, change)
        # Ranks count alike, though not each of them may have evaluated anything.
        extra = 0 if self._ranks is not None else self._extra_passes()
        if not extra:
            return losses, change
        passes = change.after.forward_passes + extra
        return losses, change._replace(after=change.after._replace(forward_passes=passes))

    def _heard(self, losses: Losses, change: Change) -> Change:
        """Note whether any loss answered to a perturbation, and say so where none has for long."""
        self._look_at_floor(losses.mean())
        silent = self._is_silent(losses, change)
        after = change.after
        if not silent:
            if after.answered and after.silent == 0:
                return change
            return change._replace(
                after=after._replace(answered=True, silent=max(0, after.silent - 1))
            )
        after = after._replace(silent=after.silent + 1)
        tired = after.silent >= silence.PATIENCE
        # One silent step may be chance without the loss at the weights: both sides of a direction
        # can be alike.
        early = not after.answered and (after.silent > 1 or losses.base is not None)
        farther = (tired or early) and self._may_look_farther()
        if tired and not (farther and after.answered):
            self._tell("silence", silence.warning(self._rule_name, self.param_groups[0]["sigma"]))
        if farther:
            after = after._replace(
                doublings=after.doublings + 1, silent=0 if after.answered else after.silent
            )
        return change._replace(after=after)

    def _is_silent(self, losses: Losses, change: Change) -> bool:
        """Whether all losses of a step are the same bits, perturbed or not."""
        found = [*losses.plus, *losses.minus]
        if losses.base is not None:
            found.append(losses.base)
        return len(found) > 1 and all(bool(np.all(x == found[0])) for x in found)

    def _look_at_floor(self, loss: Scalar) -> None:
        floor = self.settings.get("loss_floor")
        if floor is not None and np.any(np.less(loss, floor) & np.isfinite(loss)):
            self._tell(
                "floor",
                f"{self._rule_name}: a loss of {float(np.min(loss)):.3g} is below "
                f"loss_floor={floor:g}, where this rule stands still. Pass the least loss that can "
                "be reached as loss_floor, or use Dopamine2, which needs none (for example for "
                "rewards)",
            )

    def _mean(self, losses: Losses) -> Any:
        if not self._fleet:
            return losses.mean()
        with np.errstate(all="ignore"):  # a replica may have lost its way
            return as_tensor(losses.mean())

    def _apply_pending(self, _: None, before: Progress) -> None:
        self._begin(before.step)
        change = self._pending
        if change is None:
            raise RuntimeError(
                f"{self._rule_name}.step() without a closure needs a probe first: pass "
                "opt.step(closure), or call opt.probe(closure) before it. accelerate and the "
                "Trainer of transformers call step() alone: take ForwardTrainer of "
                "dopaminergic.integrations.transformers, or wrapped.optimizer.probe(closure)"
            )
        self._apply(change)

    def _apply(self, change: Change) -> None:
        def commit() -> None:
            self._pending = None  # not before: a step that is interrupted can be tried again
            self._waiting = ()
            self._progress = change.after
            self._buffers.end()
            for listener in self._listeners:
                listener(change)

        if not self._listeners:
            self._write(change, commit)
            return
        with uninterrupted():  # no step is done that nobody is told of
            self._write(change, commit)

    def _check(self, step: int) -> Check | None:
        """Makes the numbers that ranks compare in this step, if they do.

        In the first step they compare frozen parameters too.
        """
        ranks: Any = self._ranks
        if self._agreed and step % ranks.check_every:
            return None
        groups = [
            {key: x for key, x in group.items() if key != "params"} for group in self.param_groups
        ]
        parameters = [
            p for g in self.param_groups for p in g["params"] if p.requires_grad or not self._agreed
        ]
        return lambda: fingerprint(
            [self.identity(), self.settings, groups, self._progress], parameters
        )

    def _skip(self, before: Progress, passes: int) -> Change:
        self._warn()
        return Change([], None, before.after_skipping(passes))

    def _warn(self) -> None:
        self._tell(
            "skipped",
            f"{self._rule_name}: the closure returned a loss that is not finite, or one so large "
            "that the update is not; the step was skipped, the weights are as before. More are "
            "counted in `skipped_steps`.",
        )


# torch.set_grad_enabled is this and the making of a context manager that a step does not need.
_set_grad_enabled = torch._C._set_grad_enabled  # pyright: ignore[reportPrivateUsage]
_hooked_step = Optimizer.profile_hook_step(ForwardOptimizer.step_unhooked)  # pyright: ignore[reportPrivateUsage]
keep_tracers_out(ForwardOptimizer.step, ForwardOptimizer.probe)
