"""The figures that the data of a folder allow, with titles and captions; each caption has its n."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from dopaminergic.lab import alt_texts, curves, plots
from dopaminergic.lab.drawing import save_smallest
from dopaminergic.lab.pictures import DEPARTURE, attractors, decision_boundaries, free_runs
from dopaminergic.lab.records import REQUIRED, Record, read_costs, read_records
from dopaminergic.lab.results import (
    LABELS,
    Cells,
    by_task,
    compact,
    final_error,
    has_threshold,
    is_forecasting,
    is_xor,
    task_rank,
    task_title,
    titles,
)

RESULTS = "Learning curves and final errors"
FORECASTS = "Forecasts that run free"
BOUNDARIES = "What was learned of XOR"
SENSITIVITY = "Sensitivity to the learning rate"
TRACES = "Prediction errors and learning rates"
COSTS = "Cost of a step"
LONGEST_SLUG = 80  # characters of a file name, which a path in the title would make too long


class Drawing(NamedTuple):
    """A picture on disk and its words.

    Attributes:
        path: of the file, SVG or PNG.
        title: heading.
        caption: the content of the picture, with its n.
        section: the part of the report it belongs to.
        wide: whether it takes the width of the page.
        finding: a sentence on the result that it shows, for readers who do not see it.
    """

    path: Path
    title: str
    caption: str
    section: str
    wide: bool
    finding: str


class Plan(NamedTuple):
    """A figure to draw: the stem of its file name, its functions, and the fields of `Drawing`."""

    name: str
    draw: Callable[[], Figure]
    title: str
    caption: str
    section: str
    wide: bool
    find: Callable[[], str]


def draw_all(folder_in: str | Path, folder_out: str | Path) -> list[Drawing]:
    """Draw every figure that the data of a folder allow, as SVG or PNG files in another.

    That folder is created if missing.

    Numbered figures that an earlier report left there, and this one does not have, are deleted.

    Args:
        folder_in: with `records.jsonl` and, if they were made, `pictures.jsonl` and `costs.json`.
        folder_out: of the figures.

    Returns:
        The drawings in the order of the report; the first three fields are path, title and caption.
    """
    source = Path(folder_in)
    target = Path(folder_out)
    target.mkdir(parents=True, exist_ok=True)
    records = read_records(source / "records.jsonl", REQUIRED).records
    pictures = read_records(source / "pictures.jsonl", ("name", "task", "optimizer")).records
    drawings = []
    for number, plan in enumerate(
        plan_all(records, pictures, read_costs(source / "costs.json").get("rows", [])), 1
    ):
        path = save_smallest(plan.draw(), target, f"{number:02d}-{plan.name}")
        drawings.append(Drawing(path, *plan[2:-1], plan.find()))
    # Figures of an earlier report that are no more, or have another number now.
    kept = {drawing.path for drawing in drawings}
    for kind in ("svg", "png"):
        for old in set(target.glob(f"[0-9][0-9]-*.{kind}")) - kept:
            old.unlink()
    return drawings


def plan_all(records: list[Record], pictures: list[Record], costs: list[Record]) -> list[Plan]:
    """The figures to be drawn, in the order of the report; none for data that are missing."""
    return [
        *_results(records),
        *_free_runs(pictures),
        *_boundaries(pictures),
        *_sensitivity(records),
        *_traces(records),
        *_costs(costs),
    ]


def plural(count: int, noun: str) -> str:
    """A count and its noun: "1 seed", "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def count(cells: Mapping[Any, Sequence[Record]]) -> str:
    """How many runs each method has, such as "n = 20 seeds each" or "n = 3 to 5 seeds"."""
    sizes = sorted({len(runs) for runs in cells.values()})
    return (
        f"n = {sizes[0]} to {plural(sizes[-1], 'seed')}"
        if len(sizes) > 1
        else f"n = {plural(sizes[0], 'seed')} each"
    )


def _slug(title: str) -> str:
    ascii_title = title.lower().replace("ö", "o").replace("é", "e")
    words = "-".join(
        "".join(one if one.isascii() and one.isalnum() else " " for one in ascii_title).split()
    )
    return words[:LONGEST_SLUG].rstrip("-")


def _task(cells: Cells) -> str:
    return next(iter(cells.values()))[0]["task"]


def _results(records: list[Record]) -> Iterator[Plan]:
    tasks = by_task(records)
    for title, cells in tasks.items():
        n = count(cells)
        slug = _slug(title)
        caption = (
            f"Median test error and interquartile band over seeds, {n}; "
            "a step of SGD or Adam counts as 3 passes."
        )
        draw = partial(curves.learning_curves, cells)
        find = partial(alt_texts.ends, cells)
        heading = f"{title}: learning curves"
        yield Plan(f"curves-{slug}", draw, heading, caption, RESULTS, False, find)
        if has_threshold(run for runs in cells.values() for run in runs):
            caption = f"Share of runs whose test error has fallen below the task's threshold, {n}."
            draw = partial(curves.solved_shares, cells)
            yield Plan(
                f"solved-{slug}",
                draw,
                f"{title}: runs that met the threshold",
                caption,
                RESULTS,
                False,
                partial(alt_texts.solved, cells),
            )
        if sum(map(len, cells.values())) < 2:  # a single dot is no figure
            continue
        budget = compact(max(run["budget"] for runs in cells.values() for run in runs))
        caption = (
            f"After {budget} forward passes, {n}: every run (small), the median (large; hollow for "
            "a tuned set beside a default one) and its bootstrap 95 % interval (bar)."
        )
        worst = curves.worst_shown(cells)
        if any(worst < final_error(run) < math.inf for runs in cells.values() for run in runs):
            caption += " Beyond: an error above twice that of untrained networks."
        small = plots.smallest_shown(cells)
        if any(0 < final_error(run) < small for runs in cells.values() for run in runs):
            caption += " Less: an error below a thousandth of the lowest median."
        draw = partial(plots.final_errors, cells)
        yield Plan(f"final-{slug}", draw, f"{title}: final errors", caption, RESULTS, False, find)
    chaos = {title: cells for title, cells in tasks.items() if is_forecasting(_task(cells))}
    # Only tasks that all methods have run compare them; one with a single method would leave out
    # the rest.
    most = max((len(cells) for cells in chaos.values()), default=0)
    chaos = {title: cells for title, cells in chaos.items() if len(cells) == most}
    if len(chaos) > 1 and all(
        0 < plots.lowest_median(cells) < math.inf for cells in chaos.values()
    ):
        joined = {
            (title, *method): runs
            for title, cells in chaos.items()
            for method, runs in cells.items()
        }
        caption = (
            f"Share of runs, averaged over {', '.join(chaos)}, whose final error is at most a "
            "multiple of the lowest "
            f"median on the task; further left is better; {count(joined)} on every task."
        )
        title = "Forecasting tasks: performance profile"
        draw, find = partial(plots.profile, chaos), partial(alt_texts.profile, chaos)
        yield Plan("profile", draw, title, caption, RESULTS, True, find)


def _free_runs(pictures: list[Record]) -> Iterator[Plan]:
    for title, chosen in _pictures(pictures, "free_run").items():
        runs = _one_run_each(chosen)
        caption = (
            "The truth, and each network's own dynamics when it is fed its own forecasts, from the "
            "same start; "
            f"normalised units, {runs}."
        )
        draw = partial(attractors, chosen)
        find = partial(alt_texts.free_runs, chosen)
        heading = f"{title}: attractors"
        yield Plan(f"attractor-{_slug(title)}", draw, heading, caption, FORECASTS, True, find)
        caption = (
            "Grey: truth; coloured: forecast. The dashed line marks where the forecast first errs "
            "by more than "
            f"{DEPARTURE} of the truth's root mean square; normalised units, {runs}."
        )
        draw = partial(free_runs, chosen)
        heading = f"{title}: forecasts in time"
        yield Plan(f"free-{_slug(title)}", draw, heading, caption, FORECASTS, True, find)


def _boundaries(pictures: list[Record]) -> Iterator[Plan]:
    for title, chosen in _pictures(pictures, "decision_boundary").items():
        caption = (
            "Predicted probability over the plane. Solid line: where it is one half; dotted: the "
            "true boundary, the "
            f"two axes; {_one_run_each(chosen)}."
        )
        draw = partial(decision_boundaries, chosen)
        yield Plan(
            f"boundary-{_slug(title)}",
            draw,
            f"{title}: decision boundaries",
            caption,
            BOUNDARIES,
            True,
            partial(alt_texts.boundaries, chosen),
        )


def _pictures(pictures: list[Record], name: str) -> dict[str, list[Record]]:
    """By title, the first picture of each optimizer, in the order of legends.

    Its default set comes before the tuned one.
    """
    chosen = sorted(
        (picture for picture in pictures if picture["name"] == name),
        key=lambda p: task_rank(p["task"]),
    )
    # Of a run that was made again, the last picture.
    runs: dict[tuple[Any, ...], Record] = {}
    for title, each in zip(titles(chosen), chosen, strict=True):
        runs[title, each["optimizer"], each.get("variant"), each.get("seed", 0)] = each
    tasks: dict[str, dict[str, Record]] = {title: {} for title, *_ in runs}
    for title, optimizer, variant, seed in sorted(
        runs, key=lambda run: (run[2] != "default", run[3])
    ):
        tasks[title].setdefault(optimizer, runs[title, optimizer, variant, seed])
    return {
        task: [first[key] for key in sorted(first, key=[*LABELS, *first].index)]
        for task, first in tasks.items()
    }


def _one_run_each(pictures: list[Record]) -> str:
    seeds = sorted({picture["seed"] for picture in pictures if "seed" in picture})
    return f"one run each (n = 1, seed {', '.join(map(str, seeds))})"


def _sensitivity(records: list[Record]) -> Iterator[Plan]:
    reported = by_task(records)
    for title, cells in by_task(records, "tuning").items():
        if not any(len(curves.errors_by_rate(runs)) > 1 for runs in cells.values()):
            continue
        seeds = plural(len({run["seed"] for runs in cells.values() for run in runs}), "seed")
        caption = (
            f"Median final error and interquartile band on the tuning seeds, n = {seeds} for each "
            "learning rate; no "
            "other figure shows these runs. A cross at the top: the median run diverged, or ended "
            "above twice the error of untrained networks."
        )
        yield Plan(
            f"sensitivity-{_slug(title)}",
            partial(curves.sensitivity, cells, curves.worst_shown(reported.get(title, cells))),
            title,
            caption,
            SENSITIVITY,
            False,
            partial(alt_texts.sensitivity, cells),
        )


def _traces(records: list[Record]) -> Iterator[Plan]:
    """One task of each kind: the first forecasting task, the first of XOR, the first of others."""
    seen = set()
    for title, cells in by_task(records).items():
        kind = (is_forecasting(_task(cells)), is_xor(_task(cells)))
        runs = [
            run
            for each in curves.main_variants(cells).values()
            for run in each
            if run.get("traces")
        ]
        if runs and kind not in seen:
            seen.add(kind)
            n = plural(len({run["seed"] for run in runs}), "run")
            caption = (
                "Above, the reward prediction error of the first run (linear near zero, "
                "logarithmic beyond); below, "
                f"the learning rate it sets, n = {n} each, the first in full colour. "
                "The errors of VectorDopamine and NodeDopamine are improvements less expected "
                "ones. Their rates are the shares of a Gauss-Newton step that they take, and, of "
                "many weights, the length of NodeDopamine's step."
            )
            draw, find = partial(curves.traces, runs), partial(alt_texts.traces, runs)
            yield Plan(f"traces-{_slug(title)}", draw, title, caption, TRACES, True, find)


def _costs(rows: list[Record]) -> Iterator[Plan]:
    if rows:
        models = list(dict.fromkeys(task_title(row["task"]) for row in rows))
        caption = (
            f"Medians over n = {plural(len(models), 'model')} ({', '.join(models)}); white dots: "
            "each model. Dashed: a "
            "forward pass without gradients, and the memory of inference. A pass is what compares, "
            "as a step of "
            "VectorDopamine has many, evaluated as batches; a step of SGD or Adam counts as 3."
        )
        yield Plan(
            "costs",
            partial(plots.costs_of_steps, rows),
            "Passes, time and memory",
            caption,
            COSTS,
            True,
            partial(alt_texts.costs, rows),
        )
