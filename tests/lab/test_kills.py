"""Runs that are killed with -9 at random moments end as one that never was; `kills.py` does it more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_killed_runs_end_as_if_never_killed() -> None:
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), "--train", "4", "--compare", "1"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)["results"]
    assert (found["train"]["kills"], found["compare"]["kills"]) == (4, 1)
    for each in found.values():
        assert each["equal"] == each["finished"] >= 1, shown.stdout
