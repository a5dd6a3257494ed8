"""The first minute of the command line: help without torch, a word at once, Ctrl-C that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SPY = """
import sys
from dopaminergic.lab.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
assert not {"torch", "numpy", "pandas", "rich", "matplotlib"} & set(sys.modules), "loaded too early"
sys.exit(status)
"""


def spied(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which fails if torch has been loaded at its end."""
    return subprocess.run(
        [sys.executable, "-c", SPY, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": str(columns)},
    )


@pytest.mark.parametrize("columns", [40, 80])
def test_help_does_not_wait_for_torch_and_fits_the_terminal(columns: int) -> None:
    commands = ("reproduce", "train", "forecast", "compare", "report", "tasks", "journal")
    for words in ([], ["--help"], *([command, "--help"] for command in commands)):
        done = spied(*words, columns=columns)
        assert done.returncode == 0, done.stderr
        assert "examples:\n" in done.stdout
        assert "dopaminergic" in done.stdout
        assert max(len(line) for line in done.stdout.splitlines()) <= columns
    assert spied("--version").stdout.startswith("dopaminergic ")


def test_a_wrong_word_does_not_wait_for_torch_either() -> None:
    done = spied("train", "--budget", "many")
    assert done.returncode == 2
    assert "expected a whole number" in done.stderr


def test_folded_commands_are_one_command_for_a_shell() -> None:
    text = spied("train", "--help", columns=40).stdout.split("examples:\n")[1]
    joined = text.replace("\\\n", " ")
    assert "dopaminergic train --task digits" in " ".join(joined.split())
    assert all("train" in line for line in joined.strip().splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_something_is_said_at_once_and_ctrl_c_works_while_the_noise_is_compiled(
    tmp_path: Path,
) -> None:
    """With an empty cache of numba, compiling takes longer than this test waits."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "dopaminergic", "train", "--task", "xor-2-8-1", "--optimizer"]
    process = subprocess.Popen(
        [*command, "vector", "--budget", "600", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert "loading torch" in process.stderr.readline()
    assert "compiling the noise once, about 10 s" in process.stderr.readline()
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes hear it
    out, said = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in said
    assert "to continue: dopaminergic train" in said.strip().splitlines()[-1]
    assert not list((tmp_path / "cache").rglob("*.nbc"))
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_what_is_compiled_is_compiled_once(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    said = []
    for run in ("one", "two"):
        command = [sys.executable, "-m", "dopaminergic", "train", "--task", "xor-2-2-1"]
        command += ["--budget", "20", "--out", str(tmp_path / run)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        said.append("compiling the noise" in done.stderr)
    assert said == [True, False]
