"""The table as a file: how it is written, read and compared."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import NamedTuple

import torch

from .runs import NONE, Row

PATH = Path(__file__).with_name("table.txt")
PACKAGES = ("torch", "numpy", "numba", "jax")
MARK = "#"  # of lines of the head


class Table(NamedTuple):
    """What a file holds: the versions it was made with, and a row for each situation by its
    name.
    """

    head: dict[str, str]
    rows: dict[str, Row]


def head() -> dict[str, str]:
    """Versions and the kind of machine, on which some bits depend."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = NONE
    return {**found, "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def write(rows: dict[str, Row], path: Path | None = None) -> None:
    """Make the file anew."""
    lines = [f"{MARK} {name}: {value}" for name, value in head().items()]
    lines.append(" ".join([MARK, "situation", *Row._fields]))
    lines += [" ".join([name, *row]) for name, row in rows.items()]
    (path or PATH).write_text("\n".join(lines) + "\n")


def read(path: Path | None = None) -> Table:
    """What `write` wrote."""
    table = Table({}, {})
    for line in (path or PATH).read_text().splitlines():
        if line.startswith(MARK):
            name, colon, value = line.removeprefix(MARK).strip().partition(": ")
            table.head.update({name: value} if colon else {})
        else:
            name, *columns = line.split(" ")
            table.rows[name] = Row(*columns)
    return table


def differences(recorded: dict[str, Row], found: dict[str, Row]) -> list[str]:
    """A line for each row that is new, or in which columns differ, with their names."""
    lines = []
    for name, row in found.items():
        if name not in recorded:
            lines.append(f"{name}: not in the table")
            continue
        pairs = zip(Row._fields, recorded[name], row, strict=True)
        columns = [f"{column} {old} -> {new}" for column, old, new in pairs if old != new]
        if columns:
            lines.append(f"{name}: {', '.join(columns)}")
    return lines


def other_machine(recorded: dict[str, str]) -> str:
    """In which versions this process differs from those of the table; "" for none."""
    here = head()
    names = [name for name in here if recorded.get(name) != here[name]]
    return ", ".join(f"{name} {recorded.get(name)} there, {here[name]} here" for name in names)
