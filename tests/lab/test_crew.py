"""Worker processes that the system kills: it is said, their jobs run again, and nothing is missing
without a word.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from dopaminergic.lab.cli import main
from dopaminergic.lab.crew import Crew
from dopaminergic.lab.records import read_records
from dopaminergic.lab.runner import Job, Replica, run_job

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="POSIX signals, and /proc"
)

JOBS = [
    Job("xor-2-8-1", {}, optimizer, 500, (Replica(1, 0.01, "tuned", "report"),))
    for optimizer in ("wp", "adam")
]
COMMAND = ["compare", "--task", "xor-2-8-1", "--optimizers", "vector"]
COMMAND += ["--seeds", "1", "--budget", "200000", "--workers", "1", "--json", "--out"]


def silent(*now: Any) -> None:
    """No progress bar."""


def essence(records: list[dict[str, Any]]) -> list[str]:
    """Records without the time of day and the like, in an order of their own."""
    drop = ("seconds", "created", "commit", "versions")
    return sorted(
        json.dumps({k: v for k, v in r.items() if k not in drop}, sort_keys=True) for r in records
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The records of the jobs, as they are without a kill."""
    finished = [
        run_job(job, tmp_path_factory.mktemp("whole"), silent, stop=lambda: False) for job in JOBS
    ]
    return essence([record for each in finished if each is not None for record in each.records])


def test_workers_that_are_killed_idle_or_in_the_midst_of_a_job_are_said_and_the_job_runs_again(
    tmp_path: Path, whole: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Crew(1) as crew, caplog.at_level(logging.WARNING):
        [idle] = crew.processes.values()
        os.kill(idle.pid, signal.SIGKILL)
        idle.join()
        killed = [idle]

        def kill(done: int, total: int, names: list[str]) -> None:
            [worker] = crew.processes.values()
            if names and done > 0 and len(killed) < 2:
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
                killed.append(worker)

        crew.run(JOBS, tmp_path, kill)
    assert essence(read_records(tmp_path / "records.jsonl").records) == whole
    assert (len(killed), len(caplog.messages)) == (2, 2)
    for warning in caplog.messages:
        assert "ended by signal 9 (out of memory?); it is started again" in warning
    assert not list((tmp_path / "checkpoints").iterdir())


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


def test_a_command_whose_workers_are_killed_each_time_fails_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The command runs here, and a thread kills each worker that it starts."""
    before, ended = set(workers_of(os.getpid())), threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not ended.wait(0.01):
            for worker in set(workers_of(os.getpid())) - before - killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        code = main([*COMMAND, str(tmp_path)])
    finally:
        ended.set()
        killer.join()
    output, said = capsys.readouterr()
    assert (code, output, len(killed)) == (2, "", 3)
    said += "".join(caplog.messages)
    assert said.count("ended by signal 9") == 3
    assert "run the same command again, with fewer --workers, to continue" in said
    assert not (tmp_path / "report.html").exists()
