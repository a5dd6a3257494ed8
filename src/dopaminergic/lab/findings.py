"""The result of a rule that judges a claim: a word, its evidence, and the size of the groups."""

from __future__ import annotations

from typing import NamedTuple

HOLDS = "holds"
PARTLY = "holds partly"
NOT_SEEN = "not seen"
NOT_MEASURED = "not measured"


class Finding(NamedTuple):
    """A verdict in the making: the word, the evidence, the smallest group."""

    verdict: str
    evidence: list[str]
    n: int


def not_measured(reason: str) -> Finding:
    """The finding where there are no runs to compare."""
    return Finding(NOT_MEASURED, [f"Not measured: {reason}."], 0)
