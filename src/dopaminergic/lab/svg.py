"""Figures as SVG files of few bytes: the same figure always gives the same bytes.

Text stays text, in a font of the reader's machine, since glyphs drawn as paths take more bytes than
all lines together. Verdana has the widths of matplotlib's own font.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import matplotlib
from matplotlib.figure import Figure

FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"
STABLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dopaminergic",
    "path.simplify_threshold": 0.3,  # of a point; a third of a pixel on most screens
}
NO_DATE: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
NUMBER = re.compile(r"-?\d+\.\d{2,}(?:e-?\d+)?")
TAG = re.compile(r"<(?!style)[^<>]*>")
NAMES = re.compile(r' id="[a-zA-Z][\w.]*_\d+"')
MARKED = re.compile(r'((?:<use [^>]*? style="([^"]*)"/>)(?:<use [^>]*? style="\2"/>)+)')
HASHED = re.compile(r'\bid="([a-zA-Z]\w*)"')
FAMILY = re.compile(r"'DejaVu Sans'(?:, '[^']*')*(?:, [a-z-]+)?")
DEFAULTS = ("fill-opacity: 1", "stroke-opacity: 1", "opacity: 1")


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG: no date, coordinates to a tenth of a point, no names that nothing uses."""
    raw = io.StringIO()
    with matplotlib.rc_context(STABLE):
        figure.savefig(raw, format="svg", facecolor="white", metadata=NO_DATE)
    return smaller(raw.getvalue()).encode()


def smaller(text: str) -> str:
    """The same drawing in fewer bytes.

    >>> smaller('<svg><g id="axes_1"><path d="M 1.2345 2 L 3.02 4 "/></g></svg>')
    '<svg><path d="M1.2 2l1.8 2"/></svg>'
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = TAG.sub(lambda tag: _tag(tag[0]), text)
    text = re.sub(r">\s*\n\s*<", "><", text)
    text = MARKED.sub(_joined, _unwrapped(text))
    text = _classed(text)
    for number, name in enumerate(dict.fromkeys(HASHED.findall(text))):
        text = re.sub(rf'(id="|#){name}\b', rf"\g<1>i{number}", text)
    return text.replace("<svg ", f'<svg font-family="{FONTS}" ', 1) if "<text" in text else text


def _tag(tag: str) -> str:
    """A tag whose numbers are short, without names and styles that say nothing."""
    tag = NAMES.sub("", tag)
    if tag.startswith(("<path", "<use", "<text", "<rect", "<tspan", "<g", "<clipPath")):
        tag = NUMBER.sub(_rounded, tag)
    tag = re.sub(r' d="([^"]*)"', lambda path: f' d="{_path(path[1])}"', tag)
    tag = re.sub(r' style="([^"]*)"', lambda style: _style(style[1]), tag)
    return re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", tag)


def _rounded(number: re.Match[str]) -> str:
    value = float(number[0])
    # Small numbers are widths, opacities and scales.
    digits = 1 if abs(value) >= 2 else 2
    return f"{round(value, digits):g}"


def _path(path: str) -> str:
    """A path; one of straight lines has the distances between its points, which are shorter."""
    if not re.fullmatch(r"[MLzZ\s\d.e-]*", path):
        return re.sub(r"\s*([MLCQzZ])\s*", r"\1", " ".join(path.split()))
    words: list[str] = []
    here = (0, 0)
    for letter, x, y in re.findall(r"([MLzZ])\s*(?:([-\d.e]+)\s+([-\d.e]+))?", path):
        if letter in "zZ":
            words.append("z")
            continue
        there = (round(10 * float(x)), round(10 * float(y)))
        if letter == "M":
            words.append(f"M{there[0] / 10:g} {there[1] / 10:g}l")
        elif there != here:
            words.append(f"{(there[0] - here[0]) / 10:g} {(there[1] - here[1]) / 10:g} ")
        here = there
    return re.sub(r" ?l?(?=[Mz]|$)| (?=-)", "", "".join(words))


def _joined(marks: re.Match[str]) -> str:
    """Marks of one look, which is told once."""
    style = f' style="{marks[2]}"'
    return f"<g{style}>{marks[1].replace(style, '')}</g>"


def _style(style: str) -> str:
    rules = [rule.strip() for rule in style.split(";")]
    kept = [
        FAMILY.sub(FONTS, rule).replace(": ", ":")
        for rule in rules
        if rule and rule not in DEFAULTS and not rule.startswith("font-family")
    ]
    return f' style="{";".join(kept)}"' if kept else ""


def _classed(text: str) -> str:
    """The text with each style that it has four times or more told once, as a class."""
    if "</style>" not in text:
        return text
    styles = Counter(re.findall(r' style="([^"]*)"', text)).most_common()
    often = [style for style, count in styles if count > 3]
    for number, style in enumerate(often):
        text = text.replace(f' style="{style}"', f' class="c{number}"')
    rules = "".join(f".c{number}{{{style}}}" for number, style in enumerate(often))
    return text.replace("</style>", f"{rules}</style>", 1)


def _unwrapped(text: str) -> str:
    """The text without groups that have no attribute."""
    open_groups: list[bool] = []

    def kept(tag: re.Match[str]) -> str:
        if tag[0] == "</g>":
            return "" if open_groups.pop() else tag[0]
        open_groups.append(tag[0] == "<g>")
        return "" if open_groups[-1] else tag[0]

    return re.sub(r"<g>|<g [^>]*(?<!/)>|</g>", kept, text)
