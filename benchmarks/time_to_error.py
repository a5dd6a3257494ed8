"""Time until VectorDopamine reaches the error at which Adam ends, over the time of Adam.

It prints one JSON object.

    python benchmarks/time_to_error.py [--seeds 5] [--out FILE]

Task `lorenz` (tanh RNN, 16 units, batch 8 x 50), one thread, 20,000 forward passes for Adam (a step
counts as 3) at the learning rate that the run of record chose; seeds from 5000. The two take turns,
seed by seed.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from printing import publish, say

from dopaminergic import VectorDopamine
from dopaminergic.lab.tasks import Task, make_task

BUDGET = 20_000


def adam(task: Task, seed: int, lr: float) -> tuple[float, float]:
    """Seconds of training, and the test error it ends with."""
    model, began = task.build(seed), time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(BUDGET // 3):
        optimizer.zero_grad()
        task.outcome(model, task.batch(seed, step)).mean().backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    return seconds, float(task.evaluate(model)[task.metric])


def vector(task: Task, seed: int, error: float) -> tuple[float, int | None]:
    """Seconds of training until the test error is as low, and the forward passes; None where it never is."""
    model, seconds = task.build(seed), 0.0
    optimizer, step = VectorDopamine(model.parameters(), seed=seed), 0
    while optimizer.forward_passes + optimizer.next_passes <= BUDGET:
        began = time.perf_counter()
        batch = task.batch(seed, step)
        optimizer.step(lambda batch=batch: task.outcome(model, batch))
        seconds, step = seconds + time.perf_counter() - began, step + 1
        if float(task.evaluate(model)[task.metric]) <= error:
            return seconds, optimizer.forward_passes
    return math.inf, None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--lr", type=float, default=0.0095, help="Adam's learning rate (0.0095)")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, runs = make_task("lorenz"), []
    for seed in range(5000, 5000 + options.seeds):
        say("seed", seed)
        spent, error = adam(task, seed, options.lr)
        seconds, passes = vector(task, seed, error)
        runs.append({"seed": seed, "ratio": seconds / spent, "error": error, "passes": passes})
    found: dict[str, Any] = {"ratio": median(run["ratio"] for run in runs), "runs": runs}
    what = "time to the final test error of Adam / time of Adam, lorenz"
    publish(what, found, options.out)


if __name__ == "__main__":
    main()
