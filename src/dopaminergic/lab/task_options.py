"""The task that options ask for: one of the lab's, or a series of the user's own."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from dopaminergic.lab.terminal import say

if TYPE_CHECKING:
    from dopaminergic.lab.tasks import Task

FEWEST_ROWS = 100  # for a validation part that nobody asked for
OWN = ("column", "targets", "inputs", "time", "horizon", "validation", "patience")


def task_of(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The name of the task, and the settings that differ from its defaults."""
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
        for name in OWN:
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} goes with --csv FILE")
        if options.task is None:
            raise ValueError(
                "which task? give --task NAME (see `dopaminergic tasks`) or --csv FILE --column "
                "NAME"
            )
        return options.task, settings
    if options.task is not None:
        raise ValueError("give either --task or --csv, not both")
    return "series", {"path": options.csv, **_own_settings(options, settings), **settings}


def _own_settings(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a series of one's own that have options."""
    for name in ("path", *OWN):
        if name in settings:
            flag = {"path": "csv"}.get(name, name)
            raise ValueError(f"--set {name}: give the {name} by --{flag} instead")
    columns = [*(options.column or []), *(options.targets or [])]
    found: dict[str, Any] = {}
    if columns:
        found["column"] = columns[0] if len(columns) == 1 else columns
    for name in ("inputs", "time", "horizon", "validation", "patience"):
        if getattr(options, name) is not None:
            found[name] = getattr(options, name)
    return found


def make(
    options: argparse.Namespace, *, validation: float = 0.0
) -> tuple[str, dict[str, Any], Task]:
    """The task of the options: its name, its settings, and itself.

    The settings are tied to the data as they are now.

    Args:
        options: of the command.
        validation: the share of the rows of a series of one's own that chooses the weights, where
            no share was given and the series has 100 rows or more.
    """
    from dopaminergic.lab.tasks import make_task

    name, settings = task_of(options)
    task = make_task(name, **settings)
    if validation and name == "series" and options.validation is None:
        rows = len(getattr(task, "series", ()))
        if rows >= FEWEST_ROWS:
            settings = {**settings, "validation": validation}
            task = make_task(name, **settings)
    for note in task.notes:
        say(f"note: {note}")
    return name, {**settings, **task.pinned}, task
