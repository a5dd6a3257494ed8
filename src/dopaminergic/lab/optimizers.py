"""The optimizers that the lab compares, by name.

Each has the same number of learning rates to tune over. `VectorDopamine` alone has one learning
rate, 1, as it has nothing to tune.

Forward-only ones run as they are: a fleet is an optimizer with many seeds. SGD and Adam are torch's
own, driven by backpropagation, with one addition: a learning rate for each replica.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.baselines import SPSA, EvolutionStrategy, WeightPerturbation
from dopaminergic.dopamine import Dopamine, Dopamine2
from dopaminergic.lab.form import difference
from dopaminergic.node import NodeDopamine
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import read
from dopaminergic.plain import brief
from dopaminergic.subspace import MOST_DIRECTIONS
from dopaminergic.vector import VectorDopamine


class Backpropagation:
    """A torch optimizer on exact gradients, with the interface of a forward-only fleet.

    A step counts as three forward passes: one forward, and a backward that costs about two.

    Args:
        parameters: stacked, the replica first.
        kind: builds a torch optimizer whose update is proportional to its learning rate.
        lr: float64 of shape `(R,)`.
    """

    next_passes = 3

    def __init__(
        self, parameters: Any, kind: Callable[..., torch.optim.Optimizer], lr: Tensor
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        # The torch optimizer moves proxies that start each step at zero. They end at its update for
        # a
        # learning rate of 1, and each replica takes that update times its own.
        self.proxies = [torch.zeros_like(p) for p in self.parameters]
        self.inner = kind(self.proxies, lr=1.0)
        self.steps = 0
        self._kind = kind

    @property
    def forward_passes(self) -> int:
        """Cost so far in forward passes."""
        return self.steps * self.next_passes

    def step(self, closure: Callable[[], Any]) -> Tensor:
        """Backpropagate and update.

        Returns the losses before the update, float64 of shape `(R,)`.
        """
        losses = read(closure(), type(self.inner).__name__, len(self.lr)).means()
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        with torch.no_grad():
            for proxy, gradient in zip(self.proxies, gradients, strict=True):
                proxy.zero_()
                proxy.grad = gradient
            self.inner.step()
            for parameter, proxy in zip(self.parameters, self.proxies, strict=True):
                lr = self.lr.to(parameter.dtype).reshape(-1, *[1] * (parameter.ndim - 1))
                parameter.add_(lr * proxy)
        self.steps += 1
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state that a run needs to continue, beside the weights."""
        return {"steps": self.steps, "lr": self.lr, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: no optimizer like this one could have saved it; nothing has changed then.
        """
        name = type(self.inner).__name__
        steps = state.get("steps")
        if type(steps) is not int or not 0 <= steps < 1 << 62:
            raise ValueError(f"{name}: steps must be an int in [0, 2^62), got {brief(steps)}")
        wrong = difference(
            state, {"steps": steps, "lr": self.lr, "inner": self._state_after(steps)}, "state"
        )
        rates = [] if wrong else state["lr"].tolist()
        if wrong or not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(
                f"{name}: {wrong or f'lr must be finite and >= 0, got {brief(rates)}'}"
            )
        self.inner.load_state_dict(state["inner"])
        self.steps = steps
        self.lr = state["lr"]

    def _state_after(self, steps: int) -> dict[str, Any]:
        """A state of torch's optimizer, built like the one after so many steps."""
        proxies = [torch.zeros_like(proxy) for proxy in self.proxies]
        inner = self._kind(proxies, lr=1.0)
        if steps:
            for proxy in proxies:
                proxy.grad = torch.zeros_like(proxy)
            inner.step()
        return inner.state_dict()


class Method(NamedTuple):
    """An optimizer as the lab knows it.

    Attributes:
        label: its name for people, such as "Dopamine".
        make: builds it from parameters, a tensor of learning rates and a list of seeds, one for
            each replica.
        grid: learning rates to tune over, seven, half a decade apart; one where there is nothing to
            tune.
        default: its own default learning rate where it is meant to be used untuned, else None.
        passes_per_step: the cost of a step, the most where that varies.
        fleet_weights: how many weights a fleet should have in all, beyond which more replicas make
            it slower.
        as_written: whether networks must compute by their equations, see `Stackable`.
    """

    label: str
    make: Callable[[Any, Tensor, list[int]], ForwardOptimizer | Backpropagation]
    grid: list[float]
    default: float | None
    passes_per_step: int
    fleet_weights: int = 1 << 40
    as_written: bool = False

    @property
    def tunable(self) -> bool:
        """Whether there is anything to tune."""
        return len(self.grid) > 1


def half_decades(first: float) -> list[float]:
    """Seven learning rates from `first` over three decades.

    >>> half_decades(0.01)
    [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16, 10.0]
    """
    return [float(f"{first * 10 ** (i / 2):.3g}") for i in range(7)]


def _forward(
    kind: type[ForwardOptimizer], **settings: Any
) -> Callable[[Any, Tensor, list[int]], ForwardOptimizer]:
    return lambda parameters, lr, seeds: kind(parameters, lr=lr, seed=seeds, **settings)


def _backward(
    kind: Callable[..., torch.optim.Optimizer],
) -> Callable[[Any, Tensor, list[int]], Backpropagation]:
    return lambda parameters, lr, seeds: Backpropagation(parameters, kind, lr)


# A step of VectorDopamine is a batch of its own. Measured, in microseconds for a replica's pass:
# 243 for one replica, 29 for 20 and 4 for 500 of xor-2-2-1 (9 weights), but 137 for 5 and 175 for
# 20 of lorenz (371), 137 for one and 252 for 5 of digits (4,810).
FLEET_WEIGHTS = 5000
# A pass of NodeDopamine took 1.6 for one replica, .09 for 20 and .02 for 150 of xor-2-8-1 (33), in
# milliseconds, but 8 for one, 6 for 3 and 8 for 13 of lorenz. Several processes serve more then.
NODE_FLEET_WEIGHTS = 1200

METHODS: dict[str, Method] = {
    "dopamine": Method("Dopamine", _forward(Dopamine), half_decades(0.5), 3.5, 2),
    "dopamine2": Method("Dopamine2", _forward(Dopamine2), half_decades(0.15), 1.5, 2),
    "vector": Method(
        "VectorDopamine", _forward(VectorDopamine), [1.0], 1.0, MOST_DIRECTIONS + 2, FLEET_WEIGHTS
    ),
    "node": Method(
        "NodeDopamine",
        _forward(NodeDopamine),
        [1.0],
        1.0,
        4,
        NODE_FLEET_WEIGHTS,
        as_written=True,
    ),
    "wp": Method("WP", _forward(WeightPerturbation), half_decades(0.003), None, 2),
    "spsa": Method("SPSA", _forward(SPSA), half_decades(0.003), None, 2),
    "es": Method("ES", _forward(EvolutionStrategy), half_decades(0.0001), None, 16),
    "sgd": Method("SGD", _backward(torch.optim.SGD), half_decades(0.01), None, 3),
    "adam": Method("Adam", _backward(torch.optim.Adam), half_decades(0.0003), None, 3),
}


# Deep networks, and long sequences, bear smaller steps only: on digits-conv WP diverges from 0.0015
# on, where its own grid has not begun, on markov-transformer from 0.03 on. (On lorenz-vpt the
# grid's first rate, 0.003, was the best.)
DELICATE = ("digits-conv", "markov-transformer", "rossler-vpt", "mackey-glass-vpt")
GRIDS = {
    (task, optimizer): half_decades(0.0001) for task in DELICATE for optimizer in ("wp", "spsa")
}


def grid_of(optimizer: str, task: str) -> list[float]:
    """The learning rates that an optimizer is tuned over on a task."""
    return GRIDS.get((task, optimizer), find_method(optimizer).grid)


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"optimizer: no optimizer {name!r}; {hint}")
    return METHODS[name]
