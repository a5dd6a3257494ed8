"""The Python on the pages about other frameworks runs, where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from test_docs import blocks

PAGES = sorted((Path(__file__).parents[2] / "docs" / "integrations").glob("*.md"))
NEEDS = {
    "transformers": ["transformers", "accelerate", "peft"],
    "lightning": ["lightning"],
    "skorch": ["skorch"],
    "logging": ["tensorboard"],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS[page.stem]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # pages write files
    with torch.random.fork_rng():
        torch.manual_seed(0)
        namespace = {"__name__": page.stem}
        for line, text in blocks(page, "python"):
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
