"""The report: one self-contained HTML page, a summary for programs, and the figures, from the records of a folder."""

from __future__ import annotations

import base64
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from dopaminergic.lab import statistics
from dopaminergic.lab.claims import ENOUGH_SEEDS, Verdict, judge
from dopaminergic.lab.drawing import GRADIENTS
from dopaminergic.lab.figures import Drawing, draw_all, plural
from dopaminergic.lab.records import REQUIRED, Record, plain, read_costs, read_records, within, write_whole
from dopaminergic.lab.results import (
    LABELS,
    METRICS,
    Cells,
    Method,
    by_task,
    compact,
    final_error,
    has_threshold,
    is_forecasting,
    is_xor,
    method_title,
    metric_name,
    metric_title,
    solved_at,
    unique,
)

HIGHER_IS_BETTER = ("vpt", "accuracy")


class Cell(NamedTuple):
    """A number of a table: its text, the smaller text below it, and whether it is the best of its row."""

    text: str
    below: str = ""
    best: bool = False
    best_without_gradients: bool = False


class Table(NamedTuple):
    """A table of methods in columns: heading, note, names of the columns, rows of (name, unit, cells)."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]


def write_report(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, commands: Sequence[str] = ()
) -> Path:
    """Judge, tabulate and draw what is in a folder; write `report.html`, `summary.json` and `figures/*.png`.

    Args:
        folder: with `records.jsonl` and, if they were made, `pictures.jsonl` and `costs.json`.
        out: folder of what is written, created if missing; `folder` itself by default.
        commands: command lines that made the records, to be shown.

    Returns:
        The path of the page, which needs no other file and no network.

    Raises:
        ValueError: the folder has no records.
    """
    source, target = Path(folder), Path(folder if out is None else out)
    found = read_records(source / "records.jsonl", REQUIRED)
    if not found.records:
        raise ValueError(
            f"folder: no finished run in {source / 'records.jsonl'}; `dopaminergic reproduce` makes them "
            "(in a minute with --quick)"
        )
    target.mkdir(parents=True, exist_ok=True)
    records, costs = unique(found.records), read_costs(source / "costs.json")
    verdicts = judge(records, costs)
    drawings = draw_all(source, within(target, "figures"))
    write_whole(target / "summary.json", json.dumps(plain(summarise(records, verdicts)), indent=1, ensure_ascii=False))
    page = render(records, costs, verdicts, drawings, found.damaged, commands)
    write_whole(target / "report.html", page)
    return target / "report.html"


# --- numbers ---


def summarise(records: Iterable[Record], verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Medians, interquartile means, intervals and n of every task and method, and the verdicts, as JSON types.

    Args:
        records: any; those of role "report" count.
        verdicts: from `judge`.
    """
    rows = []
    for title, cells in by_task(records).items():
        timed = has_threshold(run for runs in cells.values() for run in runs)
        for (optimizer, variant), runs in cells.items():
            row = {"task": runs[0]["task"], "title": title, "optimizer": optimizer, "variant": variant, "n": len(runs)}
            errors = [final_error(run) for run in runs]
            row |= {"metric": metric_name(runs), "error": statistics.estimate(errors)._asdict()}
            middle = statistics.estimate(errors, statistic=statistics.interquartile_mean)
            row |= {"interquartile_mean": middle._asdict(), "diverged": sum(map(math.isinf, errors))}
            if timed:
                row["solved"] = _solved(runs)._asdict()
                row["passes_to_threshold"] = statistics.estimate([solved_at(run) for run in runs])._asdict()
            rows.append(row)
    claims = [
        {"claim": each.claim, "title": each.statement, "verdict": each.verdict, "n": each.n, "rule": each.rule,
         "provisional": each.provisional, "evidence": each.evidence[0], "details": each.evidence[1:]}
        for each in verdicts
    ]  # fmt: skip
    return {"schema": 1, "claims": claims, "results": rows}


def _solved(runs: Sequence[Record]) -> statistics.Estimate:
    return statistics.wilson_interval(sum(math.isfinite(solved_at(run)) for run in runs), len(runs))


def _range(found: statistics.Estimate) -> str:
    if math.isnan(found.low):
        return ""
    low, high = compact(found.low), compact(found.high)
    return low if low == high else f"{low}–\u200b{high}"  # noqa: RUF001 (a zero-width space lets narrow columns break)


def _marked(cells: Sequence[Cell | None], ranks: Sequence[float], methods: Sequence[Method]) -> list[Cell]:
    """The cells of a row with the best marked, the lowest rank being best; NaN is never best, None an empty cell."""
    forward = [rank for rank, (name, _) in zip(ranks, methods, strict=True) if name not in GRADIENTS]
    best, best_forward = _least(ranks), _least(forward)
    return [
        Cell("") if cell is None else cell._replace(
            best=rank == best, best_without_gradients=rank == best_forward and name not in GRADIENTS
        )
        for cell, rank, (name, _) in zip(cells, ranks, methods, strict=True)
    ]  # fmt: skip


def _least(ranks: Sequence[float]) -> float | None:
    finite = [rank for rank in ranks if math.isfinite(rank)]
    return min(finite) if len(finite) > 1 else None


def tables(records: Iterable[Record]) -> list[Table]:
    """The tables of results: final errors, solved runs, other measures; empty ones are left out."""
    tasks = by_task(records)
    methods = sorted({method for cells in tasks.values() for method in cells}, key=_rank)
    columns = [_column(method, methods) for method in methods]
    errors, solved, others = [], [], []
    for title, cells in tasks.items():
        errors.append((title, _first(cells, metric_title), _error_row(cells, methods)))
        if has_threshold(run for runs in cells.values() for run in runs):
            solved.append((title, "solved; median passes", _solved_row(cells, methods)))
        for name in dict.fromkeys(name for runs in cells.values() for run in runs for name in run.get("metrics", {})):
            if name != metric_name(run for runs in cells.values() for run in runs):
                others.append((title, METRICS.get(name, name.replace("_", " ")), _metric_row(cells, methods, name)))
    bold = "Bold: the best of the row; underlined: the best without gradients."
    return [
        table
        for table in (
            Table(
                "Final test error", f"Median over seeds, below it the bootstrap 95 % interval. {bold}", columns, errors
            ),
            Table(
                "Runs that met the task's threshold",
                "Share of runs, below it the median of forward passes to the threshold (∞: the median run never met "
                f"it). The 95 % intervals are in summary.json. {bold}",
                columns,
                solved,
            ),
            Table("Other measures at the end of a run", f"Median over seeds. {bold}", columns, others),
        )
        if table.rows
    ]


def _rank(method: Method) -> tuple[int, str, str]:
    return ([*LABELS, method[0]].index(method[0]), *method)


def _column(method: Method, methods: Sequence[Method]) -> str:
    both = sum(name == method[0] for name, _ in methods) > 1
    return method_title(method) if both else method_title(method, bare=True)


def _first(cells: Cells, describe: Any) -> str:
    return describe([run for runs in cells.values() for run in runs])


def _error_row(cells: Cells, methods: Sequence[Method]) -> list[Cell]:
    found = [
        statistics.estimate([final_error(run) for run in cells[each]]) if each in cells else None for each in methods
    ]
    shown = [None if each is None else Cell("diverges" if math.isinf(each.value) else compact(each.value),
             "" if math.isinf(each.value) else _range(each)) for each in found]  # fmt: skip
    return _marked(shown, [math.nan if each is None else each.value for each in found], methods)


def _solved_row(cells: Cells, methods: Sequence[Method]) -> list[Cell]:
    shown: list[Cell | None] = []
    ranks = []
    for method in methods:
        if method not in cells:
            shown.append(None)
            ranks.append(math.nan)
            continue
        share = _solved(cells[method])
        passes = float(statistics.median([solved_at(run) for run in cells[method]]))
        shown.append(Cell(f"{share.value:.0%}", compact(passes)))
        ranks.append(-share.value)
    return _marked(shown, ranks, methods)


def _metric_row(cells: Cells, methods: Sequence[Method], name: str) -> list[Cell]:
    """Medians of a measure; a value that is missing from a run counts as the worst."""
    sign = -1 if name in HIGHER_IS_BETTER else 1
    shown: list[Cell | None] = []
    ranks = []
    for method in methods:
        values = [run.get("metrics", {}).get(name) for run in cells.get(method, [])]
        if all(value is None for value in values):
            shown.append(None)
            ranks.append(math.nan)
            continue
        middle = float(statistics.median([math.inf if value is None else sign * value for value in values]))
        shown.append(Cell(compact(sign * middle) if math.isfinite(middle) else "diverges"))
        ranks.append(middle)
    return _marked(shown, ranks, methods)


# --- words ---


def lead(records: Sequence[Record]) -> str:
    """What was done, in two sentences."""
    shown = [record for record in records if record["role"] == "report"]
    names = sorted({record["optimizer"] for record in records}, key=lambda name: _rank((name, "")))
    forward = [LABELS.get(str(name), str(name)) for name in names if name not in GRADIENTS]
    tuning = sorted({record["seed"] for record in records if record["role"] == "tuning"})
    tasks = plural(len(by_task(records, None)), "task")
    first = (
        f"{plural(len(shown), 'network')} {'was' if len(shown) == 1 else 'were'} trained on {tasks} by "
        f"{plural(len(names), 'optimizer')}, each for a fixed budget of forward passes; {_list(forward)} never compute "
        "a gradient."
    )
    second = (
        "Settings were tuned with the same effort for all that have any to tune on "
        f"{plural(len(tuning), 'other seed')}, never shown in a result; a default set is one and the same for every "
        "task."
    )
    return f"{first} {second}" if tuning else f"{first} The runs that tuned the settings are not in this folder."


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def missing(records: Sequence[Record], costs: dict[str, Any], drawings: Sequence[Drawing], damaged: int) -> list[str]:
    """What a reader must know is absent or thin."""
    tasks = by_task(records)
    notes = []
    if not tasks:
        notes.append(
            "Tuning seeds only: there is no run for a result, so no claim was judged and no error is tabulated."
        )
    sizes = sorted({len(runs) for cells in tasks.values() for runs in cells.values()})
    if sizes and sizes[0] < ENOUGH_SEEDS:
        n = f"n = {plural(sizes[0], 'seed')}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]} seeds"
        notes.append(f"{n}: fewer than the {ENOUGH_SEEDS} needed for a claim, so the verdicts are provisional.")
    if not any(record["role"] == "tuning" for record in records):
        notes.append("No tuning runs: the sensitivity to the learning rate is not shown.")
    kinds = (("forecasting", is_forecasting), ("XOR", is_xor))
    notes += [
        f"No {name} task was run."
        for name, kind in kinds
        if tasks and not any(kind(record["task"]) for record in records)
    ]
    if not any(drawing.section in ("Forecasts that run free", "What was learned of XOR") for drawing in drawings):
        notes.append("No pictures.jsonl: forecasts that run free and decision boundaries are not shown.")
    if not costs.get("rows"):
        notes.append("No costs.json: time and memory of a step are not shown.")
    if damaged:
        notes.append(f"{plural(damaged, 'damaged line')} of records.jsonl left out.")
    return notes


def settings_rows(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """(method, settings, tasks) of the runs shown; a default set is one row."""
    rows: dict[tuple[Method, str], list[str]] = {}
    for title, cells in by_task(records).items():
        for method, runs in cells.items():
            for words in dict.fromkeys(_words(run["settings"]) for run in runs):
                rows.setdefault((method, words), []).append(title)
    ordered = sorted(rows, key=lambda row: _rank(row[0]))
    return [(method_title(method), words, ", ".join(rows[method, words])) for method, words in ordered]


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {compact(value) if isinstance(value, float) else value}" for key, value in settings.items()
    )


def environment_rows(
    records: Sequence[Record], costs: dict[str, Any], commands: Sequence[str]
) -> list[tuple[str, str]]:
    """(name, value) of what a reader needs to repeat the runs."""
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            if version not in versions.setdefault(name, []):
                versions[name].append(str(version))
    dates = sorted(record["created"] for record in records if record.get("created"))
    fleets = sum(record.get("seconds", 0) / max(1, record.get("replicas", 1)) for record in records)
    rows = [(name, ", ".join(found)) for name, found in versions.items()]
    rows += [("commit", ", ".join(sorted({str(record.get("commit") or "unknown") for record in records})))]
    rows += [("runs made", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")] if dates else []
    rows += [("runs", f"{sum(one['role'] == 'report' for one in records)} for results, "
              f"{sum(one['role'] == 'tuning' for one in records)} for tuning")]  # fmt: skip
    rows += [("numbers", ", ".join(sorted({record.get("dtype", "unknown") for record in records})))]
    rows += [("training time", f"{compact(fleets)} s in all")]
    budgets = {
        title: _first(cells, lambda runs: runs[0].get("budget", 0)) for title, cells in by_task(records, None).items()
    }
    rows += [("forward passes", "; ".join(f"{title} {compact(float(budget))}" for title, budget in budgets.items()))]
    rows += [(f"costs: {name}", str(value)) for name, value in costs.get("environment", {}).items()]
    rows += [("report drawn with", f"Python {platform.python_version()}")]
    return rows + [("command", command) for command in commands]


# --- the page ---


def render(
    records: Sequence[Record],
    costs: dict[str, Any],
    verdicts: Sequence[Verdict],
    drawings: Sequence[Drawing],
    damaged: int = 0,
    commands: Sequence[str] = (),
) -> str:
    """The page as text; every name and string is escaped, images are within it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resources.files("dopaminergic.lab").joinpath("report.html").read_text("utf-8"))
    sections: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for drawing in drawings:
        group, colon, rest = drawing.title.rpartition(": ")
        figure = _figure(drawing) | {"heading": (rest[:1].upper() + rest[1:]) if colon else rest}
        sections.setdefault(drawing.section, {}).setdefault(group, []).append(figure)
    dates = sorted(record["created"] for record in records if record.get("created"))
    return template.render(
        lead=lead(records),
        date=dates[-1][:10] if dates else "undated",
        missing=missing(records, costs, drawings, damaged),
        verdicts=verdicts,
        tables=tables(records),
        sections=sections,
        settings=settings_rows(records),
        environment=environment_rows(records, costs, commands),
        slug=lambda title: "".join(letter if letter.isalnum() else "-" for letter in title.lower()),
    )


def _figure(drawing: Drawing) -> dict[str, Any]:
    with Image.open(drawing.path) as image:
        width, height = image.size
    data = base64.b64encode(drawing.path.read_bytes()).decode()
    return {"title": drawing.title, "caption": drawing.caption, "wide": drawing.wide, "width": width, "height": height,
            "source": f"data:image/png;base64,{data}"}  # fmt: skip
