"""The commands, once their words are known to be right.

Each loads the parts of the lab that it needs.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from dopaminergic.lab.task_options import make
from dopaminergic.lab.terminal import clean, fill, say

FREE = "-vpt"  # the end of the names of tasks that run free
ALL = ("dopamine", "dopamine2", "vector", "node", "wp", "sgd", "adam")


def reproduce(options: argparse.Namespace) -> int:
    """Run the paper's experiments and write the report."""
    from dopaminergic.lab.experiments import run_studies, studies
    from dopaminergic.lab.optimizers import METHODS
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.readiness import compile_noise
    from dopaminergic.lab.records import writable

    suffix = "" if options.size == "default" else f"-{options.size}"
    folder = writable(options.out or Path("runs") / f"reproduce{suffix}")
    plan = studies(options.part, options.size)
    used = {name for study in plan for name in study.optimizers}
    compile_noise([name for name in METHODS if name in used], quiet=options.json)
    with Progress(quiet=options.json) as progress:
        run_studies(plan, folder, options.workers, progress)
        if options.size != "quick":  # they take as long as all of its runs
            _measure_costs(folder, progress)
    return _finish(folder, options)


def _measure_costs(folder: Path, progress: Any) -> None:
    from dopaminergic.lab.costs import measure_costs
    from dopaminergic.lab.records import read_costs, sealed, write_whole

    try:
        known = read_costs(folder / "costs.json")
    except ValueError as error:
        known = {}
        say(f"{error}; measuring again")
    if not known:
        progress("costs of a step", 0, 1, [])
        write_whole(folder / "costs.json", sealed(measure_costs()))
        progress("costs of a step", 1, 1, [])


def _finish(folder: Path, options: argparse.Namespace) -> int:
    """Write the report of a folder, and print its results."""
    from dopaminergic.lab.progress import print_summary
    from dopaminergic.lab.ranking import lines_of
    from dopaminergic.lab.records import read_records
    from dopaminergic.lab.report import write_report
    from dopaminergic.lab.standings import standings

    made = [] if options.command == "report" else ["dopaminergic " + " ".join(options.line)]
    page = write_report(folder, options.out if options.command == "report" else None, made)
    summary = json.loads((page.parent / "summary.json").read_text())
    if options.json:
        print(json.dumps({"report": str(page), **summary}))
        return 0
    for line in lines_of(standings(read_records(folder / "records.jsonl").records)):
        print(line)
    print_summary(summary if options.command in ("reproduce", "report") else {}, page)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train one network, keep it, and forecast with it."""
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.readiness import compile_noise
    from dopaminergic.lab.records import writable
    from dopaminergic.lab.training import default_optimizer
    from dopaminergic.lab.training import train as train_one

    name, settings, task = make(options, validation=0.1)
    optimizer = options.optimizer or default_optimizer(name)
    folder = options.out or Path("runs") / f"train-{name}-{optimizer}"
    with Progress(quiet=options.json) as progress:
        record = train_one(
            name,
            settings,
            optimizer,
            lr=options.lr,
            seed=options.seed,
            budget=options.budget,
            folder=lambda: writable(folder),
            resume=options.resume,
            progress=progress,
            before=lambda: compile_noise([optimizer], quiet=options.json),
        )
    files = _use(folder, task, optimizer)
    if options.json:
        print(json.dumps({**record, "files": [str(path) for path in files]}))
        return 0
    _tell_training(record, task)
    for path in files:
        print(f"{WORDS[path.name]:9} {clean(str(path))}")
    where = clean(shlex.quote(str(folder)))
    if name == "series":
        print(f"use it:   dopaminergic forecast {where} --steps 10")
    print(f"draw it:  dopaminergic report {where}")
    return 0


WORDS = {
    "model.pt": "model:",
    "forecast.csv": "forecast:",
    "forecast.png": "drawing:",
    "records.jsonl": "record:",
}


def _use(folder: Path, task: Any, optimizer: str) -> list[Path]:
    """Forecast with the network that was kept; the files of it, the network first."""
    from dopaminergic.lab import load
    from dopaminergic.lab.drawing import colour
    from dopaminergic.lab.forecasts import write_all
    from dopaminergic.lab.saved import FILE
    from dopaminergic.lab.tasks.forecasting import SequenceTask

    found = [folder / FILE]
    if isinstance(task, SequenceTask):
        model = load(folder)
        try:
            found += write_all(folder, task, model.network, model, colour(optimizer))
        except ValueError as error:
            say(f"note: no forecast was written: {error}")
    return [*found, folder / "records.jsonl"]


def _tell_training(record: dict[str, Any], task: Any) -> None:
    """Print the results of one run."""
    from dopaminergic.lab.ranking import lines_of
    from dopaminergic.lab.references import is_reference
    from dopaminergic.lab.results import metric_name
    from dopaminergic.lab.standings import short, standings
    from dopaminergic.lab.tasks.real import compare_with_rivals

    for line in lines_of(standings([record])):
        print(line)
    kept = _kept(record, task)
    if kept:
        print(fill(kept))
    others = [
        f"{name.replace('_', ' ')} {'not finite' if value is None else short(value)}"
        for name, value in record["metrics"].items()
        if name != metric_name([record]) and not is_reference(name)
    ]
    if others:
        print(fill(f"Also: {', '.join(others)}."))
    for line in compare_with_rivals(task, record["metrics"]):
        print(fill(line))
    print()


def _kept(record: dict[str, Any], task: Any) -> str:
    """A sentence on the rows that chose the weights, "" where none did."""
    if task.patience is None:
        return ""
    done, budget = record["forward_passes"], record["budget"]
    early = f", and stopped after {done:,} of {budget:,} passes" if done < 0.9 * budget else ""
    return (
        f"Rows {task.train_rows + 1} to {task.test_first} chose the weights (--validation "
        f"{task.settings['validation']:g}){early}."
    )


def forecast(options: argparse.Namespace) -> int:
    """Forecast with a network that was kept."""
    from dopaminergic.lab import load
    from dopaminergic.lab.forecaster import Forecaster
    from dopaminergic.lab.forecasts import ahead, table_ahead, told, write_csv

    model = load(options.folder)
    if not isinstance(model, Forecaster):
        raise ValueError(
            f"{options.folder}: its network learned {model.task.name}, not a series of your own; "
            "train one by `dopaminergic train --csv FILE`"
        )
    if options.out is not None and options.out.suffix.lower() != ".csv":
        raise ValueError(f"--out: expected a file that ends in .csv, got {str(options.out)[-60:]}")
    found = ahead(model, options.csv, options.steps, options.interval)
    table = table_ahead(model, found)
    if options.out is not None:
        write_csv(options.out, table)
    if options.json:
        print(
            json.dumps({"columns": table.names, "rows": table.rows, "interval": options.interval})
        )
        return 0
    for line in told(model, found, options.interval):
        print(clean(line))
    kept = len(model.quantiles)
    if len(found.labels) > kept:
        say(f"note: its errors were measured for {kept} rows ahead; later ones have no interval")
    if options.out is not None:
        print(clean(str(options.out)))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Tune and compare optimizers on one task."""
    from dopaminergic.lab.experiments import Study, run_studies
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.readiness import compile_noise
    from dopaminergic.lab.records import writable
    from dopaminergic.lab.training import check_budget

    optimizers = _optimizers(options)
    name, settings, task = make(options)
    if options.optimizers is None and name.endswith(FREE):
        optimizers = tuple(each for each in optimizers if each != "node")
        say(
            "note: node is left out here, where its run takes an hour; to have it: --optimizers "
            "node,adam --budget 1200"
        )
    budget = options.budget or task.budget
    for optimizer in optimizers:
        check_budget(task, optimizer, budget)
    folder = writable(options.out or Path("runs") / f"compare-{name}")
    study = Study(name, settings, budget, options.tuning_seeds, options.seeds, optimizers)
    compile_noise(optimizers, quiet=options.json)
    with Progress(quiet=options.json) as progress:
        run_studies([study], folder, options.workers, progress)
    return _finish(folder, options)


def _optimizers(options: argparse.Namespace) -> tuple[str, ...]:
    from dopaminergic.lab.optimizers import find_method

    if options.optimizers is None:
        return ALL
    named = [each.strip() for each in options.optimizers.split(",") if each.strip()]
    for optimizer in named:
        find_method(optimizer)
    if not named:
        raise ValueError("--optimizers: give at least one, such as --optimizers dopamine,adam")
    return tuple(dict.fromkeys(named))


def report(options: argparse.Namespace) -> int:
    """Write the report of a folder again."""
    from dopaminergic.lab.records import writable

    if not options.folder.is_dir():
        raise ValueError(f"{options.folder}: no such folder; `dopaminergic reproduce` makes one")
    if options.out is not None:
        writable(options.out)
    return _finish(options.folder, options)


def tasks(options: argparse.Namespace) -> int:
    """List tasks and optimizers."""
    from dopaminergic.lab.optimizers import METHODS
    from dopaminergic.lab.progress import print_tasks
    from dopaminergic.lab.tasks import describe

    listing = {
        "tasks": describe(),
        "optimizers": [
            {
                "name": name,
                "label": m.label,
                "default_lr": m.default,
                "grid": m.grid,
                "passes_per_step": m.passes_per_step,
            }
            for name, m in METHODS.items()
        ],
    }
    if options.json:
        print(json.dumps(listing))
    else:
        print_tasks(listing)
    return 0


def journal(options: argparse.Namespace) -> int:
    """Show, verify or replay a journal."""
    from dopaminergic.lab.journals import rebuild, show, verify

    if options.action == "show":
        return show(options.file, options.last, options.json)
    if options.action == "verify":
        return verify(options.file, options.json)
    return rebuild(options.file, options.base, options.out, options.upto, options.json)
