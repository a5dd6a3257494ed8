"""Error when a random part of the parameters is perturbed in each step, at equal passes.

It prints one JSON object.

    python benchmarks/layers.py [--seeds 5] [--out FILE]

The rest are frozen for that step by `requires_grad`. A part of 1/2 has twice the learning rate of
the whole with `WeightPerturbation`, whose best rate is proportional to the inverse of the number of
weights.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import median
from typing import Any

import torch
from printing import publish, say

from dopaminergic import Dopamine, WeightPerturbation
from dopaminergic.lab.tasks import make_task

BUDGETS = {"digits": 3000, "markov-transformer": 800}  # forward passes
RATES: dict[str, dict[Any, tuple[float, ...]]] = {
    "digits": {Dopamine: (3.5, 7.0, 14.0, 28.0), WeightPerturbation: (0.003, 0.01, 0.03)},
    "markov-transformer": {Dopamine: (3.5, 7.0, 14.0), WeightPerturbation: (0.003, 0.01)},
}
PARTS = (1.0, 0.5, 0.25)


def errors(
    name: str, rule: Any, lr: float, part: float, seeds: list[int], budget: int
) -> list[float]:
    """The test metric of each seed after `budget` passes."""
    task, chooser = make_task(name), random.Random(1)
    model, numbers = task.build(seeds), torch.tensor(seeds)
    parameters = list(model.parameters())
    optimizer, count = rule(parameters, lr=lr, seed=seeds), max(1, round(part * len(parameters)))
    for step in range(budget // 2):
        chosen = set(chooser.sample(range(len(parameters)), count))
        for i, parameter in enumerate(parameters):
            parameter.requires_grad_(i in chosen)
        batch = task.batch(numbers, step)
        optimizer.step(lambda batch=batch: task.outcome(model, batch))
    return task.evaluate(model)[task.metric].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--tasks", default=",".join(BUDGETS), help="separated by commas")
    parser.add_argument("--budget", type=int, default=0, help="forward passes; 0: 3,000 and 800")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, results = list(range(1000, 1000 + options.seeds)), []
    for name in options.tasks.split(","):
        for rule, rates in RATES[name].items():
            for part, rate in ((part, rate) for part in PARTS for rate in rates):
                lr = rate / part if rule is WeightPerturbation else rate
                say(name, rule.__name__, part, lr)
                found = errors(name, rule, lr, part, seeds, options.budget or BUDGETS[name])
                row = {"task": name, "rule": rule.__name__, "part": part, "lr": lr}
                results.append(row | {"median": median(found), "errors": found})
    what = "test error at equal passes, a random part of the parameters perturbed in each step"
    publish(what, results, options.out)


if __name__ == "__main__":
    main()
