"""The optimizers under test, one row each, and the rules once more: plain Python, written from
algorithms.md alone.

A new optimizer gets a row here and is then covered by every test that takes the fixture `row`, or
`any_row`.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dopaminergic import (
    SPSA,
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    VectorDopamine,
    WeightPerturbation,
)
from dopaminergic.noise import reference
from dopaminergic.weight_optimizer import WeightOptimizer

Vector = list[float]
Loss = Callable[[Vector], float]
Draw = Callable[[int, int], Vector]  # step, direction


class Row(NamedTuple):
    """One optimizer.

    Attributes:
        name: of the class.
        make: the class.
        passes: forward passes of a step with K directions.
        returns_base: `step` returns the loss at the unperturbed weights, not the mean around them.
        estimates: its mean update is the learning rate times the gradient.
        learns: settings with which it learns small problems.
        plain: the rule by hand; yields the weights after each step.
    """

    name: str
    make: Callable[..., WeightOptimizer]
    passes: Callable[[int], int]
    returns_base: bool
    estimates: bool
    learns: dict[str, Any]
    plain: Callable[..., Iterator[Vector]]


# ---- the rules by hand ---------------------------------------------------------------------------


def along(w: Vector, step: float, z: Vector) -> Vector:
    return [a + step * b for a, b in zip(w, z, strict=True)]


def average(values: Vector) -> float:
    return sum(values) / len(values)


class RunningMean:
    """EMA_b[x], bias-corrected the textbook way: divide by 1 - b^n."""

    def __init__(self, decay: float) -> None:
        self.decay, self.total, self.count = decay, 0.0, 0

    def add(self, x: float) -> None:
        self.total = self.decay * self.total + (1 - self.decay) * x
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / (1 - self.decay**self.count) if self.count else 0.0


def plain_weight_perturbation(
    loss: Loss, w: Vector, draw: Draw, steps: int, *, lr: float, sigma: float, directions: int
) -> Iterator[Vector]:
    for t in range(steps):
        new = w
        for z in (draw(t, k) for k in range(directions)):
            delta = loss(along(w, sigma, z)) - loss(w)
            new = along(new, -lr * delta / sigma / directions, z)
        w = new
        yield w


def plain_spsa(
    loss: Loss, w: Vector, draw: Draw, steps: int, *, lr: float, sigma: float, directions: int
) -> Iterator[Vector]:
    for t in range(steps):
        new = w
        for z in (draw(t, k) for k in range(directions)):
            slope = (loss(along(w, sigma, z)) - loss(along(w, -sigma, z))) / (2 * sigma)
            new = along(new, -lr * slope / directions, z)
        w = new
        yield w


def plain_evolution_strategy(
    loss: Loss, w: Vector, draw: Draw, steps: int, *, lr: float, sigma: float, directions: int
) -> Iterator[Vector]:
    for t in range(steps):
        zs = [draw(t, k) for k in range(directions)]
        losses = [loss(along(w, sigma, z)) for z in zs] + [loss(along(w, -sigma, z)) for z in zs]
        places = [sorted(losses).index(x) / (2 * directions - 1) - 0.5 for x in losses]
        for k, z in enumerate(zs):
            w = along(w, -lr / sigma * (places[k] - places[directions + k]) / 2 / directions, z)
        yield w


def around(
    loss: Loss, w: Vector, zs: list[Vector], sigma: float, two_sided: bool
) -> tuple[float, list[float], list[Vector]]:
    """The loss at the weights, and the regrets of directions; and these."""
    ahead = [loss(along(w, sigma, z)) for z in zs]
    if not two_sided:
        return loss(w), [x - loss(w) for x in ahead], zs
    behind = [loss(along(w, -sigma, z)) for z in zs]
    return average([*ahead, *behind]), [(x - y) / 2 for x, y in zip(ahead, behind, strict=True)], zs


def plain_dopamine(
    loss: Loss,
    w: Vector,
    draw: Draw,
    steps: int,
    *,
    lr: float,
    sigma: float,
    loss_floor: float,
    cap: float,
    beta: float,
    directions: int,
    two_sided: bool,
) -> Iterator[Vector]:
    # One decay for all means, where algorithms.md has .9 for the scale and the outcome.
    expected, square, outcome, size = (RunningMean(beta) for _ in range(4))
    for t in range(steps):
        base, deltas, zs = around(
            loss, w, [draw(t, k) for k in range(directions)], sigma, two_sided
        )
        size.add(abs(base))
        m = expected.value  # before this trial
        expected.add(average(deltas))
        square.add(average([d * d for d in deltas]))
        outcome.add(base)
        s = math.sqrt(square.value) + 1e-8 * size.value
        R = outcome.value - loss_floor
        factor = (len(w) + directions - 1) / directions
        step = min(lr * R * sigma / (factor * s), cap)
        for delta, z in zip(deltas, zs, strict=True):
            w = along(w, -step * (delta - m) / s / directions, z)
        yield w


def plain_dopamine2(
    loss: Loss,
    w: Vector,
    draw: Draw,
    steps: int,
    *,
    lr: float,
    sigma: float,
    tau: float,
    kappa: float,
    cap: float,
    beta: float,
    directions: int,
    two_sided: bool,
) -> Iterator[Vector]:
    expected, square, size = RunningMean(beta), RunningMean(beta), RunningMean(beta)
    actual_size, expected_size, g, last, P = RunningMean(beta), RunningMean(beta), 1.0, None, 0.0
    for t in range(steps):
        base, deltas, zs = around(
            loss, w, [draw(t, k) for k in range(directions)], sigma, two_sided
        )
        size.add(abs(base))
        if last is not None:
            A = last - base
            actual_size.add(abs(A))
            expected_size.add(P)
            error = (A - tau * P) / (actual_size.value + abs(expected_size.value))
            g = min(max(g * math.exp(kappa * min(max(error, -3), 3)), 1e-3), 1e3)
        m = expected.value
        expected.add(average(deltas))
        square.add(average([d * d for d in deltas]))
        s = math.sqrt(square.value) + 1e-8 * size.value
        # At two deviations, where algorithms.md has one.
        cs = [min(max((d - m) / s, -2), 2) for d in deltas]
        # algorithms.md's learning rate is lr / d here, so that one default serves networks of any
        # size.
        step = min(lr * g * directions / (len(w) + directions - 1), cap)
        P = average([step * c * (d - m) / sigma for c, d in zip(cs, deltas, strict=True)])
        last = base
        for c, z in zip(cs, zs, strict=True):
            w = along(w, -step * c / directions, z)
        yield w


ROWS = [
    Row(
        "WeightPerturbation",
        WeightPerturbation,
        lambda K: K + 1,
        True,
        True,
        {"lr": 0.1, "directions": 2},
        plain_weight_perturbation,
    ),
    Row("SPSA", SPSA, lambda K: 2 * K, False, True, {"lr": 0.1, "directions": 2}, plain_spsa),
    Row(
        "EvolutionStrategy",
        EvolutionStrategy,
        lambda K: 2 * K,
        False,
        False,
        {"lr": 3e-3, "directions": 8},
        plain_evolution_strategy,
    ),
    Row("Dopamine", Dopamine, lambda K: K + 1, True, False, {}, plain_dopamine),
    Row("Dopamine2", Dopamine2, lambda K: K + 1, True, False, {}, plain_dopamine2),
]
RULES = [row.make for row in ROWS]
# Its step is no sum of scalar regrets: test_vector_reference.py has its rule; other tests take it
# where they fit.
VECTOR = Row(
    "VectorDopamine", VectorDopamine, lambda K: K + 2, True, False, {}, lambda *_, **__: iter(())
)

# ---- what they are tried on ----------------------------------------------------------------------

LARGE = 300_000  # float32 weights: more than 1 MiB, so that no copy of them is kept


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers of a generator of their own."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def perceptron(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A tanh network whose weights are the same at each call."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(
                randn(*p.shape, seed=1000 * seed + i) / (p.shape[-1] ** 0.5 if p.ndim > 1 else 5.0)
            )
    return model


class Regression:
    """A small network on 16 points: what most tests train."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.model = perceptron(3, 5, 1, seed=seed, dtype=dtype)
        self.x, self.y = randn(16, 3, seed=98, dtype=dtype), randn(16, 1, seed=99, dtype=dtype)

    def loss(self) -> Tensor:
        return ((self.model(self.x) - self.y) ** 2).mean()

    def weights(self) -> list[Tensor]:
        return copies(self.model.parameters())


class Bowl:
    """A quadratic of any number of weights: float32 and larger than 1 MiB by default."""

    def __init__(self, n: int = LARGE, dtype: torch.dtype = torch.float32) -> None:
        self.w = nn.Parameter(randn(n, seed=5, dtype=dtype))

    def loss(self) -> Tensor:
        return (self.w.double() ** 2).sum() / self.w.numel()


def copies(parameters: Any) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit (and none holds NaN)."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state: Any) -> Any:
    """The same state, saved and loaded as something that is not trusted."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def drawn(
    optimizer: WeightOptimizer, p: Tensor, index: int, *, step: int, direction: int = 0
) -> Tensor:
    """The direction that the definition of the noise gives to a parameter, in float64 and the
    parameter's shape.
    """
    draw = (
        reference.rademacher if optimizer.settings["noise"] == "rademacher" else reference.gaussian
    )
    z = draw(
        p.numel(), seed=optimizer.settings["seed"], step=step, direction=direction, parameter=index
    )
    return z.double().reshape(p.shape)
