"""Runs that are killed with -9 at random moments end as one that never was; `kills.py` does it more
often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_training_that_is_killed_ends_as_if_never_killed() -> None:
    """In test_runner.py comparisons are."""
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), "--train", "4"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)["results"]["train"]
    assert found["kills"] == 4
    assert found["equal"] == found["finished"] >= 1, shown.stdout
