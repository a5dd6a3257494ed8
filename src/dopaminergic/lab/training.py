"""One run in this process: train, checkpoint, resume, record."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from dopaminergic.lab import saved
from dopaminergic.lab.fleet import Fleet
from dopaminergic.lab.forecaster import series_model
from dopaminergic.lab.optimizers import find_method, grid_of
from dopaminergic.lab.records import read_records
from dopaminergic.lab.runner import (
    Finished,
    Job,
    Replica,
    checkpoint_folder,
    first_network,
    keys_of,
    record_of,
    run_job,
)
from dopaminergic.lab.saved import task_model
from dopaminergic.lab.tasks import Task, make_task
from dopaminergic.lab.tasks.own_series import UserSeries


def default_optimizer(task: str) -> str:
    """The optimizer of `train` where none is named.

    On series of one's own it is Dopamine2. NodeDopamine was measured against it at the defaults of
    `train`, with a validation part (docs/forecasting.md has the table). Dopamine2 was ahead on the
    Nile and on sunspots, and takes a half to a sixth of the time. NodeDopamine was ahead by 7 and
    8 % on two of the longer series, and on a smooth made one, with .0001 against .018.

    These are errors on the test rows, so the choice has seen them.
    """
    return "dopamine2" if task == "series" else "dopamine"


def check_budget(task: Task, optimizer: str, budget: int) -> None:
    """Raises ValueError where the budget is less than the first step takes.

    Nothing would be learned then.
    """
    method = find_method(optimizer)
    made = method.make(task.build([0]).parameters(), torch.ones(1, dtype=torch.float64), [0])
    if budget < made.next_passes:
        raise ValueError(
            f"--budget: the first step of {method.label} takes {made.next_passes} forward passes "
            f"here, got {budget}; "
            f"give more, such as {task.budget:,}"
        )


def train(
    task: str,
    settings: dict[str, Any],
    optimizer: str,
    *,
    lr: float | None,
    seed: int,
    budget: int | None,
    folder: Callable[[], Path],
    resume: bool,
    progress: Callable[[str, int, int, list[str]], None],
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train one network, keep it as `model.pt`, and append its record.

    Args:
        task: name in `TASKS`.
        settings: settings of the task.
        optimizer: name in `METHODS`.
        lr: learning rate; None for the optimizer's default, or the middle of its grid.
        seed: of weights, batches and directions, >= 0.
        budget: forward passes; None for the task's.
        folder: makes and returns the folder, once everything else is known to be right.
        resume: continue from the checkpoint there, if there is one, and run nothing again that has
            a record there. If it is false, a checkpoint there is an error.
        progress: called with a title, the passes done and in all, and details.
        before: called before the first step.

    Returns:
        The record.

    Raises:
        ValueError: an argument is wrong, or there is a checkpoint and `resume` is false.
        KeyboardInterrupt: Ctrl-C was pressed; if it has an argument, that is the checkpoint that
            was written.
    """
    job, built = _make_job(task, settings, optimizer, lr, seed, budget)
    out = folder()
    path = checkpoint_folder(out) / f"{job.name}.pt"
    if path.exists() and not resume:
        raise ValueError(
            f"{path} holds an unfinished run of this kind: continue it with --resume, or delete it"
        )
    done = record_of(job, out) if resume else None
    if done is not None and _kept_run(out) == job.name:
        path.unlink(missing_ok=True)
        return done
    if resume and _has_other_contents(out, task, built):
        logging.getLogger(__name__).warning(
            "the data have changed since the runs in %s; this one starts from the beginning", out
        )
    before()
    title = f"{built.title}, {find_method(optimizer).label}"
    finished = _run(job, path, partial(progress, title), partial(_keep_model, out, job))
    finished.keep(out, () if done is None else keys_of(job))
    path.unlink(missing_ok=True)
    progress(title, job.budget, job.budget, [])
    return finished.records[0] if done is None else done


def _keep_model(folder: Path, job: Job, fleet: Fleet) -> None:
    """Write the trained network; before its record, so that a record is never without it."""
    about = {
        "optimizer": job.optimizer,
        "learning_rate": job.replicas[0].lr,
        "seed": job.replicas[0].seed,
        "forward_passes": fleet.passes,
        "metrics": {name: values[0] for name, values in fleet.metrics().items()},
    }
    make = series_model if isinstance(fleet.task, UserSeries) else task_model
    saved.write(folder, make(cast(Any, fleet.task), first_network(fleet), job.name, about))


def _kept_run(folder: Path) -> str:
    """The name of the job whose network lies in a folder, "" if there is none that can be read."""
    try:
        return saved.read(folder)["run"]
    except (OSError, ValueError):
        return ""


def _run(
    job: Job,
    path: Path,
    progress: Callable[[int, int, list[str]], None],
    at_end: Callable[[Fleet], None],
) -> Finished:
    """Run the job from its checkpoint, if there is one, to its end.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the checkpoint is written.
    """
    torch.set_num_threads(1)
    began = time.monotonic()

    def report(passes: int) -> None:
        rate = passes / (time.monotonic() - began)
        progress(passes, job.budget, [f"{rate:,.0f} passes/s"])

    with _asked_to_stop() as asked:
        finished = run_job(job, path.parent, report, stop=lambda: bool(asked), at_end=at_end)
    if finished is None:
        raise KeyboardInterrupt(path)
    return finished


def _make_job(
    task: str,
    settings: dict[str, Any],
    optimizer: str,
    lr: float | None,
    seed: int,
    budget: int | None,
) -> tuple[Job, Task]:
    """The job that arguments of `train` ask for, and its task.

    Raises:
        ValueError: an argument is wrong.
    """
    method = find_method(optimizer)
    built = make_task(task, **settings)
    settings = {**settings, **built.pinned}
    grid = grid_of(optimizer, task)
    if lr is None:
        lr = method.default if method.default is not None else grid[len(grid) // 2]
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"--seed must be >= 0 and below 2^63, got {seed}; try 0")
    if not 0 <= lr < math.inf:
        raise ValueError(f"--lr must be finite and >= 0, got {lr:g}; try {grid[0]:g}")
    variant = "default" if lr == method.default else "tuned"
    budget = built.budget if budget is None else budget
    check_budget(built, optimizer, budget)
    replica = Replica(seed, lr, variant, "report")
    return Job(task, settings, optimizer, budget, (replica,), picture=True), built


def _has_other_contents(folder: Path, task: str, built: Task) -> bool:
    """Whether the folder has runs on the same file when it held something else."""
    own = {key: built.settings.get(key) for key in ("path", "column")}
    for record in read_records(folder / "records.jsonl").records:
        theirs = record.get("task_settings", {})
        same = record["task"] == task and {key: theirs.get(key) for key in own} == own
        if built.pinned and same and theirs.get("contents") != built.pinned["contents"]:
            return True
    return False


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that Ctrl-C adds to, so that a run ends between two steps.

    A second Ctrl-C is final.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
