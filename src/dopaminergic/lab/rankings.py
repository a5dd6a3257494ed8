"""Rules that judge claims about an optimizer among all others, or about it alone.

The docstring of each rule says how its verdict follows. The report prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dopaminergic.lab import statistics
from dopaminergic.lab.comparisons import (
    ADAM,
    DOPAMINE,
    DOPAMINE2,
    SGD,
    WP,
    Tasks,
    is_unstable,
    median_error,
    middle,
    name_of,
    scores,
    sign_of,
    tasks_with,
    with_interval,
)
from dopaminergic.lab.findings import HOLDS, NOT_SEEN, PARTLY, Finding, not_measured
from dopaminergic.lab.results import (
    Method,
    compact,
    final_error,
    is_forecasting,
)

LATER = ("vector", "node")  # optimizers of this library that the paper does not know


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
        return not_measured(
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
            method: median_error(runs) for method, runs in cells.items() if method[0] not in LATER
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
        return not_measured("no forecasting task was run with Dopamine2 and another optimizer")
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
        return not_measured("no forecasting task was run with a Dopamine rule")
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
