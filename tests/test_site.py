"""The built site: nothing is lost in rendering, nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
HTML = """
html head meta title link script style body header main footer nav aside article section
div span p a img figure figcaption h1 h2 h3 h4 h5 h6 ul ol li dl dt dd blockquote pre code
b em strong del sub sup br hr table thead tbody tr th td colgroup col label input form button
details summary noscript kbd small abbr template select option
svg path g circle rect line polygon polyline ellipse defs use symbol
math mrow mi mo mn mtext mspace msub msup msubsup munder mover munderover mfrac msqrt mroot
mtable mtr mtd mpadded mphantom mstyle merror semantics annotation mmultiscripts
"""
KNOWN = set(HTML.split())


class Page(HTMLParser):
    """The elements, addresses and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.without_words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        given = dict(attrs)
        self.tags[tag] += 1
        address = given.get("src") or (given.get("href") if tag == "link" else None)
        if address and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(address)
        if tag == "img" and not given.get("alt"):
            self.without_words.append(str(address))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run(
        [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, tuple[str, Page]]:
    """The text and the elements of every page, by its name."""
    texts = {str(page): (site / page.with_suffix(".html")).read_text() for page in PAGES}
    return {name: (text, Page(text)) for name, text in texts.items()}


def test_no_page_has_an_unknown_tag(pages: dict[str, tuple[str, Page]]) -> None:
    """`<J, J>` outside of code would be one, and browsers show nothing of it."""
    for name, (_, page) in pages.items():
        assert set(page.tags) - KNOWN == set(), name


def test_an_unknown_tag_would_be_found() -> None:
    assert set(Page("<p>h = tr A / tr <J, J> the mean</p>").tags) - KNOWN == {"j,"}


def test_pages_load_nothing_from_elsewhere(pages: dict[str, tuple[str, Page]]) -> None:
    for name, (text, page) in pages.items():
        assert [each for each in page.loaded if "//" in each] == [], name
        assert 'data-md-component="source"' not in text, "it asks for the number of stars"


def test_formulas_are_drawn_without_a_script(pages: dict[str, tuple[str, Page]]) -> None:
    for name, (text, page) in pages.items():
        assert "arithmatex" not in text, name
        source = (ROOT / "docs" / name).read_text()
        displayed = len(re.findall(r"^```math$", source, re.MULTILINE))
        assert text.count('<math display="block">') == displayed, name
        assert page.tags["merror"] == 0, name
    assert pages["algorithms.md"][1].tags["math"] > 40


def test_pictures_have_words(pages: dict[str, tuple[str, Page]]) -> None:
    assert {
        name: page.without_words for name, (_, page) in pages.items() if page.without_words
    } == {}


def test_signatures_have_one_argument_a_line(pages: dict[str, tuple[str, Page]]) -> None:
    text = re.sub(r"<[^>]+>", "", pages["api.md"][0])
    signature = text.split("Dopamine(", 1)[1].split("\n)", 1)[0]
    assert len(signature.splitlines()) >= 12
    assert max(len(line) for line in signature.splitlines()) < 66


def test_every_page_has_an_address_and_can_be_edited(pages: dict[str, tuple[str, Page]]) -> None:
    for name, (text, _) in pages.items():
        assert 'rel="canonical"' in text or "rel=canonical" in text, name
        assert f"/edit/main/docs/{name}" in text, name


def test_the_sitemap_names_all_pages(site: Path) -> None:
    named = re.findall(r"<loc>(.*?)</loc>", (site / "sitemap.xml").read_text())
    assert len(named) == len(PAGES)


def test_sources_of_the_site_are_not_published(site: Path) -> None:
    assert list(site.rglob("*.py")) == []
    assert not (site / "gallery").exists()
    assert not (site / "theme").exists()
