"""Worker processes that run fleets side by side, one job after another.

Workers stop at a checkpoint on Ctrl-C, and when the process that started them is gone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from dopaminergic.lab.runner import Finished, Job, checkpoint_folder, recorded, run_job, unfinished

MOST_LOST = 3  # processes that one job may lose


class Crew:
    """Worker processes that take one job after another.

    Starting a process costs as much as a small job. A worker that is killed, for example when
    memory runs out, is replaced. Its job goes on from its checkpoint.

    Args:
        workers: how many processes, each of one thread.
    """

    def __init__(self, workers: int) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.stop = self.context.Event()
        self.processes: dict[Connection, Any] = {}
        self.lost: Counter[str] = Counter()
        for _ in range(workers):
            self._start()

    def __enter__(self) -> Crew:
        """The crew itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let every worker save a checkpoint and end."""
        self.stop.set()
        for connection, process in self.processes.items():
            connection.close()
            process.join()

    def run(
        self, jobs: Iterable[Job], folder: Path, progress: Callable[[int, int, list[str]], None]
    ) -> None:
        """Run all jobs that are not done yet, and append their records.

        Args:
            jobs: the jobs to run; see `unfinished`.
            folder: where `records.jsonl`, `pictures.jsonl` and `checkpoints/` lie; made if missing.
            progress: called with replica-passes done, replica-passes in all, and the names of the
                running jobs.

        Raises:
            RuntimeError: a job failed, or its worker was killed three times; finished runs are
                kept.
        """
        jobs = list(jobs)
        checkpoints = checkpoint_folder(folder)
        waiting = unfinished(jobs, folder)
        known = recorded(folder)
        for job in jobs:  # a kill between the record and this had left it
            if job not in waiting:
                (checkpoints / f"{job.name}.pt").unlink(missing_ok=True)
        total = sum(job.work for job in waiting)
        finished = 0
        running: dict[Connection, Job] = {}
        done: dict[Connection, int] = {}
        while waiting or running:
            for connection in [c for c in self.processes if c not in running][: len(waiting)]:
                self._hand_out(connection, waiting, running, checkpoints)
            for connection in wait(list(running), timeout=1.0):
                assert isinstance(connection, Connection)
                job = running[connection]
                message = self._receive(connection, job)
                if isinstance(message, int):
                    done[connection] = message * len(job.replicas)
                    continue
                del running[connection]
                done.pop(connection, None)
                if message is None:
                    waiting.insert(0, job)
                    continue
                message.keep(folder, known)
                (checkpoints / f"{job.name}.pt").unlink(missing_ok=True)
                finished += job.work
            names = [f"{job.task} {job.optimizer}" for job in running.values()]
            progress(finished + sum(done.values()), total, names)

    def _start(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_worker, args=(theirs, self.stop, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        self.processes[ours] = process

    def _hand_out(
        self,
        connection: Connection,
        waiting: list[Job],
        running: dict[Connection, Job],
        checkpoints: Path,
    ) -> None:
        """Give the first job to an idle worker.

        If that worker is gone, the job goes on waiting for another.
        """
        try:
            connection.send((waiting[0], checkpoints))
        except OSError:  # killed while it was idle
            self._replace(connection, waiting[0])
        else:
            running[connection] = waiting.pop(0)

    def _receive(self, connection: Connection, job: Job) -> int | Finished | None:
        """The worker's message; None where it has been killed, and another one was started."""
        try:
            message = connection.recv()
        except (EOFError, OSError):  # nothing, the half of a message, or "Connection reset by peer"
            self._replace(connection, job)
            return None
        if isinstance(message, str):
            raise RuntimeError(f"{job.name} failed: {message}")
        return message

    def _replace(self, connection: Connection, job: Job) -> None:
        """Start a worker in the place of one that is gone; raise if that has been so too often."""
        process = self.processes.pop(connection)
        connection.close()
        process.join()
        self.lost[job.name] += 1
        code = process.exitcode
        reason = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        if self.lost[job.name] >= MOST_LOST:
            raise RuntimeError(
                f"the process of {job.name} ended {reason}, the {MOST_LOST}rd in a row (out of "
                "memory?); what is "
                "finished is kept: run the same command again, with fewer --workers, to continue"
            )
        logging.getLogger(__name__).warning(
            "the process of %s ended %s (out of memory?); it is started again and goes on from its "
            "checkpoint",
            job.name,
            reason,
        )
        self._start()


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
            return  # nothing more to do, or the parent is gone; the checkpoint remains
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
