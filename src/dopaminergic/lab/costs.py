"""The costs of a step: time over two forward passes, and peak memory over inference.

The times are interleaved in one process. A step of VectorDopamine has many passes, evaluated as
batches, so it is the time of a pass that compares.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from dopaminergic.baselines import SPSA, EvolutionStrategy, WeightPerturbation
from dopaminergic.dopamine import Dopamine, Dopamine2
from dopaminergic.files import shown
from dopaminergic.lab.allocator import give_memory_back
from dopaminergic.lab.optimizers import METHODS
from dopaminergic.lab.runner import environment
from dopaminergic.lab.tasks import make_task
from dopaminergic.node import NodeDopamine
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome
from dopaminergic.vector import VectorDopamine

FORWARD: dict[str, type[ForwardOptimizer]] = {
    "dopamine": Dopamine,
    "dopamine2": Dopamine2,
    "vector": VectorDopamine,
    "node": NodeDopamine,
    "wp": WeightPerturbation,
    "spsa": SPSA,
    "es": EvolutionStrategy,
}
BACKWARD: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
TINY_RATE = 1e-12  # so small that the weights, and with them the time of a pass, stay as they are
WARM_UP = 60  # steps after which VectorDopamine tries as many directions as it ever will

Loss = Callable[[], torch.Tensor | Outcome]


def scalar(found: torch.Tensor | Outcome) -> torch.Tensor:
    """The loss in a closure's value.

    On a tiny network a mean of one number would be a tenth of a forward pass.
    """
    return found if isinstance(found, torch.Tensor) and found.ndim == 0 else found.mean()


def stepper(name: str, model: nn.Module, loss: Loss, **settings: Any) -> Callable[[], int]:
    """One training step of a method, as a function without arguments.

    It returns the forward passes that it counts as.

    Args:
        name: in `METHODS`.
        model: the model to train.
        loss: its loss, or outcome, on a fixed batch.
        **settings: of a forward-only optimizer.
    """
    if name in FORWARD:
        optimizer = FORWARD[name](model.parameters(), lr=TINY_RATE, **settings)

        def forward_step() -> int:
            before = optimizer.forward_passes
            optimizer.step(loss)
            return optimizer.forward_passes - before

        return forward_step
    backward = BACKWARD[name](model.parameters(), lr=TINY_RATE)

    def step() -> int:
        backward.zero_grad()
        scalar(loss()).backward()
        backward.step()
        return METHODS[name].passes_per_step

    return step


def time_ratios(
    steps: dict[str, Callable[[], int]], loss: Loss, rounds: int, warm_up: int = WARM_UP
) -> dict[str, dict[str, float]]:
    """Time of each step in units of two forward passes without gradients.

    It is the median, and the middle half, over rounds. The methods and the forward passes take
    turns within a round, so that a machine that changes its speed changes both. Each begins its
    turn with a few calls that are not timed. The first ones after another's turn are slower, most
    of all after one that only reads its weights.

    Args:
        steps: by name, each as of `stepper`.
        loss: the forward pass.
        rounds: how many times each is measured.
        warm_up: steps before that.
    """

    def forwards() -> int:
        for _ in range(2):
            with torch.no_grad():
                float(scalar(loss()))
        return 2

    everything = {"forwards": forwards, **steps}
    for work in everything.values():
        for _ in range(warm_up):
            work()
    # All windows have about as many passes, so that an interruption of the machine lengthens all
    # alike.
    passes = 2 * _repeats(forwards)
    repeats = {name: max(1, passes // work()) for name, work in everything.items()}
    times: dict[str, list[float]] = {name: [] for name in everything}
    for _, (name, work) in itertools.product(range(rounds), everything.items()):
        for _ in range(max(1, repeats[name] // 2)):
            work()
        began = time.perf_counter()
        for _ in range(repeats[name]):
            work()
        times[name].append((time.perf_counter() - began) / repeats[name])
    return {
        name: quartiles(t / f for t, f in zip(times[name], times["forwards"], strict=True))
        for name in steps
    }


def quartiles(values: Iterable[float]) -> dict[str, float]:
    """The median, and the lower and upper end of the middle half.

    >>> quartiles([5.0, 1.0, 2.0, 3.0, 4.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


def _repeats(work: Callable[[], Any]) -> int:
    """Number of repetitions that make one measurement last about 20 ms."""
    shortest = 1.0
    for _ in range(5):
        began = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - began)
    return max(1, int(0.02 / max(shortest, 1e-6)))


def peak_memory(name: str, weights: int, dtype: str = "float32") -> float | None:
    """Peak memory of training steps over that of inference.

    Both are counted above the memory that the process held before the model. It is measured in a
    process of its own, on a perceptron of about `weights` weights. It is None where the system does
    not tell it, since it is read from Linux's /proc. It is None, too, if that process was killed,
    and the log says so.

    Args:
        name: in `METHODS`.
        weights: number of weights, each layer having a million.
        dtype: theirs, a floating-point type of torch.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "dopaminergic.lab.costs", name, str(weights), dtype]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    try:
        if done.returncode == 0:
            return float(json.loads(done.stdout))
    except (TypeError, ValueError):
        pass
    said = shown((done.stderr.strip().splitlines() or [""])[-1], 100)
    logging.getLogger(__name__).warning(
        "the process that measures the memory of %s ended with code %d (killed, out of memory?)%s; "
        "its memory is left "
        "out of the report: to measure it again, delete costs.json and run the same command",
        name, done.returncode, f": {said}" if said else "",
    )  # fmt: skip
    return None


def measure_costs(rounds: int = 15, memory_of: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """The costs of every method on the Lorenz task, as `costs.json` keeps them.

    Args:
        rounds: of `time_ratios`.
        memory_of: methods to measure the memory of; each takes a few seconds.
    """
    task = make_task("lorenz")
    batch = task.batch(0, 0)
    steps = {}
    for name in METHODS:
        model = task.build(0)
        model.as_written = METHODS[name].as_written
        steps[name] = stepper(name, model, lambda model=model: task.outcome(model, batch))
    model = task.build(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of TINY_RATE, which is meant
            times = time_ratios(steps, lambda: task.outcome(model, batch), rounds)
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        memory = dict(
            zip(
                memory_of,
                pool.map(lambda name: peak_memory(name, 10_000_000), memory_of),
                strict=True,
            )
        )
    rows = [
        {
            "optimizer": name,
            "task": task.name,
            "passes_per_step": steps[name](),
            "time_over_two_forwards": times[name]["median"],
            "peak_memory_over_inference": memory.get(name),
        }
        for name in METHODS
    ]
    return {
        "environment": {
            **environment(),
            "threads": 1,
            "memory_model": "perceptron of 10 million weights",
        },
        "rows": rows,
    }


def _high_water() -> int:
    """Peak resident memory since the last reset, in kB; resets it."""
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def measure_memory(
    make: Callable[[nn.Module, Loss], Callable[[], Any]],
    weights: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """As `peak_memory`, in this process, which should have done nothing else.

    Args:
        make: a training step of a model and its loss.
        weights: number of weights.
        dtype: theirs.
    """
    torch.set_num_threads(1)
    width = 1000

    def network(layers: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(width, width, dtype=dtype) for _ in range(layers)))

    inputs = torch.ones(4, width, dtype=dtype)

    def loss_of(model: nn.Module) -> Loss:
        return lambda: model(inputs).square().mean(1)

    def train(model: nn.Module) -> None:
        step = make(model, loss_of(model))
        for _ in range(3):
            step()

    # Kernels and thread pools are there before the measurement, also those for more than two
    # million weights.
    train(network(3))
    gc.collect()
    give_memory_back()  # kept memory would be taken for the model's
    _high_water()
    before = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    model = network(max(1, weights // width**2))
    with torch.no_grad():
        loss_of(model)()
    inference = _high_water() - before
    train(model)
    return round((_high_water() - before) / inference, 4)


if __name__ == "__main__":
    chosen, number, kind = sys.argv[1:]
    found = measure_memory(
        lambda model, loss: stepper(chosen, model, loss), int(number), getattr(torch, kind)
    )
    print(json.dumps(found))
