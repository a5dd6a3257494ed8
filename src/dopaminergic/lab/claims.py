"""The claims about Dopamine, and verdicts on them from records alone.

Six are made in arXiv 2510.22178, and V1, about VectorDopamine, is this library's own.

Every verdict follows from a rule that is fixed in the docstring of the function that judges the
claim, in `duels` and `rankings`. The report prints it beside the verdict. A claim is about the
paper's equations, which are not public. The rules that are judged here are those that this library
defined after its abstract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dopaminergic.lab import duels, rankings
from dopaminergic.lab.comparisons import Tasks
from dopaminergic.lab.findings import NOT_MEASURED, Finding
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import by_task

ENOUGH_SEEDS = 20  # a verdict that needs smaller groups is provisional


@dataclass(frozen=True)
class Verdict:
    """The verdict of the data on one claim.

    Attributes:
        claim: "C1" ... "C6" of the paper, "V1" of this library.
        statement: the claim in words.
        verdict: "holds", "holds partly", "not seen" or "not measured".
        evidence: a summary, then one sentence per task or measure, with numbers.
        rule: how the verdict follows from the data.
        n: runs in the smallest group that was compared; 0 where nothing was.
        provisional: whether the groups of at least 20 seeds alone give another verdict, or none.
    """

    claim: str
    statement: str
    verdict: str
    evidence: tuple[str, ...]
    rule: str
    n: int
    provisional: bool


def judge(records: Iterable[Record], costs: Mapping[str, Any]) -> list[Verdict]:
    """A verdict on each claim, from the runs of role "report".

    Args:
        records: any records; those of other roles are left out.
        costs: the object of `costs.json`, `{}` where costs were not measured.
    """
    tasks = by_task(records)
    verdicts = []
    for claim, (statement, rule) in CLAIMS.items():
        finding = rule(tasks, costs)
        text = " ".join((inspect.getdoc(rule) or "").split())
        provisional = finding.verdict != NOT_MEASURED and not _is_firm(
            finding, rule(_well_seeded(tasks), costs)
        )
        verdicts.append(
            Verdict(
                claim,
                statement,
                finding.verdict,
                tuple(finding.evidence),
                text,
                finding.n,
                provisional,
            )
        )
    return verdicts


def _well_seeded(tasks: Tasks) -> Tasks:
    """The groups of at least 20 seeds; tasks that have none are left out."""
    kept = {
        title: {method: runs for method, runs in cells.items() if len(runs) >= ENOUGH_SEEDS}
        for title, cells in tasks.items()
    }
    return {title: cells for title, cells in kept.items() if cells}


def _is_firm(finding: Finding, from_enough: Finding) -> bool:
    """Whether the small groups decide nothing: without them the verdict is the same."""
    return finding.verdict == from_enough.verdict and from_enough.n >= ENOUGH_SEEDS


CLAIMS: dict[str, tuple[str, Callable[[Tasks, Mapping[str, Any]], Finding]]] = {
    "C1": (
        "Dopamine converges faster than plain weight perturbation (WP) and outperforms it.",
        duels.faster_than_wp,
    ),
    "C2": ("It performs comparably to gradient-based training.", duels.comparable_to_gradients),
    "C3": (
        "It needs much less computation and memory than gradient-based training.",
        duels.cheaper,
    ),
    "C4": ("It generalises better on XOR.", rankings.generalises_on_xor),
    "C5": (
        "Dopamine2 has the lowest error on chaotic forecasting.",
        rankings.lowest_error_on_chaos,
    ),
    "C6": ("It converges stably.", rankings.stable),
    "V1": (
        "This library's own: VectorDopamine beats backpropagation with Adam at equal forward "
        "passes.",
        duels.vector_beats_adam,
    ),
}
