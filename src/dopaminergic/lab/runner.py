"""Runs fleets to the end of their budget, in parallel processes, and writes a record for each replica.

Nothing that was done is lost: finished runs are lines in `records.jsonl`, unfinished ones are checkpoints beside it,
and a rerun of the same plan skips the first and continues the second. Workers stop at a checkpoint on Ctrl-C, and when
the process that started them is gone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterable
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dopaminergic import __version__
from dopaminergic.lab.allocator import keep_memory
from dopaminergic.lab.fleet import CheckpointError, Fleet
from dopaminergic.lab.records import SCHEMA, append_records, discard_leftovers, read_records, within
from dopaminergic.lab.tasks import make_task

CHECKPOINT_SECONDS = float(os.environ.get("DOPAMINERGIC_CHECKPOINT_SECONDS", "15"))
TRACED = ("dopamine", "dopamine2", "vector")


class Replica(NamedTuple):
    """One run: its seed, its learning rate, and what it is for."""

    seed: int
    lr: float
    variant: str
    role: str


class Job(NamedTuple):
    """One fleet.

    Attributes:
        task: name in `TASKS`.
        task_settings: the settings that differ from the task's defaults.
        optimizer: name in `METHODS`.
        budget: forward passes of each run.
        replicas: the runs.
        picture: whether to keep pictures and traces of the first replica.
    """

    task: str
    task_settings: dict[str, Any]
    optimizer: str
    budget: int
    replicas: tuple[Replica, ...]
    picture: bool = False

    @property
    def name(self) -> str:
        """A file name that is the same for the same job and for no other."""
        digest = hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.task}-{self.optimizer}-{digest}"

    @property
    def work(self) -> int:
        """Forward passes of all replicas together."""
        return self.budget * len(self.replicas)


def environment() -> dict[str, Any]:
    """Versions, commit, machine: what a record says of where it was made."""
    here = Path(__file__).parent
    commit = None
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        pass  # installed without git: the version must do
    versions = {
        "dopaminergic": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return {"versions": versions, "commit": commit, "platform": platform.platform(), "threads": torch.get_num_threads()}


class Finished(NamedTuple):
    """What a job leaves: lines for `records.jsonl` and for `pictures.jsonl`."""

    records: list[dict[str, Any]]
    pictures: list[dict[str, Any]]

    def keep(self, folder: Path, known: Container[str] = ()) -> None:
        """Append the lines, without records whose key is `known`: those a kill in the midst of writing had left."""
        # Pictures first: a kill between the two repeats the job, and a repeated picture replaces the first.
        if self.pictures:
            append_records(folder / "pictures.jsonl", self.pictures)
        append_records(folder / "records.jsonl", [record for record in self.records if _key(record) not in known])


def run_job(
    job: Job, checkpoints: Path, report: Callable[[int], None], stop: Callable[[], bool], seconds: float = 0.25
) -> Finished | None:
    """Run one fleet from its checkpoint, if it has one.

    Args:
        job: what to run.
        checkpoints: folder for the checkpoint; a damaged one is named in the log, and the run starts over.
        report: called every so often with the forward passes so far.
        stop: asked every so often; if true, save and return.
        seconds: how often that is; 0: after every step.

    Returns:
        The lines to keep, or None if it was stopped.
    """
    keep_memory()
    task = make_task(job.task, **job.task_settings)
    seeds, rates = [r.seed for r in job.replicas], [r.lr for r in job.replicas]
    fleet = Fleet(task, job.optimizer, seeds, rates, job.budget)
    path = checkpoints / f"{job.name}.pt"
    if path.exists():
        try:
            fleet.load(path)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s; that run starts over", error)
    began = saved = time.monotonic()
    for passes in fleet.run(seconds):
        report(passes)
        stopping = stop()
        if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
            fleet.save(path)
            saved = time.monotonic()
        if stopping:
            return None
    pictures = _pictures(job, fleet) if job.picture else []
    return Finished(_records(job, fleet, time.monotonic() - began), pictures)


def _records(job: Job, fleet: Fleet, seconds: float) -> list[dict[str, Any]]:
    metrics, now = fleet.metrics(), datetime.now(UTC).isoformat(timespec="seconds")
    surroundings, task = environment(), fleet.task
    lines: list[dict[str, Any]] = []
    for r, replica in enumerate(job.replicas):
        errors = [values[r] for _, values in fleet.curve]
        solved = float(fleet.solved_at[r])
        traced = job.picture and r == 0 and job.optimizer in TRACED
        lines.append(
            {
                "schema": SCHEMA,
                "task": job.task,
                "task_settings": task.settings,
                "optimizer": job.optimizer,
                "variant": replica.variant,
                "role": replica.role,
                "settings": {"lr": replica.lr},
                "seed": replica.seed,
                "budget": job.budget,
                "forward_passes": fleet.passes,
                "curve": {"passes": [passes for passes, _ in fleet.curve], "error": _short(errors)},
                "traces": _traces(fleet) if traced else None,
                "metrics": {name: values[r] for name, values in metrics.items()},
                "solved_at": int(solved) if np.isfinite(solved) else None,
                "diverged": not np.isfinite(errors[-1]),
                "seconds": round(seconds, 2),
                "replicas": len(job.replicas),
                "versions": surroundings["versions"],
                "commit": surroundings["commit"],
                "created": now,
                "dtype": str(task.dtype).removeprefix("torch."),
            }
        )
    return lines


def _pictures(job: Job, fleet: Fleet) -> list[dict[str, Any]]:
    replica = job.replicas[0]
    alone = fleet.task.build([replica.seed])
    alone.load_state_dict({name: value[:1] for name, value in fleet.model.state_dict().items()})
    label = {"task": job.task, "task_settings": fleet.task.settings, "budget": job.budget}
    label |= {"optimizer": job.optimizer, "variant": replica.variant, "seed": replica.seed}
    return [{**label, **picture} for picture in fleet.task.picture(alone)]


def _traces(fleet: Fleet) -> dict[str, list[float]]:
    passes, rpes, rates = zip(*fleet.traces, strict=True) if fleet.traces else ((), (), ())
    return {"passes": list(passes), "rpe": _short(rpes), "learning_rate": _short(rates)}


def _short(values: Iterable[float]) -> list[float]:
    """Six significant digits are more than any figure shows, and keep the records small."""
    return [float(f"{value:.6g}") for value in values]


def _key(record: dict[str, Any]) -> str:
    settings = [record[k] for k in ("task", "task_settings", "optimizer", "variant", "role", "seed", "budget")]
    return json.dumps([*settings, record["settings"]["lr"]], sort_keys=True)


def _keys(job: Job) -> list[str]:
    settings = make_task(job.task, **job.task_settings).settings
    common = {"task": job.task, "task_settings": settings, "optimizer": job.optimizer, "budget": job.budget}
    return [_key({**common, **r._asdict(), "settings": {"lr": r.lr}}) for r in job.replicas]


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by the key of their run."""
    records = read_records(folder / "records.jsonl", ("task", "settings", "role", "seed", "budget")).records
    return {_key(record): record for record in records}


def record_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """The record of a job of one replica, or None where it is not finished."""
    return recorded(folder).get(_keys(job)[0])


def unfinished(jobs: Iterable[Job], folder: Path) -> list[Job]:
    """The jobs that have a replica without a record, the longest first."""
    done = recorded(folder)
    return sorted((job for job in jobs if any(key not in done for key in _keys(job))), key=lambda job: -job.work)


def checkpoint_folder(folder: Path) -> Path:
    """Where the checkpoints of a folder lie; made if missing, and without what a kill has left half written."""
    checkpoints = within(folder, "checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    discard_leftovers(checkpoints)
    return checkpoints


class Crew:
    """Worker processes that take one job after another, since starting one costs as much as a small job.

    Args:
        workers: how many processes, each of one thread.
    """

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.stop = context.Event()
        self.processes: dict[Connection, Any] = {}
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(theirs, self.stop, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self.processes[ours] = process

    def __enter__(self) -> Crew:
        """The crew itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let every worker save a checkpoint and end."""
        self.stop.set()
        for connection, process in self.processes.items():
            connection.close()
            process.join()

    def run(self, jobs: Iterable[Job], folder: Path, progress: Callable[[int, int, list[str]], None]) -> None:
        """Run all jobs that are not done yet, and append their records.

        Args:
            jobs: what to run; see `unfinished`.
            folder: where `records.jsonl`, `pictures.jsonl` and `checkpoints/` lie; made if missing.
            progress: called with replica-passes done, replica-passes in all, and the names of the running jobs.

        Raises:
            RuntimeError: a worker failed; what is finished is kept.
        """
        jobs, checkpoints = list(jobs), checkpoint_folder(folder)
        waiting, known = unfinished(jobs, folder), recorded(folder)
        for job in jobs:  # a kill between the record and this had left it
            if job not in waiting:
                (checkpoints / f"{job.name}.pt").unlink(missing_ok=True)
        total, finished = sum(job.work for job in waiting), 0
        running: dict[Connection, Job] = {}
        done: dict[Connection, int] = {}
        while waiting or running:
            for connection in [c for c in self.processes if c not in running][: len(waiting)]:
                running[connection], done[connection] = waiting.pop(0), 0
                connection.send((running[connection], checkpoints))
            for connection in wait(list(running), timeout=1.0):
                assert isinstance(connection, Connection)
                job = running[connection]
                message = self._receive(connection, job)
                if isinstance(message, int):
                    done[connection] = message * len(job.replicas)
                    continue
                message.keep(folder, known)
                (checkpoints / f"{job.name}.pt").unlink(missing_ok=True)
                finished += job.work
                del running[connection], done[connection]
            names = [f"{job.task} {job.optimizer}" for job in running.values()]
            progress(finished + sum(done.values()), total, names)

    def _receive(self, connection: Connection, job: Job) -> int | Finished:
        try:
            message = connection.recv()
        except EOFError:
            process = self.processes.pop(connection)
            process.join()
            raise RuntimeError(
                f"the process running {job.name} ended with code {process.exitcode} (killed, or out of memory?); "
                "run the same command again to continue"
            ) from None
        if isinstance(message, str):
            raise RuntimeError(f"{job.name} failed: {message}")
        return message


def _worker(connection: Connection, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and sets `stop`
    torch.set_num_threads(1)

    def stopping() -> bool:
        return stop.is_set() or os.getppid() != parent

    while True:
        try:
            job, checkpoints = connection.recv()
            finished = run_job(job, checkpoints, report=connection.send, stop=stopping)
            if finished is None:
                return
            connection.send(finished)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # nothing more to do, or the parent is gone; the checkpoint is what remains
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
