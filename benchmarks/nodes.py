"""Test errors of NodeDopamine, and of Adam by backpropagation, at equal forward passes.

It prints one JSON object.

    python benchmarks/nodes.py [--tasks lorenz,digits] [--seeds 20] [--first 6000] [--out FILE]

For each task it tells the median test error over seeds, and the ends of the middle half, at some
numbers of passes. NodeDopamine has its default settings everywhere. Adam has the learning rate that
the run of record tuned for the task, and 20,000 passes at most; a step of it counts as 3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from printing import publish, say

from dopaminergic.lab.fleet import Fleet
from dopaminergic.lab.tasks import Task, make_task

# Passes at which errors are told, Adam's rate in the run of record (0: no run of Adam), and the
# replicas of one fleet.
CASES: dict[str, tuple[list[int], float, int]] = {
    "xor-2-8-1": ([24, 40, 60, 100, 200], 0.0949, 20),
    "continuous-xor": ([100, 200, 300, 600], 0.03, 20),
    "lorenz": ([200, 500, 1000, 2000], 0.0095, 5),
    "rossler": ([200, 500, 1000, 2000], 0.0095, 5),
    "mackey-glass": ([500, 1000, 2000, 2500], 0.0095, 5),
    "sunspots": ([500, 1000, 2000], 0.0095, 5),
    "digits": ([500, 1000, 3000, 10_000, 30_000], 0.003, 5),
    "digits-conv": ([500, 1000, 3000, 10_000], 0.003, 3),
    "threshold-digits": ([1000, 2000, 6000], 0.003, 5),
    "mnist1d": ([1000, 2000, 6000], 0.003, 3),
    "mnist1d network=cnn": ([1000, 3000, 6000], 0.003, 3),
    "mnist1d network=gru": ([1000, 3000], 0.003, 3),
    "markov-transformer": ([1000, 3000], 0.003, 1),
}


def task_of(case: str) -> Task:
    """The task that a case names, with its settings."""
    name, *settings = case.split()
    return make_task(name, **dict(setting.split("=") for setting in settings))


def curve(
    case: str, method: str, seeds: list[int], lr: float, points: list[int]
) -> tuple[dict[str, dict[int, list[float]]], float]:
    """All test metrics of all seeds at each point, and seconds of training."""
    task = task_of(case)
    fleet = Fleet(task, method, seeds, [lr] * len(seeds), points[-1])
    found: dict[str, dict[int, list[float]]] = {}
    seconds = 0.0
    for point in points:
        began = time.process_time()
        while fleet.passes + fleet.optimizer.next_passes <= point:
            fleet.step()
        seconds += time.process_time() - began
        for name, values in task.evaluate(fleet.model).items():
            if name in (task.metric, "accuracy"):
                found.setdefault(name, {})[point] = values.expand(len(seeds)).tolist()
    return found, seconds


def quartiles(errors: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(errors) == 1:
        return errors * 3
    low, middle, high = statistics.quantiles(errors, n=4, method="inclusive")
    return [low, middle, high]


def measure(
    case: str, method: str, lr: float, seeds: list[int], size: int, points: list[int]
) -> Any:
    """One entry of the result."""
    metrics: dict[str, dict[int, list[float]]] = {}
    seconds = 0.0
    for start in range(0, len(seeds), size):
        found, spent = curve(case, method, seeds[start : start + size], lr, points)
        seconds += spent
        for name, values in found.items():
            mine = metrics.setdefault(name, {point: [] for point in points})
            for point in points:
                mine[point] += values[point]
        say(f"{case} {method}: {start + size} of {len(seeds)} seeds")
    told = {
        name: {str(point): quartiles(values[point]) for point in points}
        for name, values in metrics.items()
    }
    metric = task_of(case).metric
    return {
        "metric": metric,
        "runs": len(seeds),
        "cpu_seconds_per_run": seconds / len(seeds),
        "quartiles": told.pop(metric),
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", default=",".join(CASES), help="names, with commas (all)")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each (20)")
    parser.add_argument("--first", type=int, default=6000, help="first seed (6000)")
    parser.add_argument("--adam", action="store_true", help="run Adam too, to 20,000 passes")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    results: dict[str, Any] = {}
    for task in arguments.tasks.split(","):
        points, lr, size = CASES[task]
        results[task] = {"node": measure(task, "node", 1.0, seeds, size, points)}
        if arguments.adam:
            ends = points if task.startswith("mnist1d") else [*points, 20_000]
            results[task]["adam"] = measure(task, "adam", lr, seeds, size, ends)
    publish("test error at forward passes", results, arguments.out)


if __name__ == "__main__":
    main()
