"""Pictures for which the library runs for a few seconds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from docs.gallery.drawing import COLOURS, GRID, INK, MUTED, new_figure, plain_log
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dopaminergic as d

CURVATURE = torch.tensor([[1.4, 0.9], [0.0, 0.7]], dtype=torch.float64)
START = (-1.6, -0.4)


class Path2:
    """A run in the plane: places of evaluations, and of the weights after each step."""

    def __init__(self, make: Callable[[Any], Any], passes: int, adam: bool = False) -> None:
        self.weights = nn.Parameter(torch.tensor(START, dtype=torch.float64))
        self.seen: list[list[float]] = []
        self.path = [self.weights.tolist()]
        optimizer = make([self.weights])
        spent = 0
        while spent < passes:
            if adam:
                optimizer.zero_grad()
                self.outcome().mean().backward()
                optimizer.step()
                spent += 3
            else:
                optimizer.step(self.outcome)
                spent = optimizer.forward_passes
            self.path.append(self.weights.tolist())

    def outcome(self) -> Any:
        """Two predictions with their squared errors."""
        self.seen.append(self.weights.tolist())
        prediction = CURVATURE @ self.weights
        return d.squared_error(prediction[:, None], torch.zeros(2, 1, dtype=torch.float64))

    def mean(self) -> Tensor:
        """The same as one number."""
        return self.outcome().mean()


class Plain(Path2):
    """A run whose closure returns a number."""

    def outcome(self) -> Any:
        """The mean of two squared errors."""
        self.seen.append(self.weights.tolist())
        return (CURVATURE @ self.weights).square().mean()


def steps() -> Figure:
    """Sixteen passes of each rule on one quadratic loss."""
    far: Any = {"sigma": 0.25}
    runs = {
        "WeightPerturbation": Plain(lambda w: d.WeightPerturbation(w, lr=0.12, seed=5, **far), 16),
        "SPSA": Plain(lambda w: d.SPSA(w, lr=0.12, seed=5, **far), 16),
        "EvolutionStrategy": Plain(
            lambda w: d.EvolutionStrategy(w, lr=0.3, directions=4, seed=1, **far), 16
        ),
        "Dopamine": Plain(lambda w: d.Dopamine(w, lr=1.0, cap=1.0, seed=5, **far), 16),
        "VectorDopamine": Path2(lambda w: d.VectorDopamine(w, sigma=0.35, batched=False), 16),
        "Adam, by gradients": Plain(lambda w: torch.optim.Adam(w, lr=0.4), 16, adam=True),
    }
    figure, axes = new_figure(8.4, 5.6, 2, 3)
    grid = np.linspace(-2.6, 2.6, 36)
    x, y = np.meshgrid(grid, grid)
    points = np.einsum("ij,jxy->ixy", CURVATURE.numpy(), np.array([x, y]))
    loss = (points**2).mean(0)
    colours = ("plain", "plain", "plain", "dopamine", "vector", "adam")
    for place, (name, run), colour in zip(axes.flat, runs.items(), colours, strict=True):
        place.contour(x, y, loss, levels=np.geomspace(0.05, 8, 6), colors=GRID, linewidths=1)
        place.plot(*np.array(run.seen).T, ".", color=MUTED, markersize=5)
        place.plot(*np.array(run.path).T, "-", color=COLOURS[colour], linewidth=2.2)
        place.plot(*run.path[-1], "o", color=COLOURS[colour], markersize=6)
        place.plot(0, 0, "+", color=INK, markersize=9)
        place.set(xticks=[], yticks=[], xlim=(-2.1, 1.3), ylim=(-1.7, 1.7), aspect="equal")
        place.spines[:].set_visible(False)
        place.set_title(f"{name}: {len(run.path) - 1} steps", fontsize=11)
    return figure


class Live(TorchDispatchMode):
    """Notes how many bytes torch's operations have alive, after each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.course: list[int] = []
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count the memory of what it makes."""
        given = {
            one.untyped_storage()._cdata for one in tree_leaves(args) if isinstance(one, Tensor)
        }
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in given | self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.course.append(self.now)
        return found

    def free(self, name: int, size: int) -> None:
        """Called when nothing holds a memory any more."""
        self.known.discard(name)
        self.now -= size


def course(adam: bool) -> Any:
    """Bytes beside the weights in the course of two steps, over the bytes of the weights."""
    torch.manual_seed(0)
    parts = [part for _ in range(8) for part in (nn.Linear(512, 512), nn.Tanh())]
    model = nn.Sequential(*parts)
    size = sum(4 * p.numel() for p in model.parameters())
    x = torch.randn(512, 512)
    optimizer: Any = (
        torch.optim.Adam(model.parameters(), foreach=False)
        if adam
        else d.Dopamine(model.parameters())
    )

    def closure() -> Tensor:
        return model(x).square().mean()

    with Live() as live:
        for _ in range(2):
            if adam:
                optimizer.zero_grad()
                closure().backward()
                optimizer.step()
            else:
                optimizer.step(closure)
    return np.array(live.course) / size


def memory() -> Figure:
    """Memory in the course of two steps."""
    figure, axes = new_figure(7.2, 3.3)
    for name, adam, style, colour in (
        ("Adam with backpropagation", True, "--", "adam"),
        ("Dopamine", False, "-", "dopamine"),
    ):
        found = course(adam)
        time = np.linspace(0, 2, len(found))
        axes.plot(time, 1 + found, style, color=COLOURS[colour], linewidth=2)
        top = int(np.argmax(found))
        place = (time[top], 1 + found[top])
        axes.annotate(
            name, place, (0, 5), textcoords="offset points", color=COLOURS[colour], ha="center"
        )
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=":")
    axes.annotate("the weights", (0, 1), (2, -12), textcoords="offset points", color=MUTED)
    axes.set(xlim=(0, 2.02), ylim=(0, 5.4), xticks=[0, 1, 2], xlabel="steps")
    axes.set_ylabel("memory / weights")
    axes.grid(True, axis="y")
    axes.set_title("Eight layers of 512 units, 512 samples")
    return figure


def sigma() -> Figure:
    """How far the slope by a difference is from the true one, for each distance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(256, 8)
    y = x.prod(1, keepdim=True).sign()
    distances = np.geomspace(1e-7, 1, 36)
    figure, axes = new_figure(7.2, 3.6)
    for name, dtype, style, colour in (
        ("float32", torch.float32, "-", "dopamine"),
        ("bfloat16", torch.bfloat16, "--", "dopamine2"),
    ):
        errors = [slope_error(model, x, y, float(s), dtype) for s in distances]
        axes.plot(distances, errors, style, color=COLOURS[colour], linewidth=2.2, label=name)
    for place, name in ((0.0003, "default\nof Dopamine"), (0.0125, "with\n16 bits")):
        axes.axvline(place, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(name, (place, 12), (4, 0), textcoords="offset points", color=MUTED, va="top")
    axes.set(xscale="log", xlabel="sigma", ylabel="error of the slope, relative", xlim=(1e-7, 1))
    plain_log(axes, "y", [0.001, 0.01, 0.1, 1, 10])
    axes.set_ylim(0.0005, 15)
    axes.grid(True, axis="y")
    axes.legend(loc="lower left")
    axes.set_title("Too near: rounding. Too far: curvature.")
    return figure


def slope_error(
    model: nn.Module, x: Tensor, y: Tensor, distance: float, dtype: torch.dtype
) -> float:
    """The median over 30 directions of the error of the slope, over the slopes' usual size."""
    exact = {name: p.detach().to(dtype).double() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], kind: torch.dtype) -> Tensor:
        given = {name: value.to(kind) for name, value in values.items()}
        found = torch.func.functional_call(model, given, (x.to(dtype).to(kind),))
        return (found - y.to(kind)).square().double().mean()

    slopes = torch.func.grad(lambda values: loss(values, torch.float64))(exact)
    draws = torch.Generator().manual_seed(1)
    errors, sizes = [], []
    for _ in range(30):
        z = {
            name: torch.randint(2, value.shape, generator=draws) * 2.0 - 1
            for name, value in exact.items()
        }
        moved = {name: value + distance * z[name] for name, value in exact.items()}
        difference = (loss(moved, dtype) - loss(exact, dtype)) / distance
        true = sum((slopes[name] * z[name]).sum() for name in exact)
        errors.append(float((difference - true).abs()))
        sizes.append(float(torch.as_tensor(true).square()))
    return float(np.median(errors) / np.mean(sizes) ** 0.5)


def digits() -> tuple[Tensor, Tensor]:
    """Images of 8 x 8 pixels and their digits."""
    found: Any = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


def batches(count: int, steps: int, size: int) -> Tensor:
    """Places of samples, one row a step."""
    return torch.randint(count, (steps, size), generator=torch.Generator().manual_seed(0))


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two tensors."""
    return float(torch.cosine_similarity(one.detach().flatten(), other.detach().flatten(), 0))


def feedback() -> Figure:
    """How feedback comes to expect the regrets, and what its use is worth."""
    torch.manual_seed(0)
    x, y = digits()
    first, readout = nn.Linear(64, 256), nn.Linear(256, 10)
    model = nn.Sequential(first, nn.Tanh(), readout)
    optimizer = d.NodeDopamine(model, seed=0)
    angles, doubts, losses = [], [], []
    for chosen in batches(len(x), 300, 64):
        losses.append(optimizer.step(lambda i=chosen: d.cross_entropy(model(x[i]), y[i])))
        memory = optimizer.state_dict()["forward"]["memory"]
        [kernel] = [value for name, value in memory.items() if name.startswith("feedback")]
        angles.append(cosine(kernel, readout.weight.T))
        doubts.append(float(memory["doubt"]))
    figure, (left, right) = new_figure(8.2, 3.2, 1, 2)
    left.plot(angles, color=COLOURS["node"], linewidth=2.2)
    left.annotate(f"{angles[0]:.2f}", (0, angles[0]), (6, -2), textcoords="offset points")
    left.annotate(
        f"> {math.floor(100 * angles[-1]) / 100}",
        (299, angles[-1]),
        (-6, -14),
        textcoords="offset points",
        ha="right",
    )
    left.set(xlabel="steps", title="cosine of feedback and the true Jacobian")
    right.plot(doubts, color=COLOURS["node"], linewidth=2.2, label="share of regrets not expected")
    right.plot(losses, "--", color=MUTED, linewidth=1.6, label="loss of the batch")
    plain_log(right, "y", [0.001, 0.01, 0.1, 1])
    right.set(xlabel="steps", title="the surprise fades")
    right.legend(loc="lower left")
    for axes in (left, right):
        axes.grid(True, axis="y")
    return figure


def course_of_numbers() -> Figure:
    """The numbers that an optimizer tells of a run."""
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = d.Dopamine(model.parameters())
    rows = []
    for chosen in batches(len(x), 1500, 128):
        loss = optimizer.step(lambda i=chosen: nn.functional.cross_entropy(model(x[i]), y[i]))
        rows.append((loss, optimizer.last_rpe, optimizer.last_learning_rate))
    found = np.array(rows, dtype=float)[::3]
    figure, axes = new_figure(8.4, 2.7, 1, 3)
    titles = ("loss", "last_rpe", "last_learning_rate")
    for place, title, values in zip(axes, titles, found.T, strict=True):
        place.plot(np.arange(0, 1500, 3), values, color=COLOURS["dopamine"], linewidth=0.9)
        place.set(xlabel="steps", title=title, xticks=[0, 500, 1000, 1500])
        place.grid(True, axis="y")
    return figure


PICTURES = {
    "steps": steps,
    "memory": memory,
    "sigma": sigma,
    "feedback": feedback,
    "numbers": course_of_numbers,
}
