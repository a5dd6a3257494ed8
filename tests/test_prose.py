"""The prose of pages and docstrings is plain: short sentences, examples, few clauses that begin
with "what".
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import prose
from prose import OTHERS, PAGES, ROOT, Reading

CORE = ROOT / "src/dopaminergic"

# At most so many "what" and at least so many examples in 1,000 words, at least this share of short
# sentences, and at most so many forbidden words. Limits of docstrings are where they are now, and
# may only be tightened.
LIMITS = {
    "pages": {"what": 1.5, "examples": 1.5, "short": 0.9, "forbidden": 0},
    "docstrings": {"what": 1.5, "examples": 1.5, "short": 0.99, "forbidden": 0},
}


def check(found: Reading, limits: dict[str, float]) -> None:
    """Fail unless a text is within its limits."""
    assert found.what <= limits["what"]
    assert found.examples >= limits["examples"]
    assert found.short >= limits["short"]
    assert len(found.forbidden) <= limits["forbidden"], found.forbidden


def test_all_pages_together_are_within_the_limits() -> None:
    check(prose.read([unit for path in PAGES for unit in prose.page(path)]), LIMITS["pages"])


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_each_page_has_short_sentences_and_no_forbidden_word(path: Path) -> None:
    found = prose.read(prose.page(path))
    assert found.short >= LIMITS["pages"]["short"]
    assert found.forbidden == []


def test_docstrings_are_within_their_limits() -> None:
    check(prose.read(prose.docstrings(ROOT / "src")), LIMITS["docstrings"])


def test_code_tables_and_formulas_of_a_page_do_not_count() -> None:
    blocks = "```math\nwhat\n```\n\n| what |\n|---|\n"
    text = (
        f"# A head\n\nOne `two three` $f = 2 x$.\n\n{blocks}\n- five\n  six\n- [seven](what.md)\n"
    )
    units = prose.of_markdown(text)
    assert units == ["# A head", "One code formula.", "five six", "seven"]
    assert prose.read(units).words == 8
    assert prose.read(units).what == 0


def test_formulas_and_doctests_of_a_docstring_do_not_count() -> None:
    text = "Do it.\n\n    what = 1\n\nArgs:\n    x: one number,\n        or two.\n\n"
    text += "Returns:\n    A sum.\n\n>>> what\n"
    assert prose.of_docstring(text) == ["Do it.", "one number, or two.", "A sum."]


def test_sentences_examples_and_forbidden_words_are_counted() -> None:
    long = "word " * 29
    found = prose.read(
        [
            f"See e.g. this page. {long}.",
            "What is it? For example, want of time such as whoever has.",
        ]
    )
    assert found.words == 4 + 29 + 3 + 9
    assert found.short == 3 / 4
    assert found.longest == 29
    assert found.what == 1000 / found.words
    assert found.examples == 3 * (1000 / found.words)
    assert found.forbidden == ["want of", "whoever"]


def map_of_the_tree() -> str:
    """The drawing of the tree in CONTRIBUTING."""
    return (
        (ROOT / "CONTRIBUTING.md")
        .read_text()
        .split("```text\nsrc/dopaminergic/\n")[1]
        .split("```")[0]
    )


def test_every_module_and_package_of_the_core_is_in_the_map() -> None:
    modules = {path.name for path in CORE.glob("*.py") if not path.name.startswith("_")}
    packages = {f"{path.parent.name}/" for path in CORE.glob("*/__init__.py")}
    assert {
        name
        for name in modules | packages
        if not re.search(rf"\b{re.escape(name)}", map_of_the_tree())
    } == set()


def test_every_name_in_the_map_exists() -> None:
    tests = ROOT / "tests"
    files = {path.name for folder in (CORE, tests) for path in folder.rglob("*.py")}
    folders = {f"{path.name}/" for path in (*ROOT.glob("*"), *CORE.rglob("*")) if path.is_dir()}
    named = set(re.findall(r"\b\w+\.py\b|\b\w+/", map_of_the_tree()))
    assert {"optimizer.py", "noise/", "lab/", "tests/"} <= named
    assert named - files - folders == set()
