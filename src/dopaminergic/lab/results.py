"""The content of records of runs: scores, groups, and names for readers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dopaminergic.lab.records import Record

Method = tuple[str, str]  # (optimizer, variant)
Cells = dict[Method, list[Record]]  # the runs of one task

# The order is that of every table and legend: the rules under test, other perturbation rules,
# gradients.
LABELS = {
    "dopamine": "Dopamine",
    "dopamine2": "Dopamine2",
    "vector": "VectorDopamine",
    "node": "NodeDopamine",
    "wp": "WP",
    "spsa": "SPSA",
    "es": "ES",
    "sgd": "SGD",
    "adam": "Adam",
}
FORECASTING = ("lorenz", "rossler", "mackey-glass", "henon", "logistic")
TITLES = {
    "lorenz": "Lorenz",
    "rossler": "Rössler",
    "mackey-glass": "Mackey–Glass",  # noqa: RUF001
    "henon": "Hénon",
    "logistic": "Logistic map",
    "xor": "XOR",
    "vpt": "free run",
    "mnist1d": "MNIST-1D",
}


def final_error(record: Mapping[str, Any]) -> float:
    """Test error at the end of the run.

    It is infinity where the run diverged or the error is not finite.
    """
    errors = record["curve"]["error"]
    last = errors[-1] if errors else None
    return (
        math.inf
        if last is None or record.get("diverged") or not math.isfinite(last)
        else float(last)
    )


def solved_at(record: Mapping[str, Any]) -> float:
    """Forward passes when the task's threshold was first met; infinity if it never was."""
    passes = record.get("solved_at")
    return math.inf if passes is None else float(passes)


def metric_name(records: Iterable[Mapping[str, Any]]) -> str:
    """Name of the metric that the curves show: the one whose final value is the curve's.

    It is "error" if there is none.
    """
    for record in records:
        last = final_error(record)
        values = {
            name: value for name, value in record.get("metrics", {}).items() if value is not None
        }
        # Curves may be stored with fewer digits than metrics are.
        close = {
            name: abs(value - last)
            for name, value in values.items()
            if math.isclose(value, last, rel_tol=1e-3)
        }
        if close and math.isfinite(last):
            return min(close, key=lambda name: close[name])
    return "error"


METRICS = {
    "nrmse": "NRMSE",
    "mse": "mean squared error",
    "error": "error",
    "error_rate": "error rate",
    "error_1956_1979": "error, 1956–79",  # noqa: RUF001
    "error_1980_2008": "error, 1980–2008",  # noqa: RUF001
    "train_error_rate": "Training error rate",
    "loss": "loss",
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "vpt": "Valid prediction time (Lyapunov times)",
    "test_nrmse": "NRMSE on the test part",
    "nrmse_one_lyapunov_time": "NRMSE over one Lyapunov time of free running",
    "diverged_share": "Share of free runs that diverge",
}


def metric_title(records: Iterable[Mapping[str, Any]]) -> str:
    """Name of the curves' metric for readers, to follow the word "test"."""
    name = metric_name(records)
    return METRICS.get(name, name.replace("_", " "))


def unique(records: Iterable[Record]) -> list[Record]:
    """Records without repetitions of the same run.

    A run is the same if task and task settings, method, role, budget, seed and settings are. The
    last of each is kept, in the place of the first.
    """
    keys = ("task", "task_settings", "optimizer", "variant", "role", "budget", "seed", "settings")
    found = {
        json.dumps([record.get(key) for key in keys], sort_keys=True): record for record in records
    }
    return list(found.values())


def by_task(records: Iterable[Record], role: str | None = "report") -> dict[str, Cells]:
    """Records of a role by title of the task, then by (optimizer, variant).

    The order is that of tables and legends. Tasks that share a name but differ in their settings or
    budget are kept apart. Their titles say how they differ.

    Args:
        records: any records.
        role: "report", "tuning", or None for both.
    """
    chosen = [record for record in unique(records) if role is None or record["role"] == role]
    chosen.sort(key=lambda record: (task_rank(record["task"]), _method_rank(record)))
    tasks: dict[str, Cells] = {}
    for record, title in zip(chosen, titles(chosen), strict=True):
        tasks.setdefault(title, {}).setdefault((record["optimizer"], record["variant"]), []).append(
            record
        )
    return tasks


def titles(records: Sequence[Record]) -> list[str]:
    """The title of each record's task.

    It says how the task differs from others of that name, if it does.

    Args:
        records: runs, or pictures of runs.
    """
    # Few records differ in their task: comparing each with each other would take minutes for a
    # large run.
    settings: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        known = settings.setdefault(record["task"], [])
        if _distinguishing(record) not in known:
            known.append(_distinguishing(record))
    found = []
    for record in records:
        own = _distinguishing(record)
        all_of_name = settings[record["task"]]
        differing = [key for key in own if any(other.get(key) != own[key] for other in all_of_name)]
        suffix = ", ".join(f"{key.replace('_', ' ')} {own[key]}" for key in differing)
        found.append(task_title(record["task"]) + (f" ({suffix})" if suffix else ""))
    return found


def _distinguishing(record: Record) -> dict[str, Any]:
    told = {**record.get("task_settings", {}), "budget": record.get("budget")}
    return {key: value for key, value in told.items() if value is not None}


def task_rank(task: str) -> tuple[int, int, str]:
    """The key that orders tasks in tables and figures: forecasting, XOR, others."""
    stem = next(
        (rank for rank, name in enumerate(FORECASTING) if task.startswith(name)), len(FORECASTING)
    )
    return (0 if is_forecasting(task) else 1 if is_xor(task) else 2, stem, task)


def _method_rank(record: Record) -> tuple[int, str, str]:
    names = list(LABELS)
    optimizer = record["optimizer"]
    return (
        names.index(optimizer) if optimizer in names else len(names),
        optimizer,
        record["variant"],
    )


def task_title(task: str) -> str:
    """A task's name for readers.

    For example, `mackey-glass` becomes Mackey-Glass with a dash, `xor-2-2-1` becomes XOR 2-2-1.
    """
    for name in FORECASTING:
        if task.startswith(name):
            rest = [TITLES.get(word, word) for word in task[len(name) :].split("-") if word]
            return " ".join([TITLES[name], *rest])
    shape = task.removeprefix("xor-")
    if shape != task:
        return f"XOR {shape}"
    words = " ".join(TITLES.get(word, word) for word in task.split("-"))
    return words[:1].upper() + words[1:]


def method_title(method: Method, bare: bool = False) -> str:
    """A method's name for readers.

    It has the variant where an optimizer has two, unless `bare`.
    """
    optimizer, variant = method
    name = LABELS.get(optimizer, optimizer)
    return f"{name}, {variant}" if optimizer.startswith("dopamine") and not bare else name


def is_forecasting(task: str) -> bool:
    """Whether the task is a chaotic series to be forecast."""
    return task.startswith(FORECASTING)


def is_xor(task: str) -> bool:
    """Whether the task is one of the XOR family."""
    return "xor" in task.split("-")


def has_threshold(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of the runs met a threshold.

    If not, passes to a threshold mean nothing here.
    """
    return any(record.get("solved_at") is not None for record in records)


def compact(value: float, digits: int = 3) -> str:
    """A number for readers: three significant digits, thousands in groups.

    Numbers far from 1 have powers of ten.

    >>> compact(0.033412), compact(20000), compact(1.2e-5)
    ('0.0334', '20,000', '1.20 × 10⁻⁵')
    >>> compact(float("inf")), compact(float("nan"))
    ('∞', '–')
    """
    if math.isnan(value):
        return "–"  # noqa: RUF001
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"  # noqa: RUF001
    if value == 0 or (float(value).is_integer() and 1 <= abs(value) < 1e7):
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 5:
        return f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - power)}f}"
    return f"{mantissa} × 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"  # noqa: RUF001
