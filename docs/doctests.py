"""Shows the doctests of docstrings as code: an extension of griffe, which reads the sources."""

from __future__ import annotations

import textwrap
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts the `>>>` lines that end a docstring into a section, or they would be quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object once its source is read."""
        if obj.docstring is not None:
            text, examples, lines = obj.docstring.value.partition("\n\n>>> ")
            if examples:
                obj.docstring.value = f"{text}\n\nExamples:\n" + textwrap.indent(
                    f">>> {lines}", "    "
                )
