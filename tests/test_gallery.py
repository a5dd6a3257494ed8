"""The pictures of the documentation are those that their scripts draw, and say something."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from docs.gallery.__main__ import PICTURES
from docs.gallery.drawing import PALETTE, STYLE, write
from matplotlib import rc_context

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs/pictures"
BY_HAND = {"step.svg"}
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def texts(path: Path) -> list[str]:
    """All words and numbers of a picture."""
    return [
        text for each in ElementTree.parse(path).iter() for text in (each.text or "").split("\n")
    ]


def luminance(colour: str) -> float:
    """Of a colour such as #aabbcc, as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_that_its_script_draws(name: str, tmp_path: Path) -> None:
    """Paths may differ by rounding between machines; words and numbers may not."""
    drawn = tmp_path / f"{name}.svg"
    with rc_context(STYLE):
        write(PICTURES[name](), drawn)
    assert texts(drawn) == texts(KEPT / f"{name}.svg")
    assert drawn.stat().st_size < 120_000


def test_every_picture_has_a_script() -> None:
    assert {path.name for path in KEPT.iterdir()} - BY_HAND == {f"{name}.svg" for name in PICTURES}


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {Path(target).name for page in PAGES for _, target in IMAGE.findall(page.read_text())}
    assert {path.name for path in KEPT.iterdir()} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_alternative_texts_tell_the_finding(page: Path) -> None:
    for words, target in IMAGE.findall(page.read_text()):
        assert len(words.split()) >= 8, target


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_on_their_ground(mode: int) -> None:
    grounds = {"paper", "panel", "grid"}
    paper = luminance(PALETTE["paper"][mode])
    for name in PALETTE.keys() - grounds:
        light, dark = sorted((luminance(PALETTE[name][mode]), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_pictures_load_nothing() -> None:
    for path in KEPT.glob("*.svg"):
        text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text())
        assert not re.search(r"https?://", text), path
        assert "<script" not in text
