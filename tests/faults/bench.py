"""The bench: models to break, where a step can be broken, and what must be true afterwards.

A trial makes a model and an optimizer, takes one step, breaks the second, and goes on. Nothing is
replaced: the phases of a step are called as they are, and an exception or a signal comes just
before or just after one of them.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dopaminergic import ForwardOptimizer
from dopaminergic.noise import Combination
from dopaminergic.weight_optimizer import WeightOptimizer
from dopaminergic.weights import Weights
from optimizers import ROWS, VECTOR, Row, copies, perceptron, randn, same

ALL_ROWS = {row.name: row for row in [*ROWS, VECTOR]}


class Model(NamedTuple):
    """What is trained.

    Attributes:
        parameters: all of them.
        groups: the optimizer's first argument.
        loss: the closure.
        settings: of the optimizer.
        exact: whether an interrupted step is undone to the bit, else to a unit in the last place of
            |w| + sigma.
    """

    parameters: list[Tensor]
    groups: Any
    loss: Callable[[], Tensor]
    settings: dict[str, Any]
    exact: bool = True


def network(dtype: torch.dtype, **settings: Any) -> Model:
    model, x = perceptron(3, 4, 1, dtype=dtype), randn(8, 3, seed=5, dtype=dtype)
    groups = [
        {"params": [*model[0].parameters()]},
        {"params": [*model[2].parameters()], "sigma": 0.02},
    ]
    # Sums in double precision and without dimensions, so that a batch of copies adds up in the same
    # order.
    return Model([*model.parameters()], groups, lambda: (model(x).double() ** 2).sum(), settings)


def fleet() -> Model:
    w = nn.Parameter(randn(3, 6, dtype=torch.float32))
    return Model([w], [w], lambda: (w.double() ** 2).mean(1), {"seed": [0, 1, 2]})


def large(dtype: torch.dtype) -> Model:
    """Two blocks that are perturbed in place."""
    a, b = nn.Parameter(randn(270_000, dtype=dtype)), nn.Parameter(randn(300, 8, dtype=dtype))
    groups = [{"params": [a]}, {"params": [b], "sigma": 0.001}]

    def loss() -> Tensor:
        return a[:999].double().square().mean() + b.double().square().mean()

    return Model([a, b], groups, loss, {}, exact=False)


MODELS: dict[str, Callable[[], Model]] = {
    "float32": lambda: network(torch.float32),
    "float64": lambda: network(torch.float64),
    "bfloat16": lambda: network(torch.bfloat16),
    "batched": lambda: network(torch.float64, batched=True, directions=5),
    "fleet": fleet,
    "large float32": lambda: large(torch.float32),
    "large float64": lambda: large(torch.float64),
}


def optimizer_of(row: Row, model: Model) -> WeightOptimizer:
    settings = {"directions": 2, "weight_decay": 0.01, **model.settings}
    if row is VECTOR:
        settings.pop("batched", None)
        # No way back from a step of hundreds to the last place.
        settings |= {} if model.exact else {"lr": 1e-6}
    return row.make(model.groups, **settings)


# ---- where ---------------------------------------------------------------------------------------


class Fault:
    """Something that happens once, at the n-th event of a step; with n = 0 it only counts.

    Args:
        happen: raises, or sends a signal.
        n: which event, from 1.
    """

    def __init__(self, happen: Callable[[], None], n: int) -> None:
        self.happen, self.n, self.events = happen, n, list[str]()

    def __call__(self, event: str) -> None:
        self.events.append(event)
        if len(self.events) == self.n:
            self.happen()

    @property
    def where(self) -> str:
        return self.events[self.n - 1] if 0 < self.n <= len(self.events) else "nowhere"


@contextlib.contextmanager
def faulty(fault: Fault, optimizer: WeightOptimizer) -> Iterator[None]:
    """The phases of a step tell `fault` when they begin and when they are done."""
    kind = type(optimizer)
    phases = [(Weights, name) for name in ("begin", "move", "restore", "update")]
    phases += [(Combination, "__call__"), (ForwardOptimizer, "_apply"), (kind, "_evaluate")]
    phases += [
        (kind, name)
        for name in ("rule", "_propose", "_judge", "_decide", "_loss")
        if hasattr(kind, name)
    ]
    originals = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name in phases]
    for owner, name, _, original in originals:
        setattr(owner, name, _told(original, fault))
    try:
        yield
    finally:
        for owner, name, own, original in originals:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def _told(original: Any, fault: Fault) -> Any:
    @functools.wraps(original)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        fault(f"before {original.__qualname__}")
        result = original(self, *args, **kwargs)
        # Between the arithmetic of a block in place and the note that it is done there is no room
        # for an exception: signals are held back there.
        if not (isinstance(self, Combination) and self.copies is None):
            fault(f"after {original.__qualname__}")
        return result

    return told


def told_closure(loss: Callable[[], Tensor], fault: Fault) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        fault("before the closure")
        result = loss()
        fault("after the closure")
        return result

    return closure


# ---- what must be true ---------------------------------------------------------------------------


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def state_of(optimizer: WeightOptimizer) -> str:
    return repr(plain(optimizer.state_dict()["forward"]))


class Reference(NamedTuple):
    """An uninterrupted run: weights and state after one, two and three steps; and the passes of the
    second.
    """

    weights: list[list[Tensor]]
    states: list[str]
    passes: int


@functools.cache
def reference(name: str, optimizer_name: str) -> Reference:
    model = MODELS[name]()
    optimizer = optimizer_of(ALL_ROWS[optimizer_name], model)
    weights, states, passes = [], [], []
    for _ in range(3):
        optimizer.step(model.loss)
        weights.append(copies(model.parameters))
        states.append(state_of(optimizer))
        passes.append(optimizer.forward_passes)
    return Reference(weights, states, passes[1] - passes[0])


def near(new: list[Tensor], old: list[Tensor], passes: int) -> bool:
    """Equal for 16-bit weights, else to a unit in the last place of |w| + sigma for each pass."""
    return all(
        torch.equal(a, b)
        if a.dtype == torch.bfloat16
        else bool(((a - b).abs() <= passes * torch.finfo(a.dtype).eps * (b.abs() + 0.12)).all())
        for a, b in zip(new, old, strict=True)
    )


def complaint(
    name: str, row: Row, model: Model, optimizer: WeightOptimizer, before: int
) -> str | None:
    """What is wrong after a broken second step, or None. Takes a further step or two."""
    expected, passed, now = (
        reference(name, row.name),
        optimizer.forward_passes - before,
        copies(model.parameters),
    )
    if not torch.is_grad_enabled():
        return "gradients are left switched off"
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return "Ctrl-C is left without its handler"
    if torch._C._len_torch_function_stack():  # pyright: ignore[reportPrivateUsage]
        return "parameters are left exchanged"
    if passed == 0:
        good = (
            same(now, expected.weights[0])
            if model.exact
            else near(now, expected.weights[0], expected.passes)
        )
        if not good:
            return "weights are not those before the step"
        if state_of(optimizer) != expected.states[0]:
            return "the state is not that before the step"
        optimizer.step(model.loss)
        now = copies(model.parameters)
    elif passed != expected.passes:
        return f"{passed} passes were counted"
    if model.exact and not same(now, expected.weights[1]):
        return "weights are not those after the step"
    if model.exact and state_of(optimizer) != expected.states[1]:
        return "the state is not that after the step"
    optimizer.step(model.loss)
    now = copies(model.parameters)
    if model.exact and not same(now, expected.weights[2]):
        return "the run does not go on as if never interrupted"
    return None if all(bool(w.isfinite().all()) for w in now) else "weights are not finite"
