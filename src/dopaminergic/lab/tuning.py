"""Choosing a learning rate: the same grid effort for every optimizer, on seeds that are never reported."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from dopaminergic.lab.optimizers import METHODS, find_method
from dopaminergic.lab.records import Record, final_error, solved_at
from dopaminergic.lab.runner import Job, Replica
from dopaminergic.lab.tasks import make_task

UNSOLVED = 2.0  # an unsolved run counts as having taken twice the budget (PAR2, Hutter et al. 2009)


def tuning_job(task: str, settings: dict[str, Any], optimizer: str, seeds: range, budget: int) -> Job:
    """The grid of learning rates x seeds of one optimizer on one task, as one fleet."""
    replicas = tuple(Replica(s, lr, "tuned", "tuning") for lr in find_method(optimizer).grid for s in seeds)
    return Job(task, settings, optimizer, budget, replicas)


def score(records: list[Record], solvable: bool) -> float:
    """How good a learning rate is, lower is better.

    Args:
        records: its runs, one for each tuning seed.
        solvable: whether the task has a threshold: then the mean number of passes to it counts, where an unsolved run
            has taken twice the budget; else the median final error.
    """
    if solvable:
        return float(np.mean([min(solved_at(r), UNSOLVED * r["budget"]) for r in records]))
    return float(np.median([final_error(r) for r in records]))


def best_learning_rate(records: list[Record], task: str, settings: dict[str, Any], optimizer: str) -> float:
    """The learning rate with the best score; of equal ones the smallest.

    Raises:
        ValueError: there are no tuning records of that optimizer on that task.
    """
    known = make_task(task, **settings)
    by_rate: defaultdict[float, list[Record]] = defaultdict(list)
    for record in records:
        if (record["role"], record["task"], record["optimizer"]) == ("tuning", task, optimizer) and (
            record["task_settings"] == known.settings
        ):
            by_rate[record["settings"]["lr"]].append(record)
    if not by_rate:
        raise ValueError(f"no tuning records of {optimizer} on {task}")
    scores = {lr: score(runs, known.threshold is not None) for lr, runs in sorted(by_rate.items())}
    return min(scores, key=scores.__getitem__)


def report_job(
    records: list[Record], task: str, settings: dict[str, Any], optimizer: str, seeds: range, budget: int
) -> Job:
    """The runs that are reported: the tuned learning rate, and the default where the optimizer has one."""
    tuned = best_learning_rate(records, task, settings, optimizer)
    default = METHODS[optimizer].default
    replicas = [Replica(s, default, "default", "report") for s in seeds] if default is not None else []
    replicas += [Replica(s, tuned, "tuned", "report") for s in seeds]
    return Job(task, settings, optimizer, budget, tuple(replicas), picture=True)
