"""What the documentation says is true: its Python runs, its commands exist, its tables are those of
the code.
"""

from __future__ import annotations

import inspect
import itertools
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

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


# Elements that pages may have: cards of the theme.
CARDS = '<div class="grid cards" markdown>'


def prose(text: str) -> str:
    """A page without its code, formulas and comments, and the frame of its cards."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(f"{re.escape(CARDS)}(.*?)</div>", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
    return re.sub(r"\$[^$\n]+\$", "", text)


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in headings
    }


def commands() -> list[list[str]]:
    """The words of every `dopaminergic ...` line in a bash block, without comments."""
    lines = [
        line for page in PAGES for _, text in blocks(page, "bash") for line in text.splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each and each[0] == "dopaminergic"]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name
)
def test_python_on_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # pages may write files
    with torch.random.fork_rng():
        torch.manual_seed(0)
        namespace = {"__name__": page.stem}
        untouched = len(namespace)
        for line, text in blocks(page, "python"):
            # Blank lines in front make errors name the line of the page.
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)
    assert len(namespace) > untouched, "the page has run"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_have_their_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([words[0], "--help"])
    assert end.value.code == 0
    options = {word for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    named = [value for option, value in itertools.pairwise(words) if option == "--task"]
    assert set(named) <= set(TASKS)


REPOSITORY = "https://github.com/dopaminergic/dopaminergic"
SITE = "https://dopaminergic.github.io/dopaminergic/"
OURS = {
    f"{REPOSITORY}/blob/main/": ROOT,
    f"{REPOSITORY}/tree/main/": ROOT,
    "https://raw.githubusercontent.com/dopaminergic/dopaminergic/main/": ROOT,
    SITE: ROOT / "docs",
}


def in_the_tree(place: str, page: Path) -> Path | None:
    """The file that a link names; None for a page of others."""
    for address, folder in OURS.items():
        if place.startswith(address):
            name = place.removeprefix(address) or "index.html"
            return folder / (name.replace(".html", ".md") if address == SITE else name)
    return None if place.startswith("https://") else page.parent / place if place else page


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        place, _, anchor = target.partition("#")
        other = in_the_tree(place, page)
        if other is not None:
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


def test_links_of_the_readme_are_absolute() -> None:
    """PyPI shows it too, where nothing lies beside it."""
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert [target for target in targets if not target.startswith("https://")] == []


def test_addresses_of_the_project_are_the_same_everywhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert f"site_url: {SITE}\n" in settings
    assert f"repo_url: {REPOSITORY}\n" in settings
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Documentation"] == SITE
    assert urls["Source"] == REPOSITORY
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"repository-code: {REPOSITORY}\n" in citation
    assert f"version: {dopaminergic.__version__}\n" in citation


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_nothing_is_taken_for_html(page: Path) -> None:
    """A browser shows nothing of `<J, J>` in plain text."""
    assert re.findall(r"</?[A-Za-z][^\n]{0,20}", prose(page.read_text())) == []


def test_nothing_in_docstrings_of_the_reference_is_taken_for_html() -> None:
    listed = re.findall(
        r"^::: (dopaminergic\.\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    for name in listed:
        found = pkgutil.resolve_name(name) if not name.startswith("dopaminergic.jax") else None
        public = (
            [each for key, each in vars(found).items() if not key.startswith("_")]
            if inspect.isclass(found)
            else []
        )
        members = [found, *public]
        for text in (inspect.getdoc(each) for each in members if each is not None):
            assert not re.search(r"</?[A-Za-z]", prose(text or "")), name


def test_commands_named_in_the_text_exist() -> None:
    texts = [page.read_text() for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]]
    named = {word for text in texts for word in re.findall(r"`dopaminergic ([a-z]+)", text)}
    assert named <= set(cli.COMMANDS)
    listed = re.findall(r"`dopaminergic (\w+(?: \| \w+)+)`", "\n".join(texts))
    assert listed
    assert {word for each in listed for word in each.split(" | ")} <= set(cli.COMMANDS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def default_sigma(row: Row, dtype: torch.dtype) -> float:
    """The sigma of a rule that was given none, once it has made a step."""
    model = nn.Linear(3, 2, dtype=dtype)
    optimizer = row.make(model.parameters())
    inputs = torch.ones(4, 3, dtype=dtype)
    optimizer.step(lambda: model(inputs).square().mean(1))
    return optimizer.param_groups[0]["sigma"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_default_sigmas_are_those_of_the_code(row: Row) -> None:
    page = (ROOT / "docs/algorithms.md").read_text()
    [(usual, short)] = re.findall(rf"^\| `{row.name}` \| (\S+) \| (.+) \|$", page, re.MULTILINE)
    assert float(usual) == default_sigma(row, torch.float32) == default_sigma(row, torch.float64)
    if row.name == "VectorDopamine":
        for kind, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            [divisor] = re.findall(rf"any\s(?:weights )?are {kind} √d / (\d+)", page)
            assert default_sigma(row, dtype) == pytest.approx(8**0.5 / int(divisor), rel=1e-5)
            assert f"√d / {divisor} ({kind})" in (ROOT / "docs/choosing.md").read_text()
    else:
        assert (
            float(short) == default_sigma(row, torch.bfloat16) == default_sigma(row, torch.float16)
        )


def test_sigmas_in_the_guide_are_those_of_the_table() -> None:
    guide = " ".join((ROOT / "docs/choosing.md").read_text().split())
    assert "0.0125 in `Dopamine` and `Dopamine2`, 0.01 in the other scalar rules" in guide
    assert "its usual 0.0003 `Dopamine` learns nothing" in guide
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    assert "0.0125 for `Dopamine` and `Dopamine2`" in changes


def test_what_a_function_returns_is_one_sentence_in_the_reference() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    # Else each line is a value of its own.
    assert "docstring_options: {returns_multiple_items: false}" in settings
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["docs"]
    assert any(
        each.startswith("ruff") for each in extra
    )  # mkdocstrings formats signatures with it, one argument a line


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(
        r"^::: dopaminergic\.(?:\w+\.)?(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    assert set(dopaminergic.__all__) - {"__version__"} <= set(listed)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_the_table_of_studies_is_what_runs() -> None:
    rows = [
        f"| {size} | `{s.task}` | {', '.join(f'`{k}={v}`' for k, v in s.settings.items())} | "
        f"{s.budget:,} "
        f"| {s.tuning_seeds} | {s.report_seeds} |"
        for size in ("quick", "default", "full")
        for s in studies("all", size)
    ]
    written = re.findall(
        r"^\| (?:quick|default|full) \|.*$", (ROOT / "docs/reproduce.md").read_text(), re.MULTILINE
    )
    assert written == rows


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_defaults_are_those_of_the_code(row: Row) -> None:
    section = (
        (ROOT / "docs/algorithms.md").read_text().split(f"\n## {row.name}\n")[1].split("\n## ")[0]
    )
    written = re.findall(r"`(\w+=[^`]+)`", section.split("Defaults: ")[1].split(". ")[0])
    parameters = inspect.signature(row.make).parameters.values()
    settings = [f"{p.name}={p.default!r}" for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert written == [
        each
        for each in settings
        if each.split("=")[0] not in ("seed", "weight_decay", "batched", "process_group")
    ]


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Settings name the site's and the repository's address alone; test_site.py looks at pages."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert re.findall(r"^(\w+): https://", settings, re.MULTILINE) == ["site_url", "repo_url"]
    assert settings.count("http") == 2
