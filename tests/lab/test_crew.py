"""Worker processes that the system kills: it is said, their jobs run again, and nothing is missing without a word."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dopaminergic.lab.crew import Crew
from dopaminergic.lab.records import read_records
from dopaminergic.lab.runner import Job, Replica, run_job

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="POSIX signals, and /proc")

JOBS = [Job("xor-2-8-1", {}, optimizer, 500, (Replica(1, 0.01, "tuned", "report"),)) for optimizer in ("wp", "adam")]
COMMAND = [sys.executable, "-m", "dopaminergic", "compare", "--task", "xor-2-8-1", "--optimizers", "vector"]
COMMAND += ["--seeds", "1", "--budget", "200000", "--workers", "1", "--json", "--out"]


def silent(*now: Any) -> None:
    """No progress bar."""


def essence(records: list[dict[str, Any]]) -> list[str]:
    """Records without the time of day and the like, in an order of their own."""
    drop = ("seconds", "created", "commit", "versions")
    return sorted(json.dumps({k: v for k, v in r.items() if k not in drop}, sort_keys=True) for r in records)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The records of the jobs, as they are without a kill."""
    finished = [run_job(job, tmp_path_factory.mktemp("whole"), silent, stop=lambda: False) for job in JOBS]
    return essence([record for each in finished if each is not None for record in each.records])


def test_a_worker_that_is_killed_in_the_midst_of_a_job_is_said_and_the_job_runs_again(
    tmp_path: Path, whole: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Crew(1) as crew, caplog.at_level(logging.WARNING):
        [worker] = crew.processes.values()

        def kill(done: int, total: int, names: list[str]) -> None:
            if names and done > 0 and worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()

        crew.run(JOBS, tmp_path, kill)
    assert essence(read_records(tmp_path / "records.jsonl").records) == whole
    [warning] = caplog.messages
    assert "ended by signal 9 (out of memory?); it is started again" in warning
    assert not list((tmp_path / "checkpoints").iterdir())


def test_idle_workers_that_are_killed_are_replaced(
    tmp_path: Path, whole: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Crew(2) as crew, caplog.at_level(logging.WARNING):
        for worker in crew.processes.values():
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        crew.run(JOBS, tmp_path, silent)
    assert essence(read_records(tmp_path / "records.jsonl").records) == whole
    assert len(caplog.messages) == 2


def workers_of(process: int) -> list[int]:
    """The processes that it has spawned to work; another one looks after its shared resources."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = each.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process and b"spawn_main" in each.joinpath("cmdline").read_bytes():
                found.append(int(each.name))
        except OSError:  # gone by now
            continue
    return found


def test_a_command_whose_workers_are_killed_each_time_fails_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = subprocess.Popen([*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = set()
    while run.poll() is None:
        for worker in workers_of(run.pid):
            if worker not in killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        time.sleep(0.01)
    output, said = run.communicate()
    assert (run.returncode, output, len(killed)) == (2, "", 3)
    assert said.count("ended by signal 9") == 3
    assert "run the same command again, with fewer --workers, to continue" in said
    assert not (tmp_path / "report.html").exists()
