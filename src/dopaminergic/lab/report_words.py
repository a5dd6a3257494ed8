"""The words of a report: the experiments, what is missing, settings, and the environment."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import Any

from dopaminergic.lab.claims import ENOUGH_SEEDS, Verdict
from dopaminergic.lab.drawing import GRADIENTS
from dopaminergic.lab.figures import Drawing, plural
from dopaminergic.lab.records import Record
from dopaminergic.lab.results import (
    LABELS,
    Cells,
    Method,
    by_task,
    compact,
    is_forecasting,
    is_xor,
    method_title,
)
from dopaminergic.lab.tables import first_of, rank_of


def lead(records: Sequence[Record]) -> str:
    """The experiments, in two sentences."""
    shown = [record for record in records if record["role"] == "report"]
    names = sorted(
        {record["optimizer"] for record in records}, key=lambda name: rank_of((name, ""))
    )
    forward = [LABELS.get(str(name), str(name)) for name in names if name not in GRADIENTS]
    tuning = sorted({record["seed"] for record in records if record["role"] == "tuning"})
    tasks = plural(len(by_task(records, None)), "task")
    first = (
        f"{plural(len(shown), 'network')} {'was' if len(shown) == 1 else 'were'} trained on "
        f"{tasks} by "
        f"{plural(len(names), 'optimizer')}, each for a fixed budget of forward passes; "
        f"{_list(forward)} never "
        f"compute{'s' if len(forward) == 1 else ''} a gradient."
    )
    second = (
        "Settings were tuned with the same effort for all that have any to tune on "
        f"{plural(len(tuning), 'other seed')}, never shown in a result; a default set is one and "
        "the same for every "
        "task."
    )
    return (
        f"{first} {second}"
        if tuning
        else f"{first} The runs that tuned the settings are not in this folder."
    )


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def missing(
    records: Sequence[Record],
    costs: dict[str, Any],
    verdicts: Sequence[Verdict],
    drawings: Sequence[Drawing],
    damaged: int,
) -> list[str]:
    """The data that are absent or thin, as a reader must know."""
    tasks = by_task(records)
    notes = []
    if not tasks:
        notes.append(
            "Tuning seeds only: there is no run for a result, so no claim was judged and no error "
            "is tabulated."
        )
    notes += _few_seeds(tasks, verdicts)
    if not any(record["role"] == "tuning" for record in records):
        notes.append("No tuning runs: the sensitivity to the learning rate is not shown.")
    kinds = (("forecasting", is_forecasting), ("XOR", is_xor))
    notes += [
        f"No {name} task was run."
        for name, kind in kinds
        if tasks and of_paper(records) and not any(kind(record["task"]) for record in records)
    ]
    if not any(
        drawing.section in ("Forecasts that run free", "What was learned of XOR")
        for drawing in drawings
    ):
        notes.append(
            "No pictures.jsonl: forecasts that run free and decision boundaries are not shown."
        )
    if not costs.get("rows"):
        notes.append("No costs.json: time and memory of a step are not shown.")
    if damaged:
        notes.append(f"{plural(damaged, 'damaged line')} of records.jsonl left out.")
    return notes


def _few_seeds(tasks: dict[str, Cells], verdicts: Sequence[Verdict]) -> list[str]:
    """The tasks that have groups of fewer than 20 seeds.

    It names the verdicts that would be others without them, too.
    """
    smallest = {title: min(map(len, cells.values())) for title, cells in tasks.items()}
    few = [f"{title} (n = {size})" for title, size in smallest.items() if size < ENOUGH_SEEDS]
    if not few:
        return []
    provisional = [each.claim for each in verdicts if each.provisional]
    verb = "is" if len(provisional) == 1 else "are"
    effect = (
        f"{_list(provisional)} {verb} provisional for it"
        if provisional
        else "no verdict depends on them"
    )
    return [
        f"Fewer than {ENOUGH_SEEDS} seeds on {len(few)} of {plural(len(tasks), 'task')}: "
        f"{'; '.join(few)}; {effect}."
    ]


def of_paper(records: Iterable[Record]) -> bool:
    """Whether any task is of the two kinds in the paper's claims: chaotic series and XOR."""
    return any(is_forecasting(record["task"]) or is_xor(record["task"]) for record in records)


def settings_rows(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """(method, settings, tasks) of the runs shown; a default set is one row."""
    rows: dict[tuple[Method, str], list[str]] = {}
    for title, cells in by_task(records).items():
        for method, runs in cells.items():
            for words in dict.fromkeys(_words(run["settings"]) for run in runs):
                rows.setdefault((method, words), []).append(title)
    ordered = sorted(rows, key=lambda row: rank_of(row[0]))
    return [
        (method_title(method), words, ", ".join(rows[method, words])) for method, words in ordered
    ]


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {compact(value) if isinstance(value, float) else value}"
        for key, value in settings.items()
    )


def environment_rows(
    records: Sequence[Record], costs: dict[str, Any], commands: Sequence[str]
) -> list[tuple[str, str]]:
    """(name, value) of the facts that a reader needs to repeat the runs."""
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            if version not in versions.setdefault(name, []):
                versions[name].append(str(version))
    dates = sorted(record["created"] for record in records if record.get("created"))
    fleets = sum(record.get("seconds", 0) / max(1, record.get("replicas", 1)) for record in records)
    rows = [(name, ", ".join(found)) for name, found in versions.items()]
    rows += [
        (
            "commit",
            ", ".join(sorted({_commit(record) for record in records})),
        )
    ]
    rows += (
        [("runs made", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")]
        if dates
        else []
    )
    rows += [
        (
            "runs",
            f"{sum(one['role'] == 'report' for one in records)} for results, "
            f"{sum(one['role'] == 'tuning' for one in records)} for tuning",
        )
    ]
    rows += [("numbers", ", ".join(sorted({record.get("dtype", "unknown") for record in records})))]
    rows += [("training time", f"{compact(fleets)} s in all")]
    budgets = {
        title: first_of(cells, lambda runs: runs[0].get("budget", 0))
        for title, cells in by_task(records, None).items()
    }
    rows += [
        (
            "forward passes",
            "; ".join(f"{title} {compact(float(budget))}" for title, budget in budgets.items()),
        )
    ]
    rows += [
        (f"costs: {name}", _plain(value)) for name, value in costs.get("environment", {}).items()
    ]
    rows += [("report drawn with", f"Python {platform.python_version()}")]
    return rows + [("command", command) for command in commands]


def _commit(record: Record) -> str:
    """The commit that a run was made with, and whether files were changed since."""
    name, changed, _ = str(record.get("commit") or "unknown").partition("-dirty")
    return f"{name} with changes" if changed else name


def _plain(value: Any) -> str:
    return (
        ", ".join(f"{name} {each}" for name, each in value.items())
        if isinstance(value, dict)
        else str(value)
    )
