"""The claims about Dopamine, and verdicts on them from records alone.

Six are made in arXiv 2510.22178, and V1, about VectorDopamine, is this library's own.

Every verdict follows from a rule that is fixed here, in the docstring of the function that judges
the claim. The report prints it beside the verdict. A claim is about the paper's equations, which
are not public. The rules that are judged here are those that this library defined after its
abstract.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dopaminergic.lab import statistics
from dopaminergic.lab.comparisons import (
    ADAM,
    DOPAMINE,
    DOPAMINE2,
    SGD,
    VECTOR,
    WP,
    Tasks,
    best_of,
    cost,
    cost_rows,
    interval_of,
    is_unstable,
    median_error,
    middle,
    name_of,
    passes_to,
    scores,
    sign_of,
    speed,
    tasks_with,
    with_interval,
)
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import (
    Method,
    by_task,
    compact,
    final_error,
    has_threshold,
    is_forecasting,
    is_xor,
    solved_at,
)

HOLDS = "holds"
PARTLY = "holds partly"
NOT_SEEN = "not seen"
NOT_MEASURED = "not measured"
ENOUGH_SEEDS = 20  # a verdict that needs smaller groups is provisional
COMPARABLE = 1.25  # ratio of median errors up to which two methods count as comparable


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


class Finding(NamedTuple):
    """A verdict in the making: the word, the evidence, the smallest group."""

    verdict: str
    evidence: list[str]
    n: int


def _nothing(reason: str) -> Finding:
    return Finding(NOT_MEASURED, [f"Not measured: {reason}."], 0)


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


# --- the rules ---


def faster_than_wp(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """Dopamine with its one default set against WP tuned for each task.

    It is compared on every forecasting and XOR task. A task is judged by the 95 % interval of the
    probability that a Dopamine run beats a WP run. It is won where the interval lies above .5, and
    lost where it lies below. A run beats another by a lower final test error. On tasks with a
    threshold it does so by fewer forward passes to reach it (never = infinity). Holds: won on all.
    Holds partly: won on some, and on more than are lost. Otherwise not seen.
    """
    outcomes = []
    evidence = []
    sizes = []
    for title, cells in tasks_with(
        tasks, (DOPAMINE, WP), lambda task: is_forecasting(task) or is_xor(task)
    ):
        ours = cells[DOPAMINE]
        theirs = cells[WP]
        timed = has_threshold(ours + theirs)
        score = solved_at if timed else final_error
        chance = statistics.probability_of_improvement((scores(score, ours), scores(score, theirs)))
        outcomes.append(sign_of(chance))
        sizes.append(chance.n)
        measure = "median passes to the threshold" if timed else "median error"
        words = f"{title}: {measure} {middle(score, ours)} against {middle(score, theirs)}"
        words += f", beats WP with probability {with_interval(chance)}"
        evidence.append(words + ("." if timed else f"; {speed(ours, theirs)}."))
    if not outcomes:
        return _nothing("no task was run with both Dopamine (default) and tuned WP")
    won = outcomes.count(1)
    lost = outcomes.count(-1)
    summary = (
        f"Against tuned WP, won on {won}, level on {outcomes.count(0)}, "
        f"lost on {lost} of {len(outcomes)} tasks."
    )
    verdict = HOLDS if won == len(outcomes) else PARTLY if won > lost else NOT_SEEN
    return Finding(verdict, [summary, *evidence], min(sizes))


def comparable_to_gradients(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """The better of Dopamine and Dopamine2 (default sets) against tuned Adam.

    They are compared on every forecasting and XOR task. A task is comparable where the median final
    test error is at most 1.25 times Adam's. A task with a threshold is comparable where the share
    of solved runs is at most .05 below Adam's. Holds: comparable on all forecasting tasks. Holds
    partly: comparable on some task. Otherwise, or without a forecasting task, not seen or not
    measured.
    """
    comparable: dict[str, bool] = {}
    evidence = []
    sizes = []
    forecasting = []
    for title, cells in tasks_with(
        tasks, (ADAM,), lambda task: is_forecasting(task) or is_xor(task)
    ):
        best = best_of(cells, (DOPAMINE, DOPAMINE2))
        if best is None:
            continue
        ours = cells[best]
        adam = cells[ADAM]
        sizes.append(min(len(ours), len(adam)))
        if has_threshold(ours + adam):
            own, other = (np.isfinite(scores(solved_at, runs)).mean() for runs in (ours, adam))
            comparable[title] = bool(own >= other - 0.05)
            evidence.append(f"{title}: {name_of(best)} solves {own:.0%}, Adam {other:.0%}.")
        else:
            own, other = (
                float(statistics.median(scores(final_error, runs))) for runs in (ours, adam)
            )
            comparable[title] = own <= COMPARABLE * other
            ratio = (
                f"{compact(own / other)} times Adam's" if 0 < other < math.inf else "Adam diverged"
            )
            words = f"{title}: median error of {name_of(best)} {compact(own)}"
            evidence.append(f"{words}, Adam {compact(other)} ({ratio}).")
        if is_forecasting(ours[0]["task"]):
            forecasting.append(title)
    if not forecasting:
        finding = _nothing("no forecasting task was run with both a Dopamine rule and tuned Adam")
        return finding._replace(evidence=finding.evidence + evidence)
    level = sum(comparable.values())
    chaotic = sum(comparable[title] for title in forecasting)
    summary = f"Comparable to tuned Adam on {chaotic} of {len(forecasting)} forecasting tasks"
    summary += f" and {level - chaotic} of {len(comparable) - len(forecasting)} XOR tasks."
    verdict = (
        HOLDS if all(comparable[title] for title in forecasting) else PARTLY if level else NOT_SEEN
    )
    return Finding(verdict, [summary, *evidence], min(sizes))


def cheaper(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """Cost of a step of Dopamine against Adam with backpropagation, and work for one error.

    Per step: time in units of two forward passes, and peak memory over inference's, medians over
    the measured models. For the same error: forward passes (Adam's step = 3) until Adam reaches
    Dopamine's median final error, on each forecasting task. Holds: less time and memory per step,
    and fewer passes to the same error on every task. Holds partly: less time or less memory per
    step, for any number of passes to the same error. Otherwise not seen.
    """
    ours = cost_rows(costs, "dopamine", "adam")
    adam = cost_rows(costs, "adam", "dopamine")
    if not (ours and adam):
        return _nothing("costs.json has no model with rows for both Dopamine and Adam")
    evidence = []
    less = {}
    for key, words in COSTS.items():
        own, other = (cost(rows, key) for rows in (ours, adam))
        less[key] = own < other
        evidence.append(f"{words}: {compact(own)} against Adam's {compact(other)}.")
    sizes = []
    slower = 0
    for title, cells in tasks_with(tasks, (DOPAMINE, ADAM), is_forecasting):
        own = cells[DOPAMINE]
        other = cells[ADAM]
        needed = float(statistics.median([passes_to(run, median_error(own)) for run in other]))
        budget = float(own[0]["budget"])
        slower += needed <= budget
        sizes.append(min(len(own), len(other)))
        reached = (
            f"Adam is there after {compact(needed)}"
            if math.isfinite(needed)
            else "Adam never gets there"
        )
        evidence.append(f"{title}: Dopamine's error after {compact(budget)} passes; {reached}.")
    cheaper_step = (less["time_over_two_forwards"], less["peak_memory_over_inference"])
    if not sizes:
        evidence.append("The work for the same error was not measured.")
    own, other = ({key: compact(cost(rows, key), 2) for key in COSTS} for rows in (ours, adam))
    summary = (
        f"A step takes {own['time_over_two_forwards']} times two forward passes "
        f"(Adam {other['time_over_two_forwards']}) "
        f"and {own['peak_memory_over_inference']} times inference's memory "
        f"(Adam {other['peak_memory_over_inference']})"
    )
    summary += (
        f"; Adam is at the same error sooner on {slower} of {len(sizes)} forecasting tasks."
        if sizes
        else "."
    )
    evidence.insert(0, summary)
    complete = all(cheaper_step) and bool(sizes) and not slower
    return Finding(
        HOLDS if complete else PARTLY if any(cheaper_step) else NOT_SEEN,
        evidence,
        min(sizes, default=0),
    )


def generalises_on_xor(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """Final error on unseen points of two XOR tasks, default sets against tuned SGD, Adam and WP.

    The tasks are cluster XOR and continuous XOR. On each the better of Dopamine and Dopamine2 by
    median is compared. It is better than another where the 95 % interval of the probability that
    its run beats the other's lies above .5. Holds: better than SGD, Adam and WP on every task.
    Holds partly: better than both SGD and Adam on some task. Otherwise not seen.
    """
    full = []
    partial = []
    evidence = []
    sizes = []
    others = (SGD, ADAM, WP)
    for title, cells in tasks_with(
        tasks, (), lambda task: task.startswith(("cluster-xor", "continuous-xor"))
    ):
        own = [method for method in (DOPAMINE, DOPAMINE2) if method in cells]
        present = [other for other in others if other in cells]
        if not (own and present):
            continue
        best = min(own, key=lambda method: median_error(cells[method]))
        errors = {method: scores(final_error, cells[method]) for method in (best, *present)}
        chances = {
            other: statistics.probability_of_improvement((errors[best], errors[other]))
            for other in present
        }
        better = {other for other, chance in chances.items() if sign_of(chance) == 1}
        full.append(better == set(others))
        partial.append({SGD, ADAM} <= better)
        sizes.extend(chance.n for chance in chances.values())
        rivals = [
            f"{name_of(other)} {middle(final_error, cells[other])}, beaten with probability "
            f"{with_interval(chance)}"
            for other, chance in chances.items()
        ]
        evidence.append(
            f"{title}: median test error of {name_of(best)} {middle(final_error, cells[best])}; "
            f"{'; '.join(rivals)}."
        )
    if not full:
        return _nothing(
            "neither cluster XOR nor continuous XOR was run with a Dopamine rule and another"
        )
    summary = (
        f"Better than SGD, Adam and WP on {sum(full)}, than SGD and Adam on {sum(partial)} of "
        f"{len(full)} task{'s' if len(full) > 1 else ''} with unseen points."
    )
    verdict = HOLDS if all(full) else PARTLY if any(partial) else NOT_SEEN
    return Finding(verdict, [summary, *evidence], min(sizes))


def lowest_error_on_chaos(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """Lowest median final test error on each forecasting task.

    The methods are all that the paper compared, and SPSA and ES. Dopamine2 counts with its default
    and with its tuned set. Holds: Dopamine2 is the lowest on every task. Holds partly: the lowest
    on some task, or the lowest of those without gradients on every task. Otherwise not seen.
    """
    first = []
    first_without_gradients = []
    evidence = []
    sizes = []
    for title, cells in tasks_with(tasks, (), is_forecasting):
        medians = {
            method: median_error(runs) for method, runs in cells.items() if method[0] != "vector"
        }
        if len({optimizer for optimizer, _ in medians}) < 2 or all(
            method[0] != "dopamine2" for method in medians
        ):
            continue
        ranked = sorted(medians, key=lambda method: medians[method])
        forward = [method for method in ranked if method[0] not in ("sgd", "adam")]
        first.append(ranked[0][0] == "dopamine2")
        first_without_gradients.append(forward[0][0] == "dopamine2")
        sizes.extend(len(cells[method]) for method in medians)
        own = next(method for method in ranked if method[0] == "dopamine2")
        words = f"{title}: lowest is {name_of(ranked[0])} with {compact(medians[ranked[0]])}"
        if ranked[0] != own:
            words += f"; {name_of(own)} has {compact(medians[own])}"
        if forward[0] not in (ranked[0], own):
            words += (
                f"; lowest without gradients is {name_of(forward[0])} "
                f"with {compact(medians[forward[0]])}"
            )
        evidence.append(words + ".")
    if not first:
        return _nothing("no forecasting task was run with Dopamine2 and another optimizer")
    partly = any(first) or all(first_without_gradients)
    summary = (
        f"Dopamine2 has the lowest median error on {sum(first)} of {len(first)} forecasting tasks"
    )
    summary += f", the lowest without gradients on {sum(first_without_gradients)}."
    return Finding(
        HOLDS if all(first) else PARTLY if partly else NOT_SEEN, [summary, *evidence], min(sizes)
    )


def stable(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """Runs of Dopamine and Dopamine2 (default sets) on the forecasting tasks, beside tuned WP.

    A run is unstable if it diverges or ends at more than twice its own best test error. The spread
    is the interquartile range of the final errors over their median. Holds: at most 5 % unstable in
    each rule on each task, and on each task a spread no larger than WP's. Holds partly: at most 5 %
    unstable in each rule over all tasks. Otherwise not seen.
    """
    evidence = []
    sizes = []
    calm = []
    tight = []
    shaky: dict[Method, list[bool]] = {}
    for title, cells in tasks_with(tasks, (), is_forecasting):
        present = [method for method in (DOPAMINE, DOPAMINE2) if method in cells]
        words = []
        for method in [*present, WP] if WP in cells and present else present:
            runs = cells[method]
            unstable = [is_unstable(run) for run in runs]
            spread = statistics.spread(scores(final_error, runs))
            words.append(
                f"{name_of(method)} {sum(unstable)} of {len(runs)} unstable, spread "
                f"{compact(spread, 2)}"
            )
            sizes.append(len(runs))
            if method != WP:
                shaky.setdefault(method, []).extend(unstable)
                calm.append(np.mean(unstable) <= 0.05)
                tight.append(
                    WP in cells and spread <= statistics.spread(scores(final_error, cells[WP]))
                )
        if words:
            evidence.append(f"{title}: {'; '.join(words)}.")
    if not shaky:
        return _nothing("no forecasting task was run with a Dopamine rule")
    partly = all(np.mean(each) <= 0.05 for each in shaky.values())
    counts = ", ".join(
        f"{name_of(method)} {sum(each)} of {len(each)}" for method, each in shaky.items()
    )
    summary = (
        f"Unstable runs: {counts}; "
        f"spread no larger than WP's in {sum(tight)} of {len(tight)} comparisons."
    )
    return Finding(
        HOLDS if all(calm) and all(tight) else PARTLY if partly else NOT_SEEN,
        [summary, *evidence],
        min(sizes),
    )


def vector_beats_adam(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """VectorDopamine, with nothing tuned, against Adam tuned for each task, on every task.

    This is not a claim of the paper. Runs are paired by their seed, so both have the same weights
    and batches. One beats the other as in C1. A task is won where the 95 % bootstrap interval of
    the median difference lies below 0, lost where it lies above. Holds: won on all. Holds partly:
    won on some, and on more than are lost. Otherwise not seen.
    """
    outcomes = []
    evidence = []
    sizes = []
    for title, cells in tasks_with(tasks, (VECTOR, ADAM), lambda task: True):
        ours = cells[VECTOR]
        theirs = cells[ADAM]
        timed = has_threshold(ours + theirs)
        score = solved_at if timed else final_error
        first, second = ({run["seed"]: score(run) for run in runs} for runs in (ours, theirs))
        found = statistics.paired_differences(first, second)
        outcomes.append(int(found.median.high < 0) - int(found.median.low > 0))
        sizes.append(len(found.seeds))
        measure = "median passes to the threshold" if timed else "median error"
        words = f"{title}: {measure} {middle(score, ours)} against {middle(score, theirs)}"
        evidence.append(
            f"{words}, lower on {found.share_better:.0%} of {len(found.seeds)} "
            f"seeds{interval_of(found.median)}."
        )
    if not outcomes:
        return _nothing("no task was run with both VectorDopamine and tuned Adam")
    won = outcomes.count(1)
    lost = outcomes.count(-1)
    summary = (
        f"Against tuned Adam, won on {won}, level on {outcomes.count(0)}, lost on {lost} of "
        f"{len(outcomes)} tasks."
    )
    verdict = HOLDS if won == len(outcomes) else PARTLY if won > lost else NOT_SEEN
    return Finding(verdict, [summary, *evidence], min(sizes))


CLAIMS: dict[str, tuple[str, Callable[[Tasks, Mapping[str, Any]], Finding]]] = {
    "C1": (
        "Dopamine converges faster than plain weight perturbation (WP) and outperforms it.",
        faster_than_wp,
    ),
    "C2": ("It performs comparably to gradient-based training.", comparable_to_gradients),
    "C3": ("It needs much less computation and memory than gradient-based training.", cheaper),
    "C4": ("It generalises better on XOR.", generalises_on_xor),
    "C5": ("Dopamine2 has the lowest error on chaotic forecasting.", lowest_error_on_chaos),
    "C6": ("It converges stably.", stable),
    "V1": (
        "This library's own: VectorDopamine beats backpropagation with Adam at equal forward "
        "passes.",
        vector_beats_adam,
    ),
}
COSTS = {
    "passes_per_step": "Forward passes per step",
    "time_over_two_forwards": "Time of a step, in units of two forward passes",
    "peak_memory_over_inference": "Peak memory, in units of inference's",
}
