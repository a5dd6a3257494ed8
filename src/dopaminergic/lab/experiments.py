"""The paper's two experiments as plans, and running a plan from start to report.

A plan names tasks, budgets and seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dopaminergic.lab.crew import Crew
from dopaminergic.lab.optimizers import METHODS, find_method
from dopaminergic.lab.runner import Job, recorded, unfinished
from dopaminergic.lab.tuning import fleet_count, report_jobs, tuning_job

# Tuning seeds count from 0 and reported ones from here, so that they never meet; the default
# settings of Dopamine and Dopamine2 were chosen on seeds from 1000 to 1400, which are not reported
# either.
REPORT_SEEDS = 5000


class Study(NamedTuple):
    """One task with every optimizer on it.

    Attributes:
        task: name in `TASKS`.
        settings: those that differ from the task's defaults, such as `{"hidden": 64}`.
        budget: forward passes of each run.
        tuning_seeds: runs for each of the seven learning rates.
        report_seeds: runs of the chosen one.
        optimizers: names in `METHODS`.
    """

    task: str
    settings: dict[str, Any]
    budget: int
    tuning_seeds: int
    report_seeds: int
    optimizers: tuple[str, ...] = tuple(METHODS)

    def tuning_jobs(self) -> list[Job]:
        """The grid of each optimizer that has something to tune."""
        names = [name for name in self.optimizers if find_method(name).tunable]
        seeds = range(self.tuning_seeds)
        return [tuning_job(self.task, self.settings, name, seeds, self.budget) for name in names]

    def report_jobs(self, records: list[dict[str, Any]]) -> list[Job]:
        """The runs that are reported, once the tuning records are there."""
        seeds = range(REPORT_SEEDS, REPORT_SEEDS + self.report_seeds)
        study = (self.task, self.settings)
        return [
            job
            for name in self.optimizers
            for job in report_jobs(records, *study, name, seeds, self.budget)
        ]

    def report_count(self) -> int:
        """How many jobs `report_jobs` will give, before any rate is tuned."""
        size = (self.task, self.settings)
        return sum(fleet_count(*size, name, self.report_seeds) for name in self.optimizers)


def studies(part: str, size: str) -> list[Study]:
    """The studies of `reproduce`.

    Args:
        part: `"xor"`, `"chaos"` or `"all"`.
        size: `"quick"` (a look, under a minute), `"default"` (a few minutes) or `"full"` (the run
            of record).
    """
    xor, chaos = {"quick": _quick, "default": _default, "full": _full}[size]()
    return {"xor": xor, "chaos": chaos, "all": xor + chaos}[part]


CHAOS_TASKS = ("lorenz", "rossler", "mackey-glass")
# Training on true states alone takes a tenth of the time, but a network may run off.
FORCED = {"forcing": 1}
FEW = ("dopamine", "dopamine2", "vector", "node", "wp", "sgd", "adam")


def _quick() -> tuple[list[Study], list[Study]]:
    # One clear win and one clear loss: NodeDopamine on Lorenz, all rules on the transformer.
    glance = ("dopamine2", "vector", "node", "wp", "adam")
    chaos = [
        Study("lorenz", {}, 500, 1, 3, glance),
        Study("markov-transformer", {}, 900, 1, 3, ("vector", "adam")),
    ]
    return [Study("xor-2-8-1", {}, 600, 1, 10, glance)], chaos


def _default() -> tuple[list[Study], list[Study]]:
    xor = [
        Study("xor-2-2-1", {}, 5000, 10, 100),
        Study("xor-2-8-1", {}, 5000, 5, 50),
        Study("continuous-xor", {}, 6000, 3, 10),
        Study("cluster-xor", {}, 3000, 3, 10),
    ]
    # A pass of NodeDopamine takes half a second and more on the long batches of free runs.
    free = ("dopamine2", "vector", "wp", "sgd", "adam")
    chaos = [
        Study("lorenz", {}, 20_000, 2, 5),
        *(Study(task, {}, 5000, 1, 5) for task in CHAOS_TASKS[1:]),
        Study("lorenz-vpt", FORCED, 1500, 1, 1, free),
    ]
    return xor, chaos


def _full() -> tuple[list[Study], list[Study]]:
    xor = [
        Study("xor-2-2-1", {}, 5000, 40, 500),
        Study("xor-2-2-1", {"loss": "bce"}, 5000, 20, 200),
        Study("xor-2-8-1", {}, 5000, 20, 200),
        Study("xor-2-8-1", {"loss": "bce"}, 5000, 20, 200),
        Study("continuous-xor", {}, 20_000, 5, 20),
        Study("cluster-xor", {}, 5000, 5, 40),
        Study("temporal-xor", {}, 10_000, 3, 20),
    ]
    scalar = ("dopamine", "dopamine2", "wp", "sgd")
    chaos = [
        *(Study(task, {}, 20_000, 3, 20) for task in CHAOS_TASKS),
        Study("sunspots", {}, 10_000, 3, 20),
        Study("digits", {}, 10_000, 1, 5),
        Study("lorenz", {"hidden": 32}, 20_000, 3, 20, ("vector", "node", "wp", "adam")),
        Study("digits", {}, 30_000, 3, 20, ("vector", "node", "adam")),
        Study("digits-conv", {}, 10_000, 1, 5, FEW),
        Study("markov-transformer", {}, 12_000, 1, 5, FEW),
        Study("mnist1d", {}, 6000, 1, 5, FEW),
        Study("threshold-digits", {}, 6000, 1, 5, FEW),
        Study("lorenz-vpt", FORCED, 12_000, 1, 3, scalar),
        *(
            Study(f"{task}-vpt", how, 12_000, 1, 20, ("vector", "adam"))
            for how in ({}, FORCED)
            for task in CHAOS_TASKS
        ),
        Study("lorenz-vpt", FORCED, 1200, 1, 3, ("node",)),
        Study("lorenz-vpt", FORCED, 200_000, 1, 1, ("vector",)),
    ]
    return xor, chaos


def run_studies(
    plan: list[Study],
    folder: Path,
    workers: int,
    progress: Callable[[str, int, int, list[str]], None],
) -> None:
    """Tune, then make the runs that are reported; finished ones are skipped.

    Args:
        plan: the studies.
        folder: see `Crew.run`.
        workers: parallel processes.
        progress: called with the phase, the replica-passes done and in all, and the running jobs.
    """
    tuning = [job for study in plan for job in study.tuning_jobs()]
    # A process takes seconds to start and 250 MB: there are never more than jobs.
    most = max(len(unfinished(tuning, folder)), sum(study.report_count() for study in plan))
    with Crew(min(workers, most)) as crew:
        crew.run(tuning, folder, lambda *now: progress("tuning", *now))
        records = list(recorded(folder).values())
        reported = [job for study in plan for job in study.report_jobs(records)]
        crew.run(reported, folder, lambda *now: progress("reported runs", *now))
