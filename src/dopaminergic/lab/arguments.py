"""The grammar of the command line: the commands, their options and their help."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from dopaminergic import __version__
from dopaminergic.lab.terminal import clean

EXAMPLES = """examples:
  dopaminergic reproduce                      both experiments of the paper, and a report
  dopaminergic reproduce --quick              a look, in under a minute
  dopaminergic reproduce xor --full           the XOR experiments of record
  dopaminergic train --task lorenz --optimizer vector
  dopaminergic train --csv sales.csv --column units
  dopaminergic compare --task continuous-xor --optimizers vector,dopamine,adam
  dopaminergic report runs/reproduce
  dopaminergic tasks
  dopaminergic journal show run.journal
"""

Command = Callable[[argparse.Namespace], int]
# A command: its name, its action, examples.
Add = Callable[[str, str, str], argparse.ArgumentParser]


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
    keep = argparse.RawDescriptionHelpFormatter
    whole = Parser(
        prog="dopaminergic",
        description=(
            "Train neural networks with nothing but forward passes, and see how that compares."
        ),
        epilog=EXAMPLES,
        formatter_class=keep,
    )
    whole.add_argument("--version", action="version", version=f"dopaminergic {__version__}")
    listed = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, examples: str) -> argparse.ArgumentParser:
        sub = listed.add_parser(
            name,
            help=text,
            description=text[:1].upper() + text[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=keep,
        )
        sub.set_defaults(run=commands[name])
        return sub

    for describe in (_reproduce, _train, _compare, _report, _tasks, _journal):
        describe(add)
    return whole


def _reproduce(add: Add) -> None:
    sub = add(
        "reproduce",
        "run the paper's two experiments and write a report",
        "  dopaminergic reproduce\n"
        "  dopaminergic reproduce chaos --out runs/chaos\n"
        "  dopaminergic reproduce --quick --json",
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
        help="a look, in under a minute",
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
        help="folder for records and report (runs/reproduce, with -quick or -full)",
    )
    _add_workers(sub)
    _add_json(sub)


def _train(add: Add) -> None:
    sub = add(
        "train",
        "train one network on one task",
        "  dopaminergic train --task lorenz --optimizer vector --set hidden=32\n"
        "  dopaminergic train --csv sales.csv --column units --budget 5000\n"
        "  dopaminergic train --task rossler-vpt --optimizer vector --set forcing=0.5\n"
        "  dopaminergic train --task digits --optimizer adam --lr 0.003 --out runs/digits --resume",
    )
    _add_task(sub)
    sub.add_argument(
        "--optimizer", help="see `dopaminergic tasks` (dopamine; with --csv dopamine2)"
    )
    sub.add_argument(
        "--lr",
        type=_rate,
        help="learning rate (the optimizer's default, or the middle of its grid)",
    )
    sub.add_argument("--seed", type=_seed, default=0, help="of weights, batches and directions (0)")
    _add_budget(sub)
    sub.add_argument(
        "--out", type=Path, help="folder for record and checkpoint (runs/train-TASK-OPTIMIZER)"
    )
    sub.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in the folder; what is done is shown",
    )
    _add_json(sub)


def _compare(add: Add) -> None:
    sub = add(
        "compare",
        "tune and compare several optimizers on one task",
        "  dopaminergic compare --task continuous-xor --optimizers vector,dopamine,adam --seeds 5\n"
        "  dopaminergic compare --csv sales.csv --column units --budget 5000",
    )
    _add_task(sub)
    sub.add_argument(
        "--optimizers",
        default="dopamine,dopamine2,vector,node,wp,sgd,adam",
        help="names, separated by commas (all but spsa, es)",
    )
    sub.add_argument("--seeds", type=_count, default=5, help="reported runs of each (5)")
    sub.add_argument(
        "--tuning-seeds",
        type=_count,
        default=2,
        help="runs of each of the seven learning rates (2)",
    )
    _add_budget(sub)
    sub.add_argument("--out", type=Path, help="folder for records and report (runs/compare-TASK)")
    _add_workers(sub)
    _add_json(sub)


def _report(add: Add) -> None:
    sub = add(
        "report", "write the report of a folder again", "  dopaminergic report runs/reproduce"
    )
    sub.add_argument("folder", type=Path, help="a folder that reproduce, compare or train wrote")
    sub.add_argument("--out", type=Path, help="where to put the report (the same folder)")
    _add_json(sub)


def _tasks(add: Add) -> None:
    sub = add("tasks", "list tasks and optimizers", "  dopaminergic tasks --json")
    _add_json(sub)


def _journal(add: Add) -> None:
    sub = add(
        "journal",
        "look at a journal, check it, or rebuild the weights of a step from it",
        "  dopaminergic journal show run.journal\n"
        "  dopaminergic journal verify run.journal          exit status 1 if it is damaged\n"
        "  dopaminergic journal replay run.journal --base initial.pt --out trained.pt\n"
        "  dopaminergic journal replay run.journal --base initial.pt --out earlier.pt --upto 500",
    )
    sub.add_argument("action", choices=("show", "verify", "replay"), help="what to do")
    sub.add_argument("file", type=Path, help="a file that Journal wrote")
    sub.add_argument("--last", type=_count, default=5, help="show: so many of the last steps (5)")
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
        type=_number,
        metavar="N",
        help="replay: steps from the start of the journal (all)",
    )
    _add_json(sub)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_count, default=os.cpu_count() or 1, help="parallel processes (all cores)"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=_count, help="forward passes (the task's)")


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help="see `dopaminergic tasks`")
    parser.add_argument(
        "--csv", metavar="FILE", help="your own series, CSV (also compressed) or Parquet"
    )
    parser.add_argument(
        "--column",
        action="append",
        help="a column of that file, if it has more; repeat for several",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the task"
    )


MOST = (1 << 32) - 1  # steps, and so passes, are counted in 32 bits
MOST_SEED = (1 << 63) - 1
WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*(\.[0-9]*)?([eE]\+?[0-9]{1,3})?")


def _number(text: str) -> int:
    """A whole number as people write it: 10000, 10_000 or 1e4."""
    value = float(text) if WHOLE.fullmatch(text.strip()) else math.nan
    if not math.isfinite(value) or value != int(value):
        raise argparse.ArgumentTypeError(
            f"expected a whole number, such as 10000 or 1e4, got {text[:40]!r}"
        )
    plain = text.strip().replace("_", "")
    return int(plain) if plain.lstrip("+-").isdigit() else int(value)


def _count(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(
            f"must be {'>= 1' if value < 1 else f'<= {MOST}'}, got {text[:40]}; try 10000"
        )
    return value


def _seed(text: str) -> int:
    value = _number(text)
    if not 0 <= value <= MOST_SEED:
        raise argparse.ArgumentTypeError(f"must be >= 0 and below 2^63, got {text[:40]}; try 0")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected a finite number >= 0, such as 0.01, got {text[:40]!r}"
        )
    return value
