"""How every benchmark ends: one JSON object, printed and, if wanted, kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dopaminergic.lab.runner import environment


def publish(what: str, results: Any, out: Path | None, *, facts: dict[str, Any] | None = None, **settings: Any) -> None:
    """Print what was measured, with which settings and where, and write it to `out`; `facts` join the environment."""
    found = {"what": what, **settings, "environment": environment() | (facts or {}), "results": results}
    text = json.dumps(found, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
