"""Files that come from a full disk, a failing one, or a stranger: nothing is lost, run, followed or
believed unseen.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import everything, pictures
from test_runner import silent, without_circumstances

from dopaminergic.lab import fleet as fleet_module
from dopaminergic.lab.cli import main
from dopaminergic.lab.fleet import CheckpointError, Fleet
from dopaminergic.lab.records import (
    append_records,
    discard_leftovers,
    read_costs,
    read_records,
    sealed,
    write_whole,
)
from dopaminergic.lab.report import write_report
from dopaminergic.lab.runner import Job, Replica, run_job
from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.training import train

RECORDS = [
    {"task": "xor", "seed": seed, "error": 0.125 + seed, "values": [1.5, None]} for seed in range(4)
]


def trained(folder: Path, resume: bool = True) -> dict[str, Any]:
    return train("xor-2-8-1", {}, "wp", lr=None, seed=0, budget=60, folder=lambda: folder,
                 resume=resume,
                 progress=silent)  # fmt: skip


# ---- bits that flip ------------------------------------------------------------------------------


def test_a_flipped_bit_costs_a_line_and_never_changes_one(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_records(path, RECORDS)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = read_records(path)
        # A flip in the name of the check itself leaves the line readable, as lines of older
        # versions are.
        known = [{key: record.get(key) for key in RECORDS[0]} for record in found.records]
        assert all(record in RECORDS for record in known), bit
        assert len(known) >= len(RECORDS) - 2, bit  # two where it was the end of a line


def test_a_flipped_bit_in_the_costs_is_found(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    row = {"optimizer": "wp", "task": "lorenz", "passes_per_step": 2, "time_over_two_forwards": 0.5}
    costs = {"rows": [row | {"peak_memory_over_inference": None}]}
    write_whole(path, sealed(costs))
    assert read_costs(path) == costs
    write_whole(path, path.read_bytes().replace(b"0.5", b"0.7"))
    with pytest.raises(ValueError, match="damaged"):
        read_costs(path)


def test_a_flipped_bit_in_a_checkpoint_is_found_and_the_run_starts_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job("xor-2-8-1", {}, "dopamine", 60, (Replica(1, 1.0, "tuned", "report"),))
    whole = run_job(job, tmp_path, silent, stop=lambda: False)
    path, task = tmp_path / f"{job.name}.pt", make_task("xor-2-8-1")
    begun = Fleet(task, "dopamine", [1], [1.0], 60)
    begun.step()
    begun.save(path)
    content, chance = path.read_bytes(), random.Random(0)
    for _ in range(40):
        flipped, bit = bytearray(content), chance.randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            begun.load(path)
    assert begun.passes == 2
    again = run_job(job, tmp_path, silent, stop=lambda: False)
    assert path.name in caplog.text
    assert whole is not None
    assert again is not None
    assert without_circumstances(whole.records) == without_circumstances(again.records)


# ---- disks that are full, folders that cannot be written -----------------------------------------


@pytest.fixture
def no_room() -> Any:
    """A function that lets no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_that_do_not_fit_leave_the_file_as_it_was(
    tmp_path: Path, no_room: Callable[[int], None]
) -> None:
    path = tmp_path / "records.jsonl"
    append_records(path, RECORDS)
    content = path.read_bytes()
    no_room(len(content) + 30)
    with pytest.raises(OSError, match="File too large"):
        append_records(path, RECORDS)
    with pytest.raises(OSError, match="File too large"):
        write_whole(path, content * 2)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["records.jsonl"]


def test_a_full_disk_is_an_error_before_any_work(
    tmp_path: Path, no_room: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    no_room(1000)
    assert (
        main(["train", "--task", "xor-2-8-1", "--optimizer", "wp", "--out", str(tmp_path / "out")])
        == 2
    )
    assert "cannot write there (File too large)" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".a.pt.{ended.pid}.tmp", f".a.pt.{os.getpid()}.tmp", ".notes.tmp", "a.pt"]
    for name in names:
        (tmp_path / name).touch()
    discard_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


# ---- resuming ------------------------------------------------------------------------------------


def test_a_run_that_is_done_is_not_run_again_by_resume(tmp_path: Path) -> None:
    first = trained(tmp_path)
    assert read_records(tmp_path / "records.jsonl").records == [first]
    left = tmp_path / "checkpoints" / f"{_job().name}.pt"
    # A kill had come before its end.
    Fleet(make_task("xor-2-8-1"), "wp", [0], [_job().replicas[0].lr], 60).save(left)
    assert trained(tmp_path) == first
    assert not left.exists()
    trained(tmp_path, resume=False)
    assert len(read_records(tmp_path / "records.jsonl").records) == 2


def _job() -> Job:
    from dopaminergic.lab.optimizers import grid_of

    grid = grid_of("wp", "xor-2-8-1")
    return Job(
        "xor-2-8-1",
        {},
        "wp",
        60,
        (Replica(0, grid[len(grid) // 2], "tuned", "report"),),
        picture=True,
    )


def test_records_that_a_kill_had_left_are_not_written_twice(tmp_path: Path) -> None:
    replicas = tuple(Replica(seed, 1.0, "tuned", "report") for seed in (1, 2, 3))
    job = Job("xor-2-8-1", {}, "dopamine", 60, replicas)
    whole = run_job(job, tmp_path, silent, stop=lambda: False)
    assert whole is not None
    whole.keep(tmp_path)
    content = (tmp_path / "records.jsonl").read_bytes()
    (tmp_path / "records.jsonl").write_bytes(content[: content.index(b"\n") + 50])
    from dopaminergic.lab.runner import recorded

    whole.keep(tmp_path, recorded(tmp_path))
    assert sorted(map(json.dumps, read_records(tmp_path / "records.jsonl").records)) == sorted(
        map(json.dumps, whole.records)
    )


# ---- strangers -----------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["MALICIOUS"],)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_does_not_run_it(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose hash is right, as whoever made it can see to."""
    monkeypatch.setenv("MALICIOUS", str(tmp_path / "owned"))
    content = io.BytesIO()
    (torch.save if form == "torch" else pickle.dump)({"model": Malicious()}, content)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(fleet_module.with_header(content.getvalue()))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        Fleet(make_task("xor-2-8-1"), "wp", [1], [0.1], 60).load(path)
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Malicious()))  # it would have
    assert (tmp_path / "owned").exists()


def test_nothing_in_the_package_loads_what_could_run() -> None:
    source = Path(fleet_module.__file__).parents[1]
    text = {path: path.read_text() for path in source.rglob("*.py")}
    refused = ("pickle.load", "yaml.load", "eval(", "np.load(")
    bare = {path: code.replace("model.eval()", "") for path, code in text.items()}
    assert not [path for path, code in bare.items() if any(each in code for each in refused)]
    loads = [line for code in text.values() for line in code.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)


@pytest.mark.parametrize("name", ["records.jsonl", "checkpoints", "figures"])
def test_links_are_not_followed_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    if name == "records.jsonl":
        outside.write_text("")
    else:
        outside.mkdir()
    if name == "figures":
        append_records(folder / "records.jsonl", everything())
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        write_report(folder) if name == "figures" else trained(folder)
    assert outside.read_text() == "" if outside.is_file() else not list(outside.iterdir())


def test_a_file_that_is_replaced_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("theirs")
    for name in ("report.html", f".report.html.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    write_whole(tmp_path / "report.html", "ours")
    assert (tmp_path / "outside").read_text() == "theirs"
    assert (tmp_path / "report.html").read_text() == "ours"


def hostile(value: Any) -> Any:
    """Every string made into a script, but for those that decide what is drawn at all."""
    if isinstance(value, dict):
        return {
            key: each if key in ("role", "name", "created") else hostile(each)
            for key, each in value.items()
        } | ({"<script>k</script>": 0.5} if value and "passes" not in value else {})
    return f"../<script>{value}" if isinstance(value, str) else value


# Such names leave no room for axes.
@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_no_string_of_a_record_becomes_html_or_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    append_records(folder / "records.jsonl", [hostile(record) for record in everything()])
    append_records(folder / "pictures.jsonl", pictures())
    costs = {"rows": [], "environment": {"<script>a</script>": "<script>b</script>"}}
    write_whole(folder / "costs.json", sealed(costs))
    page = write_report(folder, commands=["<script>c</script>"]).read_text()
    assert page.count("<script") == 1  # the page's own
    assert all(
        f"&lt;script&gt;{word}" in page
        for word in ("a&", "b&", "c&", "k&", "wp", "2.13", "abc123", "float32")
    )
    assert sorted(os.listdir(tmp_path)) == ["folder"]
    assert sorted(os.listdir(folder)) == [
        "costs.json", "figures", "pictures.jsonl", "records.jsonl", "report.html", "summary.json"
    ]  # fmt: skip
