"""The command line as a stranger meets it: help, results, and errors of one clear line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dopaminergic.lab.cli import main


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong call prints."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in captured.err
    line = captured.err.strip().splitlines()[-1]
    assert "error: " in line
    return line


def test_errors_say_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "did you mean lorenz" in error_of(capsys, "train", "--task", "lorentz")
    assert "did you mean adam" in error_of(
        capsys, "train", "--task", "lorenz", "--optimizer", "adma"
    )
    assert "no optimizer 'dopamin'" in error_of(
        capsys, "compare", "--task", "lorenz", "--optimizers", "dopamin"
    )
    assert "which task?" in error_of(capsys, "train")
    assert "not both" in error_of(capsys, "train", "--task", "lorenz", "--csv", "x.csv")
    assert "goes with --csv" in error_of(capsys, "train", "--task", "lorenz", "--column", "a")
    assert "NAME=VALUE" in error_of(capsys, "train", "--task", "lorenz", "--set", "hidden")
    assert "did you mean hidden" in error_of(
        capsys, "train", "--task", "lorenz", "--set", "hiden=3"
    )
    assert "must be >= 1, got 0" in error_of(capsys, "train", "--task", "lorenz", "--budget", "0")
    assert "invalid choice" in error_of(capsys, "reproduce", "everything")
    assert "no such folder" in error_of(capsys, "report", str(tmp_path / "nowhere"))
    assert "dopaminergic reproduce" in error_of(capsys, "report", str(tmp_path))


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for command in (["train", "--task", "lorenz"], ["compare", "--task", "lorenz"], ["reproduce"]):
        assert "cannot write there" in error_of(
            capsys, *command, "--out", str(tmp_path / "file" / "below")
        )
    assert (tmp_path / "file").read_text() == "in the way"


def test_bad_files_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "sales.csv"
    command = ("train", "--csv", str(file), "--out", str(tmp_path / "out"), "--column")
    assert "sales.csv" in error_of(capsys, *command, "units")
    file.write_text("day,units\n" + "\n".join(f"{i},{i % 7}" for i in range(200)))
    assert "units" in error_of(capsys, *command, "unit")
    file.write_text(
        "day,units\n" + "\n".join(f"{i},{'many' if i == 57 else i % 7}" for i in range(200))
    )
    assert "units" in error_of(capsys, *command, "units")
    file.write_text(
        "day,units\n" + "\n".join(f"{i},{'' if i == 57 else i % 7}" for i in range(200))
    )
    assert "units" in error_of(capsys, *command, "units")
    file.write_text("day,units\n1,2\n2,3\n")
    assert "rows" in error_of(capsys, *command, "units")
    assert not (tmp_path / "out").exists()


def test_training_on_a_series_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "sales.csv"
    file.write_text(
        "day,units\n" + "\n".join(f"{i},{[0, 3, 1, 4, 1, 5, 9][i % 7]}" for i in range(300))
    )
    out = tmp_path / "out"
    command = [
        "train",
        "--csv",
        str(file),
        "--column",
        "units",
        "--budget",
        "600",
        "--out",
        str(out),
        "--json",
    ]
    assert main(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["nrmse"] < record["metrics"]["persistence"]
    assert record["forward_passes"] == 600
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()


def test_the_listing_is_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert {"lorenz", "xor-2-2-1", "series"} <= {task["name"] for task in listing["tasks"]}
    [vector] = [each for each in listing["optimizers"] if each["name"] == "vector"]
    assert vector == {
        "name": "vector",
        "label": "VectorDopamine",
        "default_lr": 1.0,
        "grid": [1.0],
        "passes_per_step": 514,
    }
    assert main(["tasks"]) == 0
    assert "mackey-glass" in capsys.readouterr().out


def test_rules_without_tuning_are_compared_unless_others_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = [
        "compare",
        "--task",
        "xor-2-8-1",
        "--seeds",
        "2",
        "--tuning-seeds",
        "1",
        "--budget",
        "120",
    ]
    assert main([*command, "--workers", "1", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {row["optimizer"] for row in rows} == {
        "dopamine",
        "dopamine2",
        "vector",
        "node",
        "wp",
        "sgd",
        "adam",
    }
    for name in ("vector", "node"):
        assert [(row["variant"], row["n"]) for row in rows if row["optimizer"] == name] == [
            ("default", 2)
        ]


def program(*arguments: str) -> str:
    """The output of the program in a process of its own."""
    command = [sys.executable, "-m", "dopaminergic", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_has_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    texts = [program("--help")]
    for command in ([], ["reproduce"], ["train"], ["compare"], ["report"], ["tasks"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    for text in texts:
        assert "examples:\n  dopaminergic " in text
        assert max(len(line) for line in text.splitlines()) <= 100


def test_numbers_are_read_as_people_write_them_and_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dopaminergic.lab.cli import COMMANDS, parser

    read = parser(COMMANDS).parse_args(
        ["train", "--task", "lorenz", "--budget", "1e4", "--seed", "9223372036854775807"]
    )
    assert (read.budget, read.seed) == (10_000, (1 << 63) - 1)
    for option, value in (
        ("--budget", "1.5"),
        ("--seed", str(1 << 64)),
        ("--seed", "-1"),
        ("--lr", "nan"),
    ):
        assert option in error_of(
            capsys, "train", "--task", "lorenz", "--optimizer", "adam", option, value
        )
    few = error_of(capsys, "train", "--task", "lorenz", "--optimizer", "adam", "--budget", "1")
    assert "the first step of Adam takes 3 forward passes here, got 1" in few
    for setting in ("batch_size=0", "hidden=-1", "hidden=2.5", "hidden=true"):
        assert setting.split("=")[0] in error_of(
            capsys, "train", "--task", "lorenz", "--set", setting
        )


def test_any_terminal_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 columns and of 80, both without letters beyond ASCII."""
    for columns in (40, 80):
        written = io.BytesIO()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        assert main(["tasks"]) == 0
        shown = written.getvalue().decode()
        assert "Rossler" in shown
        assert max(len(line) for line in shown.splitlines()) <= columns


def test_control_characters_of_others_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "\\x1b" in error_of(capsys, "report", "a\x1b]52;c;eA==\x07")
