"""The Python on the pages about other frameworks runs, where they are installed."""

from __future__ import annotations

import importlib
import subprocess
import sys
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


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
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


def test_every_integration_has_a_page() -> None:
    source = Path(__file__).parents[2] / "src/dopaminergic/integrations"
    modules = {path.stem for path in source.glob("*.py")} - {"__init__"}
    assert {page.stem for page in PAGES} == modules == set(NEEDS)


@pytest.mark.parametrize("name", ["transformers", "lightning", "skorch"])
def test_a_framework_that_is_absent_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"dopaminergic.integrations.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for other in [other for other in sys.modules if other.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, other)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}.*pip install 'dopaminergic\[") as error:
        importlib.import_module(module)
    assert len(str(error.value)) <= 300


def test_the_library_imports_no_framework() -> None:
    code = (
        "import sys, dopaminergic, dopaminergic.integrations.logging; "
        "print({'transformers', 'accelerate', 'peft', 'lightning', 'skorch', 'tensorboard'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "set()", done.stderr
