"""Files beside those of others: links, races, forks, FIFOs and forged lengths cost nobody
anything.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine, Journal, replay
from dopaminergic.files import NotAFileError, open_file, replacing, shown
from dopaminergic.journal import JournalError, read
from dopaminergic.journal.format import ALL_EQUAL, HAS_TRACES, Codec, varint
from dopaminergic.lab.costs import peak_memory
from dopaminergic.lab.records import read_costs, read_records, write_whole
from dopaminergic.lab.schema import SchemaError
from dopaminergic.lab.terminal import clean

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and processes")


def begun(path: Path, size: int = 9, noise: str = "rademacher") -> tuple[nn.Parameter, Dopamine]:
    weights = nn.Parameter(torch.linspace(-1, 1, size))
    return weights, Dopamine([weights], noise=noise)


@posix
def test_a_link_that_was_planted_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    for name in ("run.journal.new", "dangling.journal"):
        (tmp_path / name).symlink_to(tmp_path / ("thesis" if name.endswith(".new") else "nothing"))
    weights, optimizer = begun(tmp_path)
    with Journal(optimizer, tmp_path / "run.journal"):
        optimizer.step(lambda: weights.square().sum())
    with pytest.raises(FileExistsError, match="exists; pass resume=True"):
        Journal(optimizer, tmp_path / "dangling.journal")
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert not (tmp_path / "nothing").exists()
    assert sorted(os.listdir(tmp_path)) == [
        "dangling.journal",
        "run.journal",
        "run.journal.new",
        "thesis",
    ]


@posix
# JAX, if it is loaded already.
@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
def test_a_fork_leaves_its_parents_journal_alone(path: Path) -> None:
    weights, optimizer = begun(path)

    def step() -> None:
        optimizer.step(lambda: weights.square().sum())

    with Journal(optimizer, path) as journal:
        step()
        child = os.fork()
        if not child:
            try:
                step()
            except JournalError:
                journal.close()
                step()
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        step()
    assert (read(path).steps, read(path).damage) == (2, None)


@pytest.mark.parametrize(("noise", "size"), [("rademacher", 9), ("gaussian", 300_000)])
def test_two_journals_of_one_optimizer_can_both_be_replayed(
    noise: str, size: int, tmp_path: Path
) -> None:
    weights, optimizer = begun(tmp_path, size, noise)
    first, second = (
        Journal(optimizer, tmp_path / "a", every=5),
        Journal(optimizer, tmp_path / "b", every=5),
    )
    ends = []
    for journal in (first, second):
        for _ in range(6):
            optimizer.step(lambda: weights[:9].square().sum())
        journal.close()
        ends.append(weights.detach().clone())
    for name, end in zip("ab", ends, strict=True):
        twin = begun(tmp_path, size, noise)[0]
        replay([twin], tmp_path / name)
        assert torch.equal(twin, end)


def test_numbers_that_stand_for_many_share_their_memory() -> None:
    codec = Codec(groups=2, replicas=3000)
    step = codec.read_step(bytes([ALL_EQUAL]) + varint(65_536) + bytes(8))
    assert len(step.terms) == 65_536
    assert len({id(row) for _, row in step.terms}) == 1
    codec.displacement = bytes(codec.width)
    traced = codec.read_step(bytes([HAS_TRACES]) + varint(0) + varint(1000) + varint(3) * 1000)
    assert len({id(row) for terms in traced.traces for _, row in terms}) == 1
    with pytest.raises(JournalError, match="more than 384 MiB"):
        Codec(1 << 20, 1 << 20).read_step(bytes([ALL_EQUAL]) + varint(1) + bytes(8))


@posix
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for function in (open_file, read, read_records, read_costs):
        with pytest.raises(NotAFileError, match="pipe is a FIFO, not a file"):
            function(tmp_path / "pipe")
        with pytest.raises(NotAFileError, match="is a folder, not a file"):
            function(tmp_path)
    with pytest.raises(NotAFileError, match="is a device"):
        open_file("/dev/zero")


def test_names_as_long_as_they_may_be_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_whole(path, "content")
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError
    assert [(each, each.read_text()) for each in tmp_path.iterdir()] == [(path, "content")]


@pytest.mark.parametrize(
    "text", ["\x1b]52;c;YQ==\x07", "\ud800", "\u202eevil", "\x9b31m", "a\x7f", "line\r"]
)
def test_text_of_others_has_no_control_characters(text: str) -> None:
    assert shown(text).isprintable()
    shown(text).encode()
    assert shown("Rössler [l/s], 日本") == "Rössler [l/s], 日本"
    assert clean(f"one\r\ntwo\n{text}") == f"one two {shown(text)}"


@pytest.mark.parametrize("text", ["नमस्ते क\u200dष", "खवा\u200cब", "👩\u200d🔬", "a\u00a0b"])
def test_joiners_within_words_and_pictures_stay(text: str) -> None:
    assert shown(text) == clean(text) == text


def test_a_record_that_is_no_record_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for text in (
        '"curve": 1',
        '"seed": -1',
        '"metrics": {"a": []}',
        '"budget": 1e999',
        '"curve": {"passes": [1]}',
    ):
        path.write_text('{"task": "a"}\n{"task": "b", ' + text + "}\n")
        with pytest.raises(SchemaError, match=r"records.jsonl, line 2: '\w+' must be .*, got "):
            read_records(path)


def test_a_measurement_that_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert peak_memory("nobody", 1000) is None
    assert "the memory of nobody ended with code 1" in caplog.text


@posix
def test_some_hundred_damaged_journals_and_records_end_in_words() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--count", "120", "--kinds", "journal,record"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
