"""What the documentation says is true: its Python runs, its commands exist, its tables are those of the code."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch

import dopaminergic
from dopaminergic.lab import cli
from dopaminergic.lab.experiments import studies
from dopaminergic.lab.tasks import TASKS
from optimizers import ROWS, Row

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists())]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of the code blocks of a language."""
    text = page.read_text()
    found = BLOCK.finditer(text)
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found if m[1] == language]


def commands() -> list[list[str]]:
    """The words of every `dopaminergic ...` line in a bash block, without comments."""
    lines = [line for page in PAGES for _, text in blocks(page, "bash") for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each and each[0] == "dopaminergic"]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_python_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages may write files
    with torch.random.fork_rng():
        torch.manual_seed(0)
        namespace = {"__name__": page.stem}
        for line, text in blocks(page, "python"):
            # Blank lines in front make errors name the line of the page.
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_have_their_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([words[0], "--help"])
    assert end.value.code == 0
    options = {word for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    named = [value for option, value in itertools.pairwise(words) if option == "--task"]
    assert set(named) <= set(TASKS)


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^::: dopaminergic\.(?:\w+\.)?(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert set(dopaminergic.__all__) - {"__version__"} <= set(listed)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in DOCS if f": {page.name}" not in navigation] == []


def test_the_table_of_studies_is_what_runs() -> None:
    rows = [
        f"| {size} | `{s.task}` | {', '.join(f'`{k}={v}`' for k, v in s.settings.items())} | {s.budget:,} "
        f"| {s.tuning_seeds} | {s.report_seeds} |"
        for size in ("quick", "default", "full")
        for s in studies("all", size)
    ]
    written = re.findall(r"^\| (?:quick|default|full) \|.*$", (ROOT / "docs/reproduce.md").read_text(), re.MULTILINE)
    assert written == rows


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_defaults_are_those_of_the_code(row: Row) -> None:
    section = (ROOT / "docs/algorithms.md").read_text().split(f"\n## {row.name}\n")[1].split("\n## ")[0]
    written = re.findall(r"`(\w+=[^`]+)`", section.split("Defaults: ")[1].split(". ")[0])
    parameters = inspect.signature(row.make).parameters.values()
    settings = [f"{p.name}={p.default!r}" for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert written == [
        each for each in settings if each.split("=")[0] not in ("seed", "weight_decay", "batched", "process_group")
    ]


def test_nothing_is_loaded_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "http" not in settings
