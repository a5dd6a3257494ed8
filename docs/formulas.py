"""Draws the formulas of the pages as MathML while the site is built: a hook of MkDocs.

A browser shows MathML without any script. A formula that math-core does not know stops the build.
"""

from __future__ import annotations

import html
import re
from typing import Any

from math_core import LatexError, LatexToMathML

# pymdownx.arithmatex writes formulas so, within a line and on lines of their own.
WITHIN_A_LINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAYED = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)

CONVERTER = LatexToMathML(fancy_error=False)


def drawn(formula: str, displayed: bool) -> str:
    """One formula as MathML."""
    source = html.unescape(formula).strip()
    try:
        found = CONVERTER.convert_with_local_state(source, displaystyle=displayed)
    except LatexError as error:
        raise ValueError(f"the formula {source!r}: {error}") from error
    return f'<div class="formula" tabindex="0">{found}</div>' if displayed else found


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    content = DISPLAYED.sub(lambda found: drawn(found[1], True), content)
    return WITHIN_A_LINE.sub(lambda found: drawn(found[1], False), content)
