"""The command line of journals."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dopaminergic import revert
from dopaminergic.journal import JournalError
from dopaminergic.journal.format import STEP
from dopaminergic.lab import cli
from journals import forged, trained
from optimizers import Regression


def test_the_command_line_rebuilds_weights(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, _, _ = trained(path, 5)
    base, out = path.with_suffix(".base.pt"), path.with_suffix(".out.pt")
    torch.save(Regression().model.state_dict(), base)
    command = ["journal", "replay", str(path), "--base", str(base), "--out", str(out)]
    assert cli.main(command) == 0
    assert "after 5 steps" in capsys.readouterr().out
    state = torch.load(out, weights_only=True)
    assert all(torch.equal(state[name], p) for name, p in problem.model.named_parameters())
    assert cli.main([*command, "--upto", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 0
    state, initial = torch.load(out, weights_only=True), torch.load(base, weights_only=True)
    assert all(torch.equal(state[name], initial[name]) for name in initial)


def test_the_command_line_shows_and_verifies(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(path, 5)
    assert cli.main(["journal", "show", str(path), "--last", "2"]) == 0
    text = capsys.readouterr().out
    for word in ("SPSA", "bytes a step", "SHA-256", "damage               None"):
        assert word in text
    assert cli.main(["journal", "show", str(path), "--last", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in shown["last"]] == [4, 5]
    assert (shown["steps"], shown["weights"], shown["damage"]) == (5, 26, None)
    assert cli.main(["journal", "verify", str(path)]) == 0
    assert "5 steps" in capsys.readouterr().out
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert cli.main(["journal", "verify", str(path)]) == 1
    assert "damaged at byte" in capsys.readouterr().out
    forged(path, (STEP, b"\x00\x07"))  # the checksum is sound, what it protects is not
    assert cli.main(["journal", "verify", str(path), "--json"]) == 1
    assert "do not fit" in json.loads(capsys.readouterr().out)["damage"]


class Malicious:
    """What pickle would run, if it were let."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("malicious",)


def test_the_command_line_says_what_is_wrong(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    trained(path)
    base = path.with_suffix(".pt")
    torch.save(Regression().model.state_dict(), base)
    torch.save([1], path.with_suffix(".list"))
    path.with_suffix(".evil").write_bytes(pickle.dumps(Malicious()))
    path.with_suffix(".text").write_text("nothing")
    files = {
        name: str(path.with_suffix("." + name))
        for name in ("pt", "list", "evil", "text", "missing", "out")
    }
    replaying = ["replay", str(path), "--out", files["out"]]
    for arguments, message in [
        (["show", files["missing"]], "missing"),
        (["show", files["text"]], "not a journal"),
        (replaying, "needs --base"),
        ([*replaying, "--base", files["missing"]], "missing"),
        ([*replaying, "--base", files["list"]], "holds a list"),
        ([*replaying, "--base", files["evil"]], "cannot be loaded"),
        ([*replaying, "--base", files["pt"], "--upto", "99"], "steps 0 to 9, not 99"),
        (["replay", str(path), "--base", files["pt"], "--out", files["pt"]], "base itself"),
        (
            ["replay", str(path), "--base", files["pt"], "--out", files["pt"] + "/x"],
            "cannot write there",
        ),
    ]:
        assert cli.main(["journal", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(JournalError, match="cannot be loaded"):
        revert(Regression().model, path, 1, base=files["evil"])
    assert not Path("malicious").exists()
    assert {each.suffix for each in path.parent.iterdir()} == {
        ".journal",
        ".pt",
        ".list",
        ".evil",
        ".text",
    }
