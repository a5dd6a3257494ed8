"""The grammar of the command line: the commands, their options and their help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dopaminergic._version import __version__
from dopaminergic.lab import given
from dopaminergic.lab.terminal import clean, columns, fill

# A command, and a word on it; "" where the command says it all.
EXAMPLES = (
    ("dopaminergic reproduce --quick", "a look, in a minute"),
    ("dopaminergic reproduce", "both experiments of the paper"),
    ("dopaminergic compare --task lorenz", "which optimizer is better"),
    ("dopaminergic train --csv sales.csv --column units", "a model of your data"),
    ("dopaminergic forecast runs/sales --steps 28", "what comes next"),
    ("dopaminergic report runs/reproduce", "a page with figures"),
    ("dopaminergic tasks", "what there is"),
    ("dopaminergic journal show run.journal", "the log of a run"),
)

WIDE = 60  # columns from which on the usage names every option
PLACES = {
    name: f"\n                    {words}"
    for name, words in (
        ("reproduce", "[PART]"),
        ("forecast", "RUN"),
        ("report", "FOLDER"),
        ("journal", "ACTION FILE"),
    )
}

Command = Callable[[argparse.Namespace], int]
Examples = Sequence[tuple[str, str]]
# A command: its name, its action, examples.
Add = Callable[[str, str, Examples], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """One whose errors show no control characters."""

    def error(self, message: str) -> NoReturn:
        """Print usage and error, and end with status 2."""
        super().error(clean(message))


def parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of the command line, which leaves the command's function in `run`.

    Args:
        commands: the function of each command, by its name.
    """
    whole = Parser(
        prog="dopaminergic",
        description=fill(
            "Train neural networks with nothing but forward passes, and see how that compares."
        ),
        epilog=_shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"dopaminergic {__version__}")
    whole.set_defaults(run=lambda options: whole.print_help() or 0)
    listed = whole.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, examples: Examples) -> argparse.ArgumentParser:
        sub = listed.add_parser(
            name,
            help=text,
            usage=None if columns() >= WIDE else f"%(prog)s [options]{PLACES.get(name, '')}",
            description=fill(text[:1].upper() + text[1:] + "."),
            epilog=_shown(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=commands[name])
        return sub

    for describe in (_reproduce, _train, _forecast, _compare, _report, _tasks, _journal):
        describe(add)
    return whole


def _shown(examples: Examples) -> str:
    """The examples in the width of the terminal, a long command on lines that can be copied."""
    width = columns() - 2
    room = max((len(command) for command, _ in examples), default=0)
    beside = all(room + 3 + len(word) <= width for _, word in examples)
    lines = ["examples:"]
    for command, word in examples:
        if beside and word:
            lines.append(f"  {command:{room}}   {word}")
            continue
        lines += [f"  # {word}"] if word else []
        lines += [f"  {line}" for line in _folded(command, width)]
    return "\n".join(lines)


def _folded(command: str, width: int) -> list[str]:
    """A command on one line, or on several that a shell joins."""
    if len(command) <= width:
        return [command]
    # An option and its value stay together where there is room for both.
    parts = command.replace(" --", "\0--").split("\0")
    first, *options = [
        word for part in parts for word in ([part] if len(part) + 4 <= width else part.split(" "))
    ]
    lines = [first]
    for option in options:
        longer = f"{lines[-1]} {option}"
        if len(longer) + 2 <= width:
            lines[-1] = longer
        else:
            lines.append(f"  {option}")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _reproduce(add: Add) -> None:
    sub = add(
        "reproduce",
        "run the paper's two experiments and write a report",
        (
            ("dopaminergic reproduce", ""),
            ("dopaminergic reproduce chaos --out runs/chaos", ""),
            ("dopaminergic reproduce --quick --json", ""),
        ),
    )
    sub.add_argument(
        "part",
        nargs="?",
        choices=("all", "xor", "chaos"),
        default="all",
        help="which experiment (all)",
    )
    size = sub.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_const",
        const="quick",
        dest="size",
        help="a look, in about a minute",
    )
    size.add_argument(
        "--full",
        action="store_const",
        const="full",
        dest="size",
        help="the run of record, 20 seeds or more",
    )
    sub.set_defaults(size="default")
    sub.add_argument(
        "--out",
        type=Path,
        help="folder for records and report (runs/reproduce, runs/reproduce-quick or "
        "runs/reproduce-full)",
    )
    _add_workers(sub)
    _add_json(sub)


def _train(add: Add) -> None:
    sub = add(
        "train",
        "train one network, keep it, and draw its forecast",
        (
            ("dopaminergic train --csv sales.csv --column units", ""),
            ("dopaminergic train --csv sales.csv --targets units --inputs price --horizon 7", ""),
            ("dopaminergic train --task lorenz --optimizer vector --set hidden=32", ""),
            ("dopaminergic train --task digits --optimizer adam --lr 0.003 --resume", ""),
        ),
    )
    _add_task(sub)
    sub.add_argument(
        "--optimizer", help="see `dopaminergic tasks` (dopamine; with --csv dopamine2)"
    )
    sub.add_argument(
        "--lr",
        type=given.rate,
        help="learning rate (the optimizer's default, or the middle of its grid)",
    )
    sub.add_argument(
        "--seed", type=given.seed, default=0, help="of weights, batches and directions (0)"
    )
    _add_budget(sub)
    sub.add_argument(
        "--out",
        type=Path,
        help="folder for model, record and checkpoint (runs/train-TASK-OPTIMIZER)",
    )
    sub.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in the folder; what is done is shown",
    )
    _add_json(sub)


def _forecast(add: Add) -> None:
    sub = add(
        "forecast",
        "forecast with a network that `train --csv` has kept",
        (
            ("dopaminergic forecast runs/sales --out next.csv", ""),
            ("dopaminergic forecast runs/sales --csv new.csv --steps 28 --out next.csv", ""),
        ),
    )
    sub.add_argument("folder", metavar="RUN", type=Path, help="a folder that train wrote")
    sub.add_argument(
        "--csv",
        metavar="FILE",
        help="newer rows of the same columns (the end of the file that was trained on)",
    )
    sub.add_argument("--steps", type=given.count, help="rows to forecast (the horizon of training)")
    sub.add_argument(
        "--interval",
        type=int,
        choices=(50, 80, 90, 95),
        default=90,
        help="of so many percent (90)",
    )
    sub.add_argument("--out", type=Path, metavar="FILE.csv", help="where to write it (printed)")
    _add_json(sub)


def _compare(add: Add) -> None:
    sub = add(
        "compare",
        "tune and compare several optimizers on one task",
        (
            ("dopaminergic compare --task lorenz --optimizers node,vector,adam --seeds 5", ""),
            ("dopaminergic compare --csv sales.csv --column units --budget 5000", ""),
        ),
    )
    _add_task(sub)
    sub.add_argument(
        "--optimizers",
        help="names, separated by commas (all but spsa, es; on tasks that run free, as "
        "lorenz-vpt, all but node too)",
    )
    sub.add_argument("--seeds", type=given.count, default=5, help="reported runs of each (5)")
    sub.add_argument(
        "--tuning-seeds",
        type=given.count,
        default=2,
        help="runs of each of the seven learning rates (2)",
    )
    _add_budget(sub)
    sub.add_argument("--out", type=Path, help="folder for records and report (runs/compare-TASK)")
    _add_workers(sub)
    _add_json(sub)


def _report(add: Add) -> None:
    sub = add(
        "report",
        "write the report of a folder again",
        (("dopaminergic report runs/reproduce", ""),),
    )
    sub.add_argument("folder", type=Path, help="a folder that reproduce, compare or train wrote")
    sub.add_argument("--out", type=Path, help="where to put the report (the same folder)")
    _add_json(sub)


def _tasks(add: Add) -> None:
    sub = add("tasks", "list tasks and optimizers", (("dopaminergic tasks --json", ""),))
    _add_json(sub)


def _journal(add: Add) -> None:
    replay = "dopaminergic journal replay run.journal --base initial.pt"
    sub = add(
        "journal",
        "look at a journal, check it, or rebuild the weights of a step from it",
        (
            ("dopaminergic journal show run.journal", ""),
            ("dopaminergic journal verify run.journal", "status 1 if damaged"),
            (f"{replay} --out trained.pt", ""),
            (f"{replay} --out earlier.pt --upto 500", ""),
        ),
    )
    sub.add_argument("action", choices=("show", "verify", "replay"), help="what to do")
    sub.add_argument("file", type=Path, help="a file that Journal wrote")
    sub.add_argument(
        "--last", type=given.count, default=5, help="show: so many of the last steps (5)"
    )
    sub.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="replay: the initial state_dict, written by torch.save",
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="replay: where to write the state_dict of the step"
    )
    sub.add_argument(
        "--upto",
        type=given.number,
        metavar="N",
        help="replay: steps from the start of the journal (all)",
    )
    _add_json(sub)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=given.count,
        default=os.cpu_count() or 1,
        help="parallel processes (all cores)",
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=given.count, help="forward passes (the task's)")


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help="see `dopaminergic tasks`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the task"
    )
    own = parser.add_argument_group("your own series")
    own.add_argument("--csv", metavar="FILE", help="a file, CSV (also compressed) or Parquet")
    own.add_argument(
        "--column",
        action="append",
        help="a column to forecast, if the file has more; repeat for several",
    )
    own.add_argument(
        "--targets", type=given.names, metavar="A,B", help="the same, several names at once"
    )
    own.add_argument(
        "--inputs",
        type=given.names,
        metavar="A,B",
        help="columns that are known ahead, such as a price or a weekday; they are not forecast",
    )
    own.add_argument("--time", metavar="NAME", help="the column of dates, or of increasing numbers")
    own.add_argument(
        "--horizon", type=given.count, metavar="N", help="rows ahead to forecast and to judge (1)"
    )
    own.add_argument(
        "--validation",
        type=given.share,
        metavar="SHARE",
        help="of the rows, before the last 30 %%: the weights that err least there are kept "
        "(train 0.1 of 100 rows or more, compare 0)",
    )
    own.add_argument(
        "--patience",
        type=given.count,
        metavar="N",
        help="stop after so many forward passes without a smaller error there (a quarter of the "
        "budget)",
    )
