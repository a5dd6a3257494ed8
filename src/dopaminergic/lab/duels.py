"""Rules that judge claims about one optimizer against one rival, WP or Adam.

The docstring of each rule says how its verdict follows. The report prints it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dopaminergic.lab import statistics
from dopaminergic.lab.comparisons import (
    ADAM,
    DOPAMINE,
    DOPAMINE2,
    NODE,
    VECTOR,
    WP,
    Tasks,
    best_of,
    cost,
    cost_rows,
    interval_of,
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
from dopaminergic.lab.findings import HOLDS, NOT_SEEN, PARTLY, Finding, not_measured
from dopaminergic.lab.results import (
    compact,
    final_error,
    has_threshold,
    is_forecasting,
    is_xor,
    solved_at,
)

COMPARABLE = 1.25  # ratio of median errors up to which two methods count as comparable
COSTS = {
    "passes_per_step": "Forward passes per step",
    "time_over_two_forwards": "Time of a step, in units of two forward passes",
    "peak_memory_over_inference": "Peak memory, in units of inference's",
}


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
        return not_measured("no task was run with both Dopamine (default) and tuned WP")
    return _tally("tuned WP", outcomes, evidence, min(sizes))


def _tally(other: str, outcomes: list[int], evidence: list[str], n: int) -> Finding:
    """A finding from tasks that were won (1), lost (-1) or level (0) against another method."""
    won = outcomes.count(1)
    lost = outcomes.count(-1)
    summary = (
        f"Against {other}, won on {won}, level on {outcomes.count(0)}, lost on {lost} of "
        f"{len(outcomes)} tasks."
    )
    verdict = HOLDS if won == len(outcomes) else PARTLY if won > lost else NOT_SEEN
    return Finding(verdict, [summary, *evidence], n)


def comparable_to_gradients(tasks: Tasks, costs: Mapping[str, Any]) -> Finding:
    """The best of Dopamine, Dopamine2 and NodeDopamine (default sets) against tuned Adam.

    A rule that was not run on a task does not count there. They are compared on every forecasting
    and XOR task. A task is comparable where the median final test error is at most 1.25 times
    Adam's. A task with a threshold is comparable where the share of solved runs is at most .05
    below Adam's. Holds: comparable on all forecasting tasks. Holds partly: comparable on some task.
    Otherwise, or without a forecasting task, not seen or not measured.
    """
    comparable: dict[str, bool] = {}
    evidence = []
    sizes = []
    forecasting = []
    for title, cells in tasks_with(
        tasks, (ADAM,), lambda task: is_forecasting(task) or is_xor(task)
    ):
        best = best_of(cells, (DOPAMINE, DOPAMINE2, NODE))
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
        finding = not_measured(
            "no forecasting task was run with both a Dopamine rule and tuned Adam"
        )
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
        return not_measured("costs.json has no model with rows for both Dopamine and Adam")
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
        return not_measured("no task was run with both VectorDopamine and tuned Adam")
    return _tally("tuned Adam", outcomes, evidence, min(sizes))
