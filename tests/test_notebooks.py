"""The notebooks run from top to bottom, and keep what they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of code."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    with torch.random.fork_rng():
        namespace: dict[str, Any] = {"__name__": path.stem}
        for number, cell in enumerate(cells(path)):
            exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), namespace)
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_keeps_what_it_shows(path: Path) -> None:
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 100_000
    assert "assert " in path.read_text(encoding="utf-8")


def test_the_page_of_examples_lists_every_program_and_notebook() -> None:
    page = (ROOT / "docs/examples.md").read_text()
    files = [*(ROOT / "examples").glob("*.py"), *NOTEBOOKS]
    assert [path.name for path in files if f"[`{path.name}`]" not in page] == []
    assert len(NOTEBOOKS) >= 3
