"""Choosing a learning rate: the same grid effort for every optimizer.

The seeds are never reported.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from dopaminergic.lab.optimizers import find_method, grid_of
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import final_error, solved_at, unique
from dopaminergic.lab.runner import Job, Replica
from dopaminergic.lab.tasks import make_task

UNSOLVED = 2.0  # an unsolved run counts as having taken twice the budget (PAR2, Hutter et al. 2009)


def tuning_job(
    task: str, settings: dict[str, Any], optimizer: str, seeds: range, budget: int
) -> Job:
    """The grid of learning rates x seeds of one optimizer on one task, as one fleet."""
    replicas = tuple(
        Replica(s, lr, "tuned", "tuning") for lr in grid_of(optimizer, task) for s in seeds
    )
    return Job(task, settings, optimizer, budget, replicas)


def score(records: list[Record], solvable: bool) -> float:
    """How good a learning rate is, lower is better.

    Args:
        records: its runs, one for each tuning seed.
        solvable: whether the task has a threshold. If it has, the mean number of passes to it
            counts, and an unsolved run has taken twice the budget. If not, the median final error
            counts.
    """
    if solvable:
        return float(np.mean([min(solved_at(r), UNSOLVED * r["budget"]) for r in records]))
    return float(np.median([final_error(r) for r in records]))


def best_learning_rate(
    records: list[Record], task: str, settings: dict[str, Any], optimizer: str, budget: int
) -> float:
    """The learning rate with the best score; of equal ones the smallest.

    Raises:
        ValueError: there are no tuning records of that optimizer on that task with that budget.
    """
    known = make_task(task, **settings)
    wanted = {
        "role": "tuning",
        "task": task,
        "task_settings": known.settings,
        "optimizer": optimizer,
        "budget": budget,
    }
    by_rate: defaultdict[float, list[Record]] = defaultdict(list)
    for record in unique(records):
        if all(record[key] == value for key, value in wanted.items()):
            by_rate[record["settings"]["lr"]].append(record)
    if not by_rate:
        raise ValueError(f"no tuning records of {optimizer} on {task} with a budget of {budget}")
    scores = {lr: score(runs, known.threshold is not None) for lr, runs in sorted(by_rate.items())}
    return min(scores, key=scores.__getitem__)


def fleet_size(task: str, settings: dict[str, Any], optimizer: str, replicas: int) -> int:
    """How many of so many replicas one fleet has at most."""
    weights = make_task(task, **settings).parameter_count()
    return max(1, min(replicas, find_method(optimizer).fleet_weights // weights))


def fleet_count(task: str, settings: dict[str, Any], optimizer: str, seeds: int) -> int:
    """How many fleets `report_jobs` gives for so many seeds."""
    method = find_method(optimizer)
    replicas = seeds * ((method.default is not None) + method.tunable)
    return -(-replicas // fleet_size(task, settings, optimizer, replicas))


def report_jobs(
    records: list[Record],
    task: str,
    settings: dict[str, Any],
    optimizer: str,
    seeds: range,
    budget: int,
) -> list[Job]:
    """The runs that are reported: the default learning rate and the tuned one.

    An optimizer may have only one of them. They are one fleet, or several where one would be larger
    than serves the optimizer.
    """
    method = find_method(optimizer)
    replicas = (
        [Replica(s, method.default, "default", "report") for s in seeds]
        if method.default is not None
        else []
    )
    if method.tunable:
        tuned = best_learning_rate(records, task, settings, optimizer, budget)
        replicas += [Replica(s, tuned, "tuned", "report") for s in seeds]
    size = fleet_size(task, settings, optimizer, len(replicas))
    fleets = [tuple(replicas[first : first + size]) for first in range(0, len(replicas), size)]
    return [
        Job(task, settings, optimizer, budget, fleet, picture=fleet is fleets[0])
        for fleet in fleets
    ]
