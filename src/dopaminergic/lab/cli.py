"""The command line: `dopaminergic reproduce | train | compare | report | tasks | journal`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopaminergic.lab.arguments import parser
from dopaminergic.lab.terminal import clean, show_all_signs

if TYPE_CHECKING:
    from dopaminergic.lab.tasks import Task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        0, or 2 after an error that the user can mend, or 130 after Ctrl-C.
    """
    show_all_signs()
    options = parser(COMMANDS).parse_args(arguments)
    options.line = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that is gone can be told from a failure
        return status
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted{_how_to_continue(options, str(stop))}", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if not _readers_are_gone():
            return _fail(
                f"another process of this run is gone ({error}); run the same command again to "
                "continue"
            )
        # A reader such as `head` has had enough; nothing is missing unless runs were still to be
        # made.
        return 1 if options.command in ("reproduce", "train", "compare") else 0
    except ModuleNotFoundError as error:
        return _fail(
            f"{error.name} is not installed; the command line needs: pip install "
            "'dopaminergic[fast,lab]'"
        )
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if os.environ.get("DOPAMINERGIC_TRACEBACK"):
            raise
        return _fail(str(error))


def _readers_are_gone() -> bool:
    """Whether nobody reads the output of this process; then the rest of it is dropped."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone = True
            os.dup2(nothing, stream.fileno())
        except (AttributeError, ValueError):  # closed, or none at all
            continue
    os.close(nothing)
    return gone


def _fail(message: str) -> int:
    print(f"dopaminergic: error: {clean(message)}", file=sys.stderr)
    return 2


def _how_to_continue(options: argparse.Namespace, checkpoint: str) -> str:
    """The command that goes on where this one was interrupted.

    It says from where it goes on; a plain one starts `train` again.
    """
    if options.command not in ("reproduce", "train", "compare"):
        return ""
    line = ["dopaminergic", *options.line]
    kept = "; finished runs are kept"
    if options.command == "train":
        kept = (
            f" at the checkpoint {checkpoint}"
            if checkpoint
            else "; the last checkpoint, if there is one, is kept"
        )
        line += [] if options.resume else ["--resume"]
    return clean(f"{kept}; to continue: {shlex.join(line)}")


def _tell(notes: Sequence[str]) -> None:
    """Print notes on the data on standard error."""
    for note in notes:
        print(f"dopaminergic: note: {clean(note)}", file=sys.stderr)


# ---- the commands; imports wait until they are needed, so that --help answers at once ------------


def _task_of(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    settings: dict[str, Any] = {}
    for pair in options.set:
        name, equals, text = pair.partition("=")
        if name in settings:
            raise ValueError(f"--set {pair}: {name} is set twice; give it once")
        if not equals:
            raise ValueError(f"--set {pair}: write NAME=VALUE, such as --set hidden=32")
        try:
            settings[name] = json.loads(text)
        except (ValueError, RecursionError):
            settings[name] = text
    if options.csv is None:
        if options.column:
            raise ValueError("--column goes with --csv FILE")
        if options.task is None:
            raise ValueError(
                "which task? give --task NAME (see `dopaminergic tasks`) or --csv FILE --column "
                "NAME"
            )
        return options.task, settings
    if options.task is not None:
        raise ValueError("give either --task or --csv, not both")
    columns = options.column[0] if options.column and len(options.column) == 1 else options.column
    for name, flag in (("path", "--csv"), ("column", "--column")):
        if name in settings:
            raise ValueError(f"--set {name}: give the {name} by {flag} instead")
    return "series", {"path": options.csv, **({"column": columns} if columns else {}), **settings}


def _make(options: argparse.Namespace) -> tuple[str, dict[str, Any], Task]:
    """The task of the options: its name, its settings, and itself.

    The settings are tied to the data as they are now.
    """
    from dopaminergic.lab.tasks import make_task

    name, settings = _task_of(options)
    task = make_task(name, **settings)
    _tell(task.notes)
    return name, {**settings, **task.pinned}, task


def _reproduce(options: argparse.Namespace) -> int:
    from dopaminergic.lab.experiments import run_studies, studies
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.records import writable

    suffix = "" if options.size == "default" else f"-{options.size}"
    folder = writable(options.out or Path("runs") / f"reproduce{suffix}")
    plan = studies(options.part, options.size)
    with Progress(quiet=options.json) as progress:
        run_studies(plan, folder, options.workers, progress)
        _measure_costs(folder, options.size, progress)
    return _finish(folder, options)


def _measure_costs(folder: Path, size: str, progress: Any) -> None:
    from dopaminergic.lab.costs import measure_costs
    from dopaminergic.lab.records import read_costs, sealed, write_whole

    try:
        known = read_costs(folder / "costs.json")
    except ValueError as error:
        known = {}
        print(f"dopaminergic: {error}; measuring again", file=sys.stderr)
    if not known:
        progress("costs of a step", 0, 1, [])
        costs = (
            measure_costs(5, ("dopamine", "vector", "node", "adam"))
            if size == "quick"
            else measure_costs()
        )
        write_whole(folder / "costs.json", sealed(costs))
        progress("costs of a step", 1, 1, [])


def _finish(folder: Path, options: argparse.Namespace) -> int:
    from dopaminergic.lab.progress import print_summary
    from dopaminergic.lab.report import write_report

    out = options.out if options.command == "report" else None
    page = write_report(
        folder,
        out,
        [] if options.command == "report" else ["dopaminergic " + " ".join(options.line)],
    )
    summary = json.loads((page.parent / "summary.json").read_text())
    if options.json:
        print(json.dumps({"report": str(page), **summary}))
    else:
        print_summary(summary, page)
    return 0


def _train(options: argparse.Namespace) -> int:
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.records import writable
    from dopaminergic.lab.tasks.real import compare_with_rivals
    from dopaminergic.lab.training import default_optimizer, train

    name, settings, task = _make(options)
    optimizer = options.optimizer or default_optimizer(name)
    folder = options.out or Path("runs") / f"train-{name}-{optimizer}"
    with Progress(quiet=options.json) as progress:
        record = train(
            name,
            settings,
            optimizer,
            lr=options.lr,
            seed=options.seed,
            budget=options.budget,
            folder=lambda: writable(folder),
            resume=options.resume,
            progress=progress,
        )
    if options.json:
        print(json.dumps(record))
        return 0
    rate = record["settings"]["lr"]
    print(
        f"{clean(task.title)}, {optimizer}, lr {rate:g}, {record['forward_passes']:,} forward "
        "passes"
    )
    for metric, value in record["metrics"].items():
        print(
            f"  {metric.replace('_', ' '):24} "
            f"{'not finite' if value is None else format(value, '.4g')}"
        )
    for line in compare_with_rivals(task, record["metrics"]):
        print(textwrap.fill(clean(line), _columns()))
    where = clean(str(folder))
    print(
        f"record: {where}{os.sep}records.jsonl\nto draw it: dopaminergic report "
        f"{clean(shlex.quote(str(folder)))}"
    )
    return 0


def _columns() -> int:
    return min(100, max(20, shutil.get_terminal_size().columns))


def _compare(options: argparse.Namespace) -> int:
    from dopaminergic.lab.experiments import Study, run_studies
    from dopaminergic.lab.optimizers import find_method
    from dopaminergic.lab.progress import Progress
    from dopaminergic.lab.records import writable
    from dopaminergic.lab.training import check_budget

    optimizers = tuple(
        dict.fromkeys(each.strip() for each in options.optimizers.split(",") if each.strip())
    )
    for optimizer in optimizers:
        find_method(optimizer)
    if not optimizers:
        raise ValueError("--optimizers: give at least one, such as --optimizers dopamine,adam")
    name, settings, task = _make(options)
    budget = options.budget or task.budget
    for optimizer in optimizers:
        check_budget(task, optimizer, budget)
    folder = writable(options.out or Path("runs") / f"compare-{name}")
    study = Study(name, settings, budget, options.tuning_seeds, options.seeds, optimizers)
    with Progress(quiet=options.json) as progress:
        run_studies([study], folder, options.workers, progress)
    return _finish(folder, options)


def _report(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder}: no such folder; `dopaminergic reproduce` makes one")
    if options.out is not None:
        from dopaminergic.lab.records import writable

        writable(options.out)
    return _finish(options.folder, options)


def _tasks(options: argparse.Namespace) -> int:
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


def _journal(options: argparse.Namespace) -> int:
    from dopaminergic.lab.journals import rebuild, show, verify

    if options.action == "show":
        return show(options.file, options.last, options.json)
    if options.action == "verify":
        return verify(options.file, options.json)
    return rebuild(options.file, options.base, options.out, options.upto, options.json)


COMMANDS = {
    "reproduce": _reproduce,
    "train": _train,
    "compare": _compare,
    "report": _report,
    "tasks": _tasks,
    "journal": _journal,
}


if __name__ == "__main__":
    sys.exit(main())
