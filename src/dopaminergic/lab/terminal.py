"""Text for terminals: what others wrote is shown and never obeyed, whatever signs the terminal knows."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
import unicodedata

# Marks that turn the direction of writing and so can show another text than there is.
TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
PLAIN = {"\u2013": "-", "\u2014": "-", "\u2026": "...", "\u00d7": "x", "\u2212": "-", "\u221e": "inf", "\u2019": "'"}


def clean(text: str) -> str:
    r"""The text on one line, its control characters written out, so that none reaches a terminal.

    >>> print(clean(chr(27) + "[2J"))
    \x1b[2J
    """
    return "".join(_visible(sign) for sign in text.replace("\r\n", " ").replace("\n", " "))


def _visible(sign: str) -> str:
    hidden = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or ord(sign) in TURNING
    return sign.encode("unicode_escape", "surrogatepass").decode() if hidden else sign


def show_all_signs() -> None:
    """Lets standard output and error show a sign they do not know by one that is like it, instead of failing."""
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
