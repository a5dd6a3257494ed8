"""Special situations: what goes wrong, what users change between steps, and modules that write
while they compute.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import dopaminergic
from dopaminergic import Journal, Ranks, check_estimator, replay

from .networks import squashed, total
from .runs import EVERY, RATES, STEPS, Row, Trial, run
from .situations import VECTOR, Situation
from .special_networks import (
    CastNetwork,
    EmbeddedNetwork,
    MixedNetwork,
    NormalizedNetwork,
    WideNetwork,
)

HALF = STEPS // 2


class PlannedError(Exception):
    """Raised by a closure on purpose."""


class Raising(Trial):
    """The second evaluation of step 5 raises, once; the step is tried again."""

    raised = False

    def evaluate(self) -> Any:
        found = super().evaluate()
        if self.step == 5 and self.calls_now == 2 and not self.raised:
            self.raised = True
            raise PlannedError
        return found

    def one_step(self) -> Any:
        try:
            return super().one_step()
        except PlannedError:
            self.counters.append([p.detach().clone() for p in self.parameters()])
            return super().one_step()


class BrokenOff(Trial):
    """After the last step another one begins, and raises: its writes in place are in the
    journal.
    """

    def evaluate(self) -> Any:
        found = super().evaluate()
        last = 3 if self.situation.rule == VECTOR else 2  # at weights that are displaced
        if self.step == STEPS and self.calls_now == last:
            raise PlannedError
        return found

    def train(self, upto: int = STEPS) -> None:
        super().train(upto)
        self.calls_now = 0
        with contextlib.suppress(PlannedError):
            self.one_step()


class NotFinite(Trial):
    """All losses of step 4 are NaN, of a fleet those of one model; and one of step 8 is."""

    def evaluate(self) -> Any:
        found = super().evaluate()
        if self.step != 4 and not (self.step == 8 and self.calls_now == 2):
            return found
        if not self.situation.fleet:
            return found * math.nan
        return found * torch.tensor([1.0, math.nan], dtype=torch.float64)


class Infinite(Trial):
    """One loss of step 4 is infinite, as of a simulation that has failed."""

    def evaluate(self) -> Any:
        found = super().evaluate()
        return found * math.inf if self.step == 4 and self.calls_now == 2 else found


class ConstantLoss(Trial):
    """For six steps no loss answers to a perturbation, so that sigma is doubled."""

    def evaluate(self) -> Any:
        found = super().evaluate()
        return found * 0.0 + 1.0 if self.step < HALF else found


class Resumed(Trial):
    """The journal is closed after step 7, and resumed from its snapshot by an optimizer of the
    initial weights.
    """

    def run(self) -> None:
        with Journal(self.optimizer, self.path, every=EVERY):
            self.train(7)
        for p, first in zip(self.parameters(), self.initial, strict=True):
            p.data.copy_(first)
        self.optimizer = self.make_optimizer()
        with Journal(self.optimizer, self.path, every=EVERY, resume=True) as journal:
            self.counters.append(journal.steps)
            self.step = journal.steps
            self.train()
        self.replay()
        halfway = [p.clone() for p in self.initial]
        replay(halfway, self.path, HALF)
        self.counters.append(halfway)


class Loaded(Trial):
    """After six steps a new optimizer goes on, from the state of the old one."""

    def before_step(self) -> None:
        if self.step == HALF:
            state = self.optimizer.state_dict()
            self.optimizer = self.make_optimizer()
            self.optimizer.load_state_dict(state)

    def run(self) -> None:
        self.train()  # a journal would not know the new optimizer


class Copied(Loaded):
    """After six steps a deep copy of network and optimizer goes on."""

    def before_step(self) -> None:
        if self.step == HALF:
            self.network, self.optimizer = copy.deepcopy((self.network, self.optimizer))
            self.closure = self.make_closure()


class Moved(Trial):
    """The weights lie elsewhere from step 6 on, and sigma and the rate are others."""

    def before_step(self) -> None:
        if self.step == HALF:
            for p in self.parameters():
                p.data = p.data.clone()
            for group in self.optimizer.param_groups:
                group["sigma"] *= 2
                group["lr"] /= 2


class Frozen(Trial):
    """One parameter is frozen from the start."""

    def make_network(self) -> Any:
        network = super().make_network()
        network.parameters["bias"].requires_grad_(False)
        return network


class Thawed(Frozen):
    """It is thawed after six steps."""

    def before_step(self) -> None:
        if self.step == HALF:
            self.network.parameters["bias"].requires_grad_()


class AddedGroup(Trial):
    """The last parameter is added after six steps, as a group of its own."""

    def groups(self) -> list[Any]:
        return [{"params": self.parameters()[:2]}]

    def before_step(self) -> None:
        if self.step == HALF:
            self.optimizer.add_param_group({"params": self.parameters()[2:]})


class Hooked(Trial):
    """Torch's hooks are called before and after each step."""

    def make_optimizer(self) -> Any:
        optimizer = super().make_optimizer()
        self.heard: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: self.heard.append("before"))
        optimizer.register_step_post_hook(lambda *_: self.heard.append("after"))
        return optimizer

    def count(self) -> None:
        super().count()
        self.counters.append(len(self.heard))


class Alias(Trial):
    """The closure reads weights through views that were made before."""

    def make_closure(self) -> Callable[[], Any]:
        network = self.make_network()
        network.parameters = {name: p.data for name, p in self.network.parameters.items()}
        self.reader = network
        return network.closure(self.situation.closure)

    def evaluate(self) -> Any:
        self.reader.step = self.step
        return super().evaluate()


class MixedDtypes(Trial):
    """Weights of several types in one model."""

    def make_network(self) -> Any:
        return MixedNetwork(getattr(torch, self.situation.dtype))


class BatchNorm(Trial):
    """Buffers of a module, which are hashed with the weights."""

    def make_network(self) -> Any:
        return NormalizedNetwork(getattr(torch, self.situation.dtype))

    def kept(self) -> list[Tensor]:
        return [*self.parameters(), *self.network.module.buffers()]


class MaxNorm(Trial):
    """A closure that writes to weights, so that a journal does not lead to them."""

    def make_network(self) -> Any:
        return EmbeddedNetwork(getattr(torch, self.situation.dtype))

    def replay(self) -> None:
        """Nothing to compare."""


class AboveThreshold(Trial):
    """More than 1 MiB of weights."""

    def make_network(self) -> Any:
        return WideNetwork(getattr(torch, self.situation.dtype))


class Autocast(Trial):
    """Sigma is chosen for the type in which the closure computes."""

    def make_network(self) -> Any:
        return CastNetwork(getattr(torch, self.situation.dtype))


# ---- other settings ------------------------------------------------------------------------------


class Rates(Trial):
    """A fleet whose models have rates of their own."""

    def options(self) -> dict[str, Any]:
        options = super().options()
        return {**options, "lr": options["lr"] * torch.tensor([1.0, 0.25], dtype=torch.float64)}


SETTINGS: dict[str, dict[str, Any]] = {
    "Dopamine": {"loss_floor": 0.01, "cap": 0.05, "beta": 0.5, "sigma": 0.02},
    "Dopamine2": {"tau": 0.5, "kappa": 0.25, "cap": 0.05, "beta": 0.5, "sigma": 0.02},
    VECTOR: {
        "directions": None,
        "damping": 0.25,
        "tau": 0.5,
        "kappa": 0.5,
        "beta": 0.5,
        "memory": 8192,
    },
}


class Settings(Trial):
    """Settings that are not the default."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), **SETTINGS[self.situation.rule]}


class OneRank(Trial):
    """A process group of this process alone, whose ranks are compared now and then."""

    def options(self) -> dict[str, Any]:
        self.ranks = Ranks(check_every=EVERY)
        return {**super().options(), "process_group": self.ranks}

    def count(self) -> None:
        super().count()
        self.counters.append(self.ranks.bytes_sent)


class Many(Trial):
    """More directions than one batch holds."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "directions": 40}


class DecayFromNoise(Trial):
    """So few weights and so many samples that the noise of the batch sets a decay."""

    def make_network(self) -> Any:
        network = super().make_network()
        network.parameters["first"].requires_grad_(False)
        return network

    def options(self) -> dict[str, Any]:
        return {**super().options(), "directions": 2}


# ---- no training ---------------------------------------------------------------------------------


class Estimator(Trial):
    """`check_estimator` after six steps: virtual steps, which leave no trace."""

    def before_step(self) -> None:
        if self.step == HALF:
            report = check_estimator(self.optimizer, self.evaluate, probes=100)
            self.counters.append(list(vars(report).values()))


class InJax(Trial):
    """The rules as functions of JAX, on the same network."""

    def run(self) -> None:
        import jax
        import jax.numpy as jnp

        from dopaminergic.jax import Functional

        rule = getattr(dopaminergic, self.situation.rule)
        functional = Functional(
            rule, lr=RATES[self.situation.rule], directions=3, weight_decay=0.125
        )
        params = [jnp.asarray(p.detach().numpy()) for p in self.parameters()]
        state = functional.init(params, 5)
        x = jnp.asarray(self.network.inputs().float().numpy())
        y = jnp.asarray(self.network.targets().float().numpy())
        step = jax.jit(
            lambda params, state: functional.step(lambda w: jax_loss(w, x, y), params, state)
        )
        for _ in range(STEPS):
            params, state, loss = step(params, state)
            self.losses.append(float(loss))
            self.counters.append([np.asarray(leaf) for leaf in jax.tree.leaves(state)])
        for p, w in zip(self.parameters(), params, strict=True):
            p.data.copy_(torch.from_numpy(np.array(w)))


def jax_loss(weights: Any, x: Any, y: Any) -> Any:
    """The mean squared error of `Network`, in JAX."""
    first, bias, last = weights
    hidden = squashed(total(first * x[:, None, :]) + bias)
    error = total(hidden * last) - y
    return total(error * error) / len(y)


KINDS: dict[str, Callable[..., Trial]] = {
    "": Trial,
    "raising": Raising,
    "broken-off": BrokenOff,
    "not-finite": NotFinite,
    "infinite": Infinite,
    "constant-loss": ConstantLoss,
    "resumed": Resumed,
    "loaded": Loaded,
    "copied": Copied,
    "moved": Moved,
    "frozen": Frozen,
    "thawed": Thawed,
    "added-group": AddedGroup,
    "hooked": Hooked,
    "alias": Alias,
    "mixed-dtypes": MixedDtypes,
    "batch-norm": BatchNorm,
    "max-norm": MaxNorm,
    "above-1-MiB": AboveThreshold,
    "autocast": Autocast,
    "rates": Rates,
    "settings": Settings,
    "one-rank": OneRank,
    "many": Many,
    "decay-from-noise": DecayFromNoise,
    "estimator": Estimator,
    "jax": InJax,
}


def row_of(situation: Situation) -> Row:
    """The row of any situation."""
    group = _group_of_one() if situation.special == "one-rank" else contextlib.nullcontext()
    with group:
        return run(situation, KINDS[situation.special])


@contextlib.contextmanager
def _group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        dist.destroy_process_group()
