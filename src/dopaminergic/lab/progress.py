"""What the command line shows: progress bars with the time that is left, and tables."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table

LINE_EVERY = 15.0  # seconds between lines where the output is not a terminal


class Progress:
    """Progress on standard error: a bar on a terminal, a line now and then elsewhere.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description:24}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[now]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, progress.TaskID] = {}
        self.last_line = 0.0

    def __enter__(self) -> Progress:
        """Start drawing."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self.bar.stop()

    def __call__(self, phase: str, done: int, total: int, running: list[str]) -> None:
        """Show that `done` of `total` units of a phase are finished, and what is running."""
        now = ", ".join(running)
        if not self.console.is_terminal:
            finished = done >= total
            if finished or time.monotonic() - self.last_line > LINE_EVERY:
                self.last_line = time.monotonic()
                self.console.print(f"{phase}: {100 * done / max(total, 1):.0f} %  {now}", highlight=False)
            return
        if phase not in self.tasks:
            self.tasks[phase] = self.bar.add_task(phase, total=total, now=now)
        self.bar.update(self.tasks[phase], completed=done, total=total, now=now)


def print_tasks(listing: dict[str, Any]) -> None:
    """Print what `dopaminergic tasks` lists."""
    tasks = Table("task", "what it is", "measure", "passes", "settings", title="Tasks", title_justify="left", box=None)
    for task in listing["tasks"]:
        tasks.add_row(task["name"], task["title"], task["metric"], f"{task['budget']:,}", task["settings"])
    optimizers = Table(
        "optimizer",
        "name",
        "passes a step, at most",
        "default lr",
        "tuned over",
        title="Optimizers",
        title_justify="left",
        box=None,
    )
    for each in listing["optimizers"]:
        default = "-" if each["default_lr"] is None else f"{each['default_lr']:g}"
        grid = f"{each['grid'][0]:g} ... {each['grid'][-1]:g}" if len(each["grid"]) > 1 else "-"
        optimizers.add_row(each["name"], each["label"], str(each["passes_per_step"]), default, grid)
    console = Console(file=sys.stdout)
    console.print(tasks)
    console.print()
    console.print(optimizers)


def print_summary(summary: dict[str, Any], page: Path) -> None:
    """Print the verdicts and where the report is."""
    console = Console(file=sys.stdout)
    table = Table("claim", "verdict", "evidence", title="The claims", title_justify="left", box=None)
    for claim in summary.get("claims", []):
        table.add_row(f"{claim['claim']} {claim['title']}", claim["verdict"], claim["evidence"])
    console.print(table)
    console.print(f"\nreport: {page}", soft_wrap=True, highlight=False)
