"""Journals: bytes a step, time that recording adds to a step, and replay against training.

It prints one JSON object of ratios.

    python benchmarks/journal.py [--steps N] [--rounds N] [--out FILE]

Rounds of plain training, recorded training and replay alternate on one thread, and medians of their
ratios are given. A replay is a whole one: it reads the file twice and compares the weights at each
snapshot.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from printing import publish, say
from torch import nn
from torch.nn.functional import mse_loss

from dopaminergic import Dopamine, Journal, VectorDopamine, replay
from dopaminergic.journal import digest, read

Run = tuple[nn.Module, Any, Callable[[], Any]]


def xor(make: Any = Dopamine, **settings: Any) -> Run:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return _run([2, 8, 1], x, y, make, settings)


def perceptron(make: Any = Dopamine, **settings: Any) -> Run:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 784, generator=generator), torch.randn(64, 10, generator=generator)
    return _run([784, 512, 512, 10], x, y, make, settings)


def _run(
    sizes: list[int], x: torch.Tensor, y: torch.Tensor, make: Any, settings: dict[str, Any]
) -> Run:
    torch.manual_seed(0)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    return model, make(model.parameters(), **settings), lambda: mse_loss(model(x), y)


RUNS: dict[str, tuple[Callable[[], Run], int]] = {
    "XOR 2-8-1, Dopamine": (xor, 10_000),
    "XOR 2-8-1, Dopamine, 8 directions": (lambda: xor(directions=8), 2000),
    "XOR 2-8-1, VectorDopamine": (lambda: xor(VectorDopamine, directions=8), 1000),
    "perceptron 784-512-512-10 in place, Dopamine": (perceptron, 200),
    "perceptron 784-512-512-10 in place, Dopamine, Gaussian": (
        lambda: perceptron(noise="gaussian"),
        100,
    ),
}


def measure(name: str, make: Callable[[], Run], steps: int, rounds: int) -> dict[str, float]:
    say(name)
    overheads, replays, size, equal = [], [], 0.0, True
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.journal"
            plain = _timed(make(), steps, None)
            run = make()
            recorded = _timed(run, steps, path)
            fresh = make()[0]
            start = time.perf_counter()
            replay(fresh, path)
            replays.append((time.perf_counter() - start) / plain)
            overheads.append(recorded / plain)
            size = path.stat().st_size - read(path).kinds["header"]
            equal = equal and digest(list(fresh.parameters())) == digest(list(run[0].parameters()))
    return {
        "steps": steps,
        "bytes a step, snapshots included": round(size / steps, 2),
        "recorded step / plain step": round(statistics.median(overheads), 3),
        "replay / training": round(statistics.median(replays), 4),
        "times faster than training": round(1 / statistics.median(replays), 1),
        "bit-equal": equal,
    }


def _timed(run: Run, steps: int, path: Path | None) -> float:
    _, optimizer, closure = run
    journal = Journal(optimizer, path) if path else None
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step(closure)
    elapsed = time.perf_counter() - start
    if journal:
        journal.close()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--steps", type=int, help="at most so many steps of each run (10,000 for XOR)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, of which medians are taken (3)"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _timed(xor(), 100, None)  # numba compiles
    results = {
        name: measure(name, make, min(steps, options.steps or steps), options.rounds)
        for name, (make, steps) in RUNS.items()
    }
    publish("journals", results, options.out)


if __name__ == "__main__":
    main()
