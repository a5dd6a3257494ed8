"""What every benchmark says: on the way what it measures, in the end one JSON object, printed and, if wanted, kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dopaminergic.lab.runner import environment


def say(*words: Any) -> None:
    """What is measured now, on the error stream: it may take minutes."""
    print(*words, file=sys.stderr, flush=True)


def publish(
    what: str,
    results: Any,
    out: Path | None,
    *,
    facts: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Print what was measured, with which settings and where, and write it to `out`; `facts` join the environment."""
    found = {
        "what": what,
        **settings,
        "environment": environment() | (facts or {}),
        "results": results,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
