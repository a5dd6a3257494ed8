"""The part of an optimizer that is there between steps: settings, counters, groups and state."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,  # pyright: ignore[reportPrivateUsage]
)

from dopaminergic import checks, micro_batches, states
from dopaminergic.buffers import Buffers
from dopaminergic.distributed import Ranks, ranks_of
from dopaminergic.outcomes import Closure
from dopaminergic.plain import plain
from dopaminergic.progress import Change, Progress
from dopaminergic.scalars import Scalar, as_array, as_tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Listener = Callable[[Change], None]


class Stateful(Optimizer):
    """Base of `ForwardOptimizer`, which adds the step; for the arguments see there."""

    takes_micro_batches = True

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float | Tensor,
        sigma: float | None = None,
        directions: int = 1,
        noise: str = "rademacher",
        seed: int | Sequence[int] = 0,
        weight_decay: float = 0.0,
        batched: bool = False,
        process_group: ProcessGroup | Ranks | str | None = None,
        **settings: Any,
    ) -> None:
        self._rule_name = rule = type(self).__name__
        given = {
            "directions": directions,
            "noise": noise,
            "seed": seed,
            "batched": batched,
            **settings,
        }
        self.settings = checks.settings(rule, given)
        self._fleet = isinstance(self.settings["seed"], list)
        self._ranks: Ranks | None = ranks_of(process_group)
        self._agreed = False  # whether the ranks have been compared since the start
        params = checks.parameters(rule, params)
        chosen = 0.0
        if sigma is None:  # one for all groups: a rule goes farther in those with a larger one
            sigma = chosen = self._default_sigma(params)
        given = {"lr": lr, "sigma": sigma, "weight_decay": weight_decay}
        super().__init__(params, checks.rates(rule, given, self.replicas))
        checks.some_trainable(rule, self.param_groups)
        skipped = (
            torch.zeros(len(self.settings["seed"]), dtype=torch.int64, device="cpu")
            if self._fleet
            else 0
        )
        self._progress = Progress(self.start(), skipped_steps=skipped, chosen_sigma=chosen)
        self._pending: Change | None = None
        self._waiting: tuple[micro_batches.Waiting, ...] = ()  # micro-batches of the next step
        self._listeners: list[Listener] = []
        self._floor = self.settings.get("loss_floor", -math.inf)
        self._told_of: set[str] = set()  # warnings that are given once
        self._buffers = Buffers()
        self._casts: set[torch.dtype] = set()  # 16-bit dtypes in which the closure computes
        self._prepare(None)

    # ---- the subclass ----------------------------------------------------------------------------

    def start(self) -> Any:
        """The rule's state before the first step: a NamedTuple of numbers, or None.

        Its numbers are made from `zero()`, so that they serve a fleet too.
        """
        return None

    def _is_abstract(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} is a base class; use a subclass such as Dopamine"
        )

    def _default_sigma(self, params: Any, casts: Collection[torch.dtype] = ()) -> float:
        """The perturbation scale for these parameters.

        Args:
            params: parameters or groups.
            casts: 16-bit dtypes in which the closure computes.
        """
        raise self._is_abstract()

    def _prepare(self, loaded: states.Loaded | None) -> None:
        """Make all that depends on settings and parameters.

        Called when the optimizer is made, and when a state has been loaded.
        """
        raise self._is_abstract()

    def _found_out(self) -> dict[str, Any]:
        """What a state keeps of the ways in which a closure can be evaluated."""
        return {}

    def _refuse_within_a_step(self, name: str) -> None:
        """Raise if a step of this optimizer is in progress."""
        raise self._is_abstract()

    def _undo(self, before: Progress) -> None:
        """Bring everything back to where it was before a step; harmless when it is there."""
        raise self._is_abstract()

    # ---- a fleet or one model --------------------------------------------------------------------

    @property
    def replicas(self) -> int | None:
        """R of a fleet; None for one model."""
        return len(self.settings["seed"]) if self._fleet else None

    def zero(self) -> Scalar:
        """0, in the form of this optimizer's losses: a float, or float64 zeros of shape `(R,)`."""
        return np.zeros(len(self.settings["seed"])) if self._fleet else 0.0

    # ---- what users read -------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """All counters and the rule's state, after the last step that was completed."""
        return self._progress

    @property
    def forward_passes(self) -> int:
        """Evaluations of the closure in steps that were completed."""
        return self._progress.forward_passes

    @property
    def skipped_steps(self) -> Any:
        """Steps without an update because an outcome was not finite.

        For a fleet it is an int64 tensor of shape `(R,)`.
        """
        return self._progress.skipped_steps

    @property
    def last_rpe(self) -> Any:
        """Reward prediction error of the last step; for a fleet a tensor of shape `(R,)`."""
        return self._progress.last_rpe

    @property
    def last_learning_rate(self) -> Any:
        """Learning rate of gradient descent that the last update amounts to, in the first group."""
        return self._progress.last_learning_rate

    def _tell(self, subject: str, text: str) -> None:
        """Warn once of each subject."""
        if subject not in self._told_of:
            self._told_of.add(subject)
            warnings.warn(text, RuntimeWarning, stacklevel=checks.levels_up())

    # ---- steps that are taken back ---------------------------------------------------------------

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Tell no listener of the steps made within, and forget them in the end.

        Counters, the rule's state and the last probe are as before then. The caller takes back the
        weights.
        """
        names = ("_progress", "_pending", "_waiting", "_listeners")
        before = {name: self.__dict__[name] for name in names}
        told = "skipped" in self._told_of
        try:
            self._waiting = ()
            self._listeners = []
            self._told_of.add("skipped")  # the caller looks for steps that were skipped
            yield
        finally:
            self.__dict__.update(before)
            if not told:
                self._told_of.discard("skipped")

    def continue_from(self, progress: Progress) -> None:
        """Let the next step start with these counters and this state of the rule."""
        self._progress = progress

    # ---- what users do between steps ------------------------------------------------------------

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Be told of the change of each step that is done, as a journal is.

        Args:
            listener: called after the weights have changed; an exception in it reaches the caller
                of `step`.

        Returns:
            A function that ends it.
        """
        self._listeners.append(listener)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return end

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, of which there are none, and micro-batches that wait for a step."""
        self._waiting = ()
        super().zero_grad(set_to_none)

    def _wait(self, closure: Closure) -> None:
        if not self.takes_micro_batches:
            raise ValueError(
                f"{self._rule_name}: probe(more=True) is not supported, since it must see all "
                "samples of a step at once; evaluate one batch a step, without accumulation, or "
                "take Dopamine2 or VectorDopamine"
            )
        self._refuse_within_a_step("probe")
        self._forget_probe()
        self._waiting = (*self._waiting, micro_batches.wait(closure, self._rule_name))

    def _joined(self, closure: Closure | None) -> Closure:
        """One closure for all micro-batches that wait, and for this one."""
        if closure is not None and not callable(closure):
            return closure  # the step says so
        last = [] if closure is None else [closure]
        try:
            return micro_batches.join(self._waiting, last, self._rule_name, self.replicas)
        except RuntimeError:
            self._waiting = ()
            raise

    def _forget_probe(self) -> None:
        if self._pending is not None:
            self._tell(
                "probes",
                f"{self._rule_name}: a second probe came before step(), so that what the first one "
                "found is lost, as where a framework accumulates gradients; call "
                "opt.probe(closure, more=True) for all micro-batches but the last of a step",
            )
        self._pending = None

    # ---- saving and loading ----------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """The kind of optimizer, and the shapes and dtypes of its parameters.

        A state or a journal of another kind, or of other parameters, does not fit.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        return {
            "optimizer": self._rule_name,
            "shapes": [list(p.shape) for p in parameters],
            "dtypes": [str(p.dtype) for p in parameters],
        }

    def state_dict(self) -> dict[str, Any]:
        """All but the weights that a run needs to continue bit for bit.

        `torch.load(weights_only=True)` reads it.
        """
        saved = super().state_dict()
        # Schedulers and users may have put anything there.
        groups = [plain(group) for group in saved["param_groups"]]
        return {**saved, "param_groups": groups, "forward": self._forward()}

    def _forward(self) -> dict[str, Any]:
        progress = self._progress._asdict()
        rule = progress.pop("rule")
        memory = [as_tensor(x) for x in rule] if rule else None
        forward = {
            "settings": plain(self.settings),
            "rule": plain(memory),
            "progress": plain(progress),
        }
        return {**self.identity(), **forward, **self._found_out()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another optimizer of the same kind and shapes stopped, bit for bit.

        Args:
            state_dict: the result of `state_dict()`, for example read by
                `torch.load(weights_only=True)`. Load the weights too.

        Raises:
            ValueError: it is the state of another optimizer, model or dtype, of parameters in
                another order, or holds what no optimizer could have saved; nothing has changed
                then.
        """
        self._refuse_within_a_step("load_state_dict")
        start = self.start()
        loaded = self.check_state_dict(state_dict)
        before = self.__dict__.copy()
        try:
            self._load(state_dict, loaded, start)
        except BaseException:  # of a hook, or Ctrl-C
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def check_state_dict(self, state_dict: Any) -> states.Loaded:
        """Raise where `load_state_dict` would, and change nothing.

        Returns:
            All that `load_state_dict` would take.
        """
        own = states.Own(
            self._rule_name, self._forward(), self.param_groups, self.start(), self.replicas
        )
        return states.read(state_dict, own)

    def _load(self, state_dict: dict[str, Any], loaded: states.Loaded, start: Any) -> None:
        self._undo(self._progress)  # whatever a step could not take back, while it is known
        known = {key: value for key, value in state_dict.items() if key != "forward"}
        super().load_state_dict({**known, "param_groups": loaded.groups})
        for group in self.param_groups:  # once more, since a hook may have exchanged them
            group.update(checks.rates(f"{self._rule_name}.load_state_dict", group, self.replicas))
        self.settings = loaded.settings
        rule = loaded.rule
        if rule is not None and isinstance(start[0], np.ndarray):
            rule = [as_array(x) for x in rule]
        self._progress = Progress(None if rule is None else type(start)(*rule), **loaded.progress)
        self._floor = self.settings.get("loss_floor", -math.inf)
        self._pending = None
        self._waiting = ()
        self._agreed = False
        self._prepare(loaded)

    def __getstate__(self) -> dict[str, Any]:
        # Buffers and addresses belong to this process and these tensors, the `step` that a
        # scheduler puts here and its listeners; a copy makes its own.
        own = ("_weights", "_pending", "_waiting", "_listeners", "_thread", "step")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "settings" in self.__dict__:
            self._pending = None
            self._waiting = ()
            # `load_state_dict` comes here too, and has some.
            self.__dict__.setdefault("_listeners", [])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own `lr`, `sigma` and `weight_decay` if given."""
        self._refuse_within_a_step("add_param_group")
        before = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            checks.group(self._rule_name, self.param_groups[-1], self.replicas)
            checks.apart(self._rule_name, self.param_groups)
            if self._ranks is not None:
                self._ranks.check(self._rule_name, self.param_groups[-1]["params"])
        except BaseException:
            del self.param_groups[before:]
            raise
        self._pending = None  # a probe knew nothing of the new group
