"""Counts how the prose of this repository reads: of its pages, and of the docstrings of its code.

    python tests/prose.py

prints a table with one row for each page. Code, tables and formulas are left out, and code or a
formula within a line is one word.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OTHERS = [
    ROOT / "SECURITY.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "results").rglob("README.md")),
]
LONG = 28  # words; a longer sentence is a long one

FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
FORMULA = re.compile(r"\$[^$\s](?:[^$\n]*[^$\s])?\$")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)", re.DOTALL)
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|vs|cf)\.")
WORD = re.compile(r"\w[\w'’.,-]*\w|\w")  # noqa: RUF001
ITEM = re.compile(r"\s*([-*]|\d+\.) ")
EXAMPLE = re.compile(r"\bfor (?:example|instance)\b|\bsuch as\b|\be\.g\b", re.IGNORECASE)
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
FORBIDDEN = re.compile(r"\bwhoever\b|\bsome thousand\b|\bwant of\b", re.IGNORECASE)
SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Raises|Yields|Examples|Note|Warning):$")


class Reading(NamedTuple):
    """The figures of one text.

    Attributes:
        words: in all, those of headings too.
        what: times the word "what" comes in 1,000 words.
        examples: times "for example", "such as" or "e.g." comes in 1,000 words.
        short: share of sentences of at most `LONG` words.
        longest: words of the longest sentence.
        forbidden: words that no text may have.
    """

    words: int
    what: float
    examples: float
    short: float
    longest: int
    forbidden: list[str]


def of_markdown(text: str) -> list[str]:
    """The headings, paragraphs and items of a page, each as one line of plain words."""
    text = COMMENT.sub("", FENCED.sub("\n", text))
    text = LINK.sub(r"\1", FORMULA.sub("formula", CODE.sub("code", text)))
    return _units(
        line
        for line in text.splitlines()
        if not line.lstrip().startswith(("|", ":::", "!!!", "---", "<"))
    )


def of_docstring(text: str) -> list[str]:
    """The paragraphs and entries of a docstring, each as one line of plain words; equations are
    left out.
    """
    lines: list[str] = []
    in_section = False
    for line in CODE.sub("code", inspect.cleandoc(text).partition(">>> ")[0]).splitlines():
        indent = len(line) - len(line.lstrip())
        if SECTION.match(line):
            in_section = True
            lines.append("")
        elif indent >= 4 and not in_section:
            lines.append("")
        elif indent == 4:
            lines += ["", re.sub(r"^\s*\**\w[\w ,]*: ", "", line)]
        else:
            in_section = in_section and (indent > 0 or not line)
            lines.append(line)
    return _units(lines)


def _units(lines: Iterable[str]) -> list[str]:
    """Lines joined to paragraphs; an empty line, a heading and the sign of an item begin another
    one.

    A heading keeps its sign, since it is no sentence.
    """
    units = [""]
    for line in lines:
        if line.startswith("#") or not line.strip():
            units += [line, ""]
        elif ITEM.match(line):
            units.append(ITEM.sub("", line, count=1))
        else:
            units[-1] += " " + line.strip()
    return [unit.strip() for unit in units if unit.strip()]


def sentences(units: Iterable[str]) -> list[list[str]]:
    """The words of each sentence, headings left out."""
    found: list[list[str]] = []
    for unit in units:
        if unit.startswith("#"):
            continue
        plain = ABBREVIATION.sub(lambda m: m[1].replace(".", ""), re.sub(r"[*_\\]", "", unit))
        found += [WORD.findall(part) for part in re.split(r"(?<=[.!?])[)\"”]*\s+", plain)]
    return [words for words in found if words]


def read(units: list[str]) -> Reading:
    """Count."""
    text = "\n".join(units)
    lengths = [len(words) for words in sentences(units)]
    words = len(WORD.findall(text))
    per_thousand = 1000 / max(1, words)
    return Reading(
        words,
        len(WHAT.findall(text)) * per_thousand,
        len(EXAMPLE.findall(text)) * per_thousand,
        sum(length <= LONG for length in lengths) / max(1, len(lengths)),
        max(lengths, default=0),
        FORBIDDEN.findall(text),
    )


def page(path: Path) -> list[str]:
    """The units of a page."""
    return of_markdown(path.read_text())


def docstrings(folder: Path) -> list[str]:
    """The units of all docstrings of the modules below a folder."""
    units: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                units += of_docstring(ast.get_docstring(node) or "")
    return units


def main() -> None:
    """Print the figures of all pages and of the docstrings."""
    rows = {str(path.relative_to(ROOT)): page(path) for path in [*PAGES, *OTHERS]}
    rows["all pages"] = [unit for path in PAGES for unit in page(path)]
    rows["docstrings"] = docstrings(ROOT / "src")
    print(f"{'':28}{'words':>7}{'what':>7}{'e.g.':>7}{'short':>7}{'longest':>9}")
    for name, units in rows.items():
        found = read(units)
        print(
            f"{name:28}{found.words:7}{found.what:7.1f}{found.examples:7.1f}{found.short:7.2f}{found.longest:9}",
            *found.forbidden,
        )


if __name__ == "__main__":
    main()
