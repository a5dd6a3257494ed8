"""Runs a fleet to the end of its budget, and writes a record for each replica.

No finished work is lost: finished runs are lines in `records.jsonl`, unfinished ones are
checkpoints beside it. A rerun of the same plan skips the first and continues the second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Container, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dopaminergic import __version__
from dopaminergic.files import discard_leftovers
from dopaminergic.lab.allocator import keep_memory
from dopaminergic.lab.fleet import CheckpointError, Fleet
from dopaminergic.lab.records import SCHEMA, append_records, read_records, within
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.task import Model

CHECKPOINT_SECONDS = float(os.environ.get("DOPAMINERGIC_CHECKPOINT_SECONDS", "15"))
TRACED = ("dopamine", "dopamine2", "vector", "node")


class Replica(NamedTuple):
    """One run: its seed, its learning rate, and its role."""

    seed: int
    lr: float
    variant: str
    role: str


class Job(NamedTuple):
    """One fleet.

    Attributes:
        task: name in `TASKS`.
        task_settings: those that differ from the task's defaults, such as `{"hidden": 64}`.
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
    """Versions, commit and machine, for the origin of a record."""
    versions = {
        "dopaminergic": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    surroundings = {"platform": platform.platform(), "threads": torch.get_num_threads()}
    return {"versions": versions, "commit": _commit(), **surroundings}


def _commit() -> str | None:
    """The commit of this library's own checkout.

    It is None where it is installed, for example within the repository of a user.
    """
    here = Path(__file__).resolve().parent
    root = here.parents[2]
    try:
        ours = root / "src" / "dopaminergic" / "lab" == here
        if not ours or 'name = "dopaminergic"' not in (root / "pyproject.toml").read_text("utf-8"):
            return None
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None  # without git the version must do


def _git(folder: Path, *arguments: str) -> str:
    # A hook of git runs with the paths of another repository in its environment.
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
    return done.stdout.strip()


class Finished(NamedTuple):
    """The output of a job: lines for `records.jsonl` and for `pictures.jsonl`."""

    records: list[dict[str, Any]]
    pictures: list[dict[str, Any]]

    def keep(self, folder: Path, known: Container[str] = ()) -> None:
        """Append the lines, without records whose key is `known`.

        A kill in the midst of writing had left those.
        """
        # Pictures first: a kill between the two repeats the job, and a repeated picture replaces
        # the first.
        if self.pictures:
            append_records(folder / "pictures.jsonl", self.pictures)
        append_records(
            folder / "records.jsonl",
            [record for record in self.records if _key(record) not in known],
        )


def run_job(
    job: Job,
    checkpoints: Path,
    report: Callable[[int], None],
    stop: Callable[[], bool],
    seconds: float = 0.25,
    at_end: Callable[[Fleet], None] | None = None,
) -> Finished | None:
    """Run one fleet from its checkpoint, if it has one.

    Args:
        job: the job to run.
        checkpoints: folder for the checkpoint; a damaged one is named in the log, and the run
            starts over.
        report: called every so often with the forward passes so far.
        stop: asked every so often; if true, save and return.
        seconds: how often that is; 0: after every step.
        at_end: called with the trained fleet before the lines are returned.

    Returns:
        The lines to keep, or None if it was stopped.
    """
    keep_memory()
    task = make_task(job.task, **job.task_settings)
    seeds = [r.seed for r in job.replicas]
    rates = [r.lr for r in job.replicas]
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
    if at_end is not None:
        at_end(fleet)
    pictures = _pictures(job, fleet) if job.picture else []
    return Finished(_records(job, fleet, time.monotonic() - began), pictures)


def _records(job: Job, fleet: Fleet, seconds: float) -> list[dict[str, Any]]:
    metrics = fleet.metrics()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    surroundings = environment()
    task = fleet.task
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


def first_network(fleet: Fleet) -> Model:
    """The network of the first replica, as a plain one."""
    alone = fleet.task.build(fleet.seeds[0])
    alone.load_state_dict({name: value[0] for name, value in fleet.model.state_dict().items()})
    return alone


def _traces(fleet: Fleet) -> dict[str, list[float]]:
    passes, rpes, rates = zip(*fleet.traces, strict=True) if fleet.traces else ((), (), ())
    return {"passes": list(passes), "rpe": _short(rpes), "learning_rate": _short(rates)}


def _short(values: Iterable[float]) -> list[float]:
    """Numbers with six significant digits, for small records.

    Any figure shows fewer.
    """
    return [float(f"{value:.6g}") for value in values]


def _key(record: dict[str, Any]) -> str:
    settings = [
        record[k]
        for k in ("task", "task_settings", "optimizer", "variant", "role", "seed", "budget")
    ]
    return json.dumps([*settings, record["settings"].get("lr")], sort_keys=True)


def _keys(job: Job) -> list[str]:
    settings = make_task(job.task, **job.task_settings).settings
    common = {
        "task": job.task,
        "task_settings": settings,
        "optimizer": job.optimizer,
        "budget": job.budget,
    }
    return [_key({**common, **r._asdict(), "settings": {"lr": r.lr}}) for r in job.replicas]


def keys_of(job: Job) -> list[str]:
    """The keys of the records of a job, as in `recorded`."""
    return _keys(job)


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by the key of their run."""
    required = (
        "task",
        "task_settings",
        "optimizer",
        "variant",
        "role",
        "seed",
        "budget",
        "settings",
    )
    records = read_records(folder / "records.jsonl", required, as_written=True).records
    return {_key(record): record for record in records}


def record_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """The record of a job of one replica, or None where it is not finished."""
    return recorded(folder).get(_keys(job)[0])


def unfinished(jobs: Iterable[Job], folder: Path) -> list[Job]:
    """The jobs that have a replica without a record, the longest first."""
    done = recorded(folder)
    return sorted(
        (job for job in jobs if any(key not in done for key in _keys(job))),
        key=lambda job: -job.work,
    )


def checkpoint_folder(folder: Path) -> Path:
    """The folder where the checkpoints of a folder lie.

    It is made if missing, and cleared of files that a kill has left half written.
    """
    checkpoints = within(folder, "checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    discard_leftovers(checkpoints)
    return checkpoints
