"""The runner: records are complete, a killed run goes on where it stopped, tuning never meets
reported seeds.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dopaminergic.lab.cli import main
from dopaminergic.lab.experiments import Study, run_studies, studies
from dopaminergic.lab.records import read_records
from dopaminergic.lab.runner import Job, Replica, run_job, unfinished
from dopaminergic.lab.tuning import best_learning_rate, score

STUDY = Study("xor-2-8-1", {}, 3000, 1, 2, ("dopamine", "wp", "adam"))
COMPARE = ["compare", "--task", "xor-2-8-1", "--optimizers", "dopamine,wp,adam", "--seeds", "2"]
COMPARE += ["--tuning-seeds", "1", "--budget", "3000", "--json", "--out"]


def silent(*now: Any) -> None:
    """No progress bar."""


def without_circumstances(records: list[dict[str, Any]]) -> list[str]:
    """Records without the time of day and the like, in an order of their own."""
    drop = ("seconds", "created", "commit", "versions")
    return sorted(
        json.dumps({k: v for k, v in r.items() if k not in drop}, sort_keys=True) for r in records
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study by its command, which nobody interrupts."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert main([*COMPARE, str(folder), "--workers", "1"]) == 0
    return folder


def test_every_replica_has_a_record(folder: Path) -> None:
    records = read_records(folder / "records.jsonl").records
    tuning = [r for r in records if r["role"] == "tuning"]
    report = [r for r in records if r["role"] == "report"]
    assert len(tuning) == 3 * 7
    assert len(report) == 2 * 2 + 2 + 2  # Dopamine by default and tuned, the others tuned
    assert {r["seed"] for r in tuning}.isdisjoint({r["seed"] for r in report})
    assert all(
        r["forward_passes"] <= 3000 and r["curve"]["passes"][-1] == r["forward_passes"]
        for r in records
    )
    assert all(r["versions"]["torch"] and r["settings"]["lr"] > 0 for r in records)
    assert not list((folder / "checkpoints").iterdir())


def test_a_finished_plan_is_not_run_again(folder: Path) -> None:
    before = (folder / "records.jsonl").read_bytes()
    run_studies([STUDY], folder, workers=1, progress=silent)
    assert (folder / "records.jsonl").read_bytes() == before


def test_the_tuned_rate_is_the_one_with_the_best_score(folder: Path) -> None:
    records = read_records(folder / "records.jsonl").records
    best = best_learning_rate(records, "xor-2-8-1", {}, "adam", 3000)
    scores = {}
    for record in records:
        if record["role"] == "tuning" and record["optimizer"] == "adam":
            scores.setdefault(record["settings"]["lr"], []).append(record)
    assert score(scores[best], True) == min(score(runs, True) for runs in scores.values())
    with pytest.raises(ValueError, match="no tuning records of sgd"):
        best_learning_rate(records, "xor-2-8-1", {}, "sgd", 3000)


def test_a_stopped_job_goes_on_and_ends_as_if_never_stopped(tmp_path: Path) -> None:
    job = Job(
        "lorenz",
        {},
        "dopamine2",
        400,
        (Replica(1, 1.5, "default", "report"), Replica(2, 0.5, "tuned", "report")),
    )
    whole = run_job(job, tmp_path, silent, stop=lambda: False)
    assert run_job(job, tmp_path, silent, stop=lambda: True, seconds=0.0) is None
    assert (tmp_path / f"{job.name}.pt").exists()
    rest = run_job(job, tmp_path, silent, stop=lambda: False)
    assert whole is not None
    assert rest is not None
    assert without_circumstances(whole.records) == without_circumstances(rest.records)


def test_a_record_cut_in_the_middle_is_run_again(folder: Path, tmp_path: Path) -> None:
    content = (folder / "records.jsonl").read_bytes()
    (tmp_path / "records.jsonl").write_bytes(content[:-40])
    jobs = STUDY.tuning_jobs() + STUDY.report_jobs(read_records(folder / "records.jsonl").records)
    assert len(unfinished(jobs, folder)) == 0
    assert len(unfinished(jobs, tmp_path)) == 1


def test_what_has_nothing_to_tune_is_reported_once() -> None:
    study = Study("xor-2-8-1", {}, 300, 2, 3, ("vector",))
    assert study.tuning_jobs() == []
    [job] = study.report_jobs([])
    assert [replica[1:] for replica in job.replicas] == [(1.0, "default", "report")] * 3


def test_large_networks_are_split_into_fleets_of_which_the_first_has_the_pictures() -> None:
    jobs = Study("lorenz-vpt", {}, 300, 1, 10, ("vector",)).report_jobs([])
    assert [len(job.replicas) for job in jobs] == [3, 3, 3, 1]
    assert [job.picture for job in jobs] == [True, False, False, False]
    assert [replica.seed for job in jobs for replica in job.replicas] == list(range(5000, 5010))


def test_fleets_of_any_size_give_the_same_records(tmp_path: Path) -> None:
    """Sums of a batched product may run in another order than those of a single one, hence float64
    and a tolerance.
    """
    replicas = tuple(Replica(seed, 1.0, "default", "report") for seed in (1, 2, 3))
    job = Job("xor-2-8-1", {"dtype": "float64"}, "vector", 200, replicas, picture=True)
    whole = run_job(job, tmp_path, silent, stop=lambda: False)
    parts = [
        run_job(job._replace(replicas=(one,)), tmp_path, silent, stop=lambda: False)
        for one in replicas
    ]
    assert whole is not None
    for record, part in zip(whole.records, parts, strict=True):
        assert part is not None
        assert record["curve"]["passes"] == part.records[0]["curve"]["passes"]
        assert record["curve"]["error"] == pytest.approx(
            part.records[0]["curve"]["error"], rel=1e-4
        )
        assert record["solved_at"] == part.records[0]["solved_at"]
    assert min(whole.records[0]["traces"]["learning_rate"]) > 0
    assert whole.records[1]["traces"] is None


def test_rates_are_chosen_among_runs_of_the_same_budget(folder: Path) -> None:
    records = read_records(folder / "records.jsonl").records
    longer = [
        record | {"budget": 6000, "solved_at": 1}
        for record in records
        if record["settings"]["lr"] == 0.0003
    ]
    assert best_learning_rate(records + longer, "xor-2-8-1", {}, "adam", 6000) == 0.0003
    assert best_learning_rate(records + longer, "xor-2-8-1", {}, "adam", 3000) > 0.0003


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = ["train", "--task", "continuous-xor", "--optimizer", "vector", "--budget", "5000"]
TRAIN += ["--json", "--out"]


def started(
    command: list[str], folder: Path, *more: str, group: bool = False
) -> subprocess.Popen[bytes]:
    """A command in a process of its own, and in a process group of its own if asked for."""
    return subprocess.Popen(
        [sys.executable, "-m", "dopaminergic", *command, str(folder), *more],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=group,
    )


def whole_lines(folder: Path) -> list[bytes]:
    """The records that are written to their end by now."""
    file = folder / "records.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_nothing_is_lost_however_often_a_command_is_killed(tmp_path: Path, folder: Path) -> None:
    """As soon as another run is recorded, it is killed; in the end all is as if it never was.

    First with all its workers at once, as where a batch job runs out of time. Then the command
    alone, whose worker outlives it for a while. Then by Ctrl-C.
    """
    cut = tmp_path / "cut"
    after: list[bytes] = []
    kills: list[tuple[Callable[[int], None], int, str]] = [
        (lambda process: os.killpg(process, signal.SIGKILL), -signal.SIGKILL, "2"),
        (lambda process: os.kill(process, signal.SIGKILL), -signal.SIGKILL, "1"),
        (lambda process: os.kill(process, signal.SIGINT), 130, "1"),
    ]
    for kill, code, workers in kills:
        before = after
        process = started(COMPARE, cut, "--workers", workers, group=True)
        while process.poll() is None and len(whole_lines(cut)) <= len(before):
            time.sleep(0.01)
        assert process.poll() is None, "it has ended before it could be killed"
        kill(process.pid)
        process.communicate()
        assert process.returncode == code
        after = whole_lines(cut)
        assert after[: len(before)] == before
        assert 0 < len(after) < len(whole_lines(folder))  # one being written is taken back
    assert main([*COMPARE, str(cut), "--workers", "1"]) == 0
    assert whole_lines(cut)[: len(after)] == after
    ours, theirs = (read_records(each / "records.jsonl").records for each in (cut, folder))
    assert without_circumstances(ours) == without_circumstances(theirs)
    ours, theirs = (read_records(each / "pictures.jsonl").records for each in (cut, folder))
    assert set(without_circumstances(ours)) == set(without_circumstances(theirs))
    assert not list((cut / "checkpoints").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_training_of_vector_dopamine_resumes_after_ctrl_c(tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = started(TRAIN, cut)
    while process.poll() is None and not (cut / "checkpoints").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # the folder is there just before the first step
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode().strip().splitlines()[-1]
    assert process.returncode == 130
    [checkpoint] = (cut / "checkpoints").iterdir()
    again = shlex.join(["dopaminergic", *TRAIN, str(cut), "--resume"])
    assert said == f"interrupted at the checkpoint {checkpoint}; to continue: {again}"
    assert not (cut / "records.jsonl").exists()
    assert main([*TRAIN, str(cut), "--resume"]) == 0
    assert main([*TRAIN, str(whole)]) == 0
    ours, theirs = (read_records(each / "records.jsonl").records for each in (cut, whole))
    assert without_circumstances(ours) == without_circumstances(theirs)
    assert ours[0]["variant"] == "default"
    assert 5000 - 514 < ours[0]["forward_passes"] <= 5000


@pytest.mark.parametrize("size", ["quick", "default", "full"])
@pytest.mark.parametrize("part", ["xor", "chaos", "all"])
def test_plans_hold_what_they_are_for(part: str, size: str) -> None:
    plan = studies(part, size)
    tasks = {study.task for study in plan}
    assert ("lorenz" in tasks) == (part != "xor")
    assert ("xor-2-8-1" in tasks) == (part != "chaos")
    alone = [s for s in plan if not {"dopamine2", "wp", "adam"} <= set(s.optimizers)]
    assert {(s.task, str(s.settings.get("hidden", ""))) for s in alone} == (
        {
            ("lorenz", "32"),
            ("digits", ""),
            ("lorenz-vpt", ""),
            ("rossler-vpt", ""),
            ("mackey-glass-vpt", ""),
        }
        if size == "full" and part != "xor"
        else {("markov-transformer", "")}
        if size == "quick" and part != "xor"
        else set()
    )
    for name in ("vector", "node"):
        reached = {s.task for s in plan if name in s.optimizers}
        left_out = {task for task in tasks - reached if name == "node" and task.endswith("-vpt")}
        left_out |= (
            {"markov-transformer"}
            if name == "node" and size == "quick" and part != "xor"
            else set()
        )
        assert tasks - reached == left_out
    if size == "full":
        long = (
            "digits",
            "digits-conv",
            "markov-transformer",
            "mnist1d",
            "threshold-digits",
            "lorenz-vpt",
            "rossler-vpt",
            "mackey-glass-vpt",
        )
        assert all(s.report_seeds >= 20 for s in plan if s.task not in long)
        assert (part == "xor") == (
            not {("digits", 30_000), ("digits", 10_000)} <= {(s.task, s.budget) for s in plan}
        )
        keys = [(s.task, str(s.settings), s.budget, name) for s in plan for name in s.optimizers]
        assert len(keys) == len(set(keys))
