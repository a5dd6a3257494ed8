"""Text for terminals: the text of others is shown and never obeyed, on any terminal."""

from __future__ import annotations

import codecs
import contextlib
import io
import shutil
import sys
import textwrap
import unicodedata

from dopaminergic.files import shown

PLAIN = {
    "\u2013": "-",
    "\u2014": "-",
    "\u2026": "...",
    "\u00d7": "x",
    "\u2212": "-",
    "\u221e": "inf",
    "\u2019": "'",
}


def clean(text: str) -> str:
    r"""The text on one line, as `shown` spells it out.

    >>> print(clean(chr(27) + "[2J"))
    \x1b[2J
    """
    return shown(text.replace("\r\n", " ").replace("\n", " "))


def columns() -> int:
    """The width of the terminal, from 20 to 100; 80 where there is none."""
    return min(100, max(20, shutil.get_terminal_size((80, 24)).columns))


def fill(text: str) -> str:
    """The text in lines of the terminal's width."""
    return textwrap.fill(clean(text), columns(), break_on_hyphens=False)


def say(text: str) -> None:
    """Print a line on standard error at once."""
    print(f"dopaminergic: {clean(text)}", file=sys.stderr, flush=True)


def show_all_signs() -> None:
    """Lets standard output and error show an unknown sign by one that is like it.

    Otherwise they would fail.
    """
    codecs.register_error("dopaminergic.like", _like)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):  # closed
                stream.reconfigure(errors="dopaminergic.like")


def _like(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = []
    for sign in error.object[error.start : error.end]:
        parts = unicodedata.normalize("NFKD", PLAIN.get(sign, sign))
        found.append(parts.encode("ascii", "ignore").decode() or "?")
    return "".join(found), error.end
