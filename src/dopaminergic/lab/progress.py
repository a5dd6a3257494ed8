"""The output of the command line: progress bars with the time that is left, and tables."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from dopaminergic.lab.findings import NOT_MEASURED
from dopaminergic.lab.terminal import clean, columns

ROOM_FOR_NAMES = 60  # columns from which on a bar names the running jobs
LINE_EVERY = 15.0  # seconds between lines where the output is not a terminal


def _bar(width: int) -> list[progress.ProgressColumn]:
    """The parts of a bar that a terminal of this width has room for; none of them wraps."""
    wide = width >= ROOM_FOR_NAMES

    def text(words: str, **look: Any) -> progress.TextColumn:
        # No markup: names of columns and files are not ours.
        place = Column(no_wrap=True, overflow="ellipsis", **look)
        return progress.TextColumn(words, markup=False, table_column=place)

    parts: list[progress.ProgressColumn] = [
        text("{task.description}", max_width=26 if wide else 15),
        progress.BarColumn(14 if wide else 6),
        progress.TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4)),
        progress.TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        text("left", min_width=4),
    ]
    return [*parts, text("{task.fields[now]}", ratio=1)] if wide else parts


class Progress:
    """Progress on standard error: a bar on a terminal, a line now and then elsewhere.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, emoji=False)
        self.bar = progress.Progress(
            *_bar(self.console.width),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self.tasks: dict[str, progress.TaskID] = {}
        self.last_line = 0.0

    def __enter__(self) -> Progress:
        """Start drawing."""
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self.bar.stop()

    def __call__(self, phase: str, done: int, total: int, running: list[str]) -> None:
        """Show that `done` of `total` units of a phase are finished, and the running jobs."""
        phase = clean(phase)
        now = clean(", ".join(running))
        if not self.console.is_terminal:
            finished = done >= total
            if finished or time.monotonic() - self.last_line > LINE_EVERY:
                self.last_line = time.monotonic()
                line = f"{phase}: {100 * done / max(total, 1):.0f} %  {now}"
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        if phase not in self.tasks:
            self.tasks[phase] = self.bar.add_task(phase, total=total, now=now)
        self.bar.update(self.tasks[phase], completed=done, total=total, now=now)


WIDE = 100  # columns that a table of tasks takes; narrower terminals get a paragraph for each row


def print_tasks(listing: dict[str, Any]) -> None:
    """Print the listing of `dopaminergic tasks`."""
    tasks = [
        [each["name"], each["title"], each["metric"], f"{each['budget']:,}", each["settings"]]
        for each in listing["tasks"]
    ]
    _print_table("Tasks", ["task", "what it is", "measure", "passes", "settings"], tasks)
    optimizers: list[list[str]] = []
    for each in listing["optimizers"]:
        default = "-" if each["default_lr"] is None else f"{each['default_lr']:g}"
        grid = f"{each['grid'][0]:g} ... {each['grid'][-1]:g}" if len(each["grid"]) > 1 else "-"
        optimizers.append(
            [each["name"], each["label"], str(each["passes_per_step"]), default, grid]
        )
    names = ["optimizer", "name", "passes a step, at most", "default lr", "tuned over"]
    _print_table("\nOptimizers", names, optimizers)


def print_summary(summary: dict[str, Any], page: Path) -> None:
    """Print the claims that were measured, and where the report is."""
    measured = [
        claim for claim in summary.get("claims", []) if str(claim["verdict"]) != NOT_MEASURED
    ]
    if measured:
        print("\nClaims of the paper (C) and of this library (V), judged by these runs")
    for claim in measured:
        first = f"{claim['claim']} {claim['verdict']}: {claim['title']}"
        print(textwrap.fill(clean(first), columns(), subsequent_indent="   "))
    print(f"\nreport: {clean(str(page))}")


def _print_table(title: str, names: list[str], rows: list[list[str]]) -> None:
    """A table, or on a narrow terminal a paragraph for each row.

    Nothing in it is taken for markup.
    """
    console = Console(file=sys.stdout, emoji=False, markup=False)
    if console.width < WIDE and (console.is_terminal or "COLUMNS" in os.environ):
        console.print(title, highlight=False)
        for first, *others in rows:
            console.print(clean(first), style="bold", highlight=False)
            for name, cell in zip(names[1:], others, strict=True):
                console.print(Padding(Text(clean(f"{name}: {cell}")), (0, 0, 0, 2)))
        return
    table = Table(*names, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console.print(table)
