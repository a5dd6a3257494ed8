"""`python -m tests.hashes`: train in all situations, and compare what comes of it with the
table.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import dopaminergic

from . import table
from .runs import NONE, Row
from .situations import Situation, situations
from .special import row_of

FAILED = "failed-"  # a row in which training ended in an exception that is no refusal


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.hashes", description=__doc__)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--compare", action="store_true", help="with the table (the default)")
    way.add_argument("--write", action="store_true", help="make the table anew")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="situations whose name contains this text"
    )
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write makes the whole table: leave --only out")
    chosen = [situation for situation in situations() if options.only in situation.name]
    if not chosen:
        parser.error(
            f"--only: no situation is called {options.only!r}; a part of a name in "
            f"{table.PATH.name}"
        )
    if options.write:
        return _write(chosen)
    return _compare(chosen, whole=not options.only)


def _write(chosen: list[Situation]) -> int:
    rows = _rows(chosen)
    if any(row.weights.startswith(FAILED) for row in rows.values()):
        print("Nothing is written, since situations have failed")
        return 1
    table.write(rows)
    print(f"{len(rows)} situations written to {table.PATH}")
    return 0


def _compare(chosen: list[Situation], *, whole: bool) -> int:
    recorded = table.read()
    if said := table.other_machine(recorded.head):
        print(
            "The table was made elsewhere, so that rows may differ for no fault of the code: "
            f"{said}"
        )
    start = time.perf_counter()
    found = _rows(chosen)
    lines = table.differences(recorded.rows, found)
    if whole:
        known = {situation.name for situation in chosen}
        lines += [
            f"{name}: in the table, but no situation" for name in recorded.rows if name not in known
        ]
    for line in lines:
        print(line)
    seconds = time.perf_counter() - start
    library = Path(dopaminergic.__file__).parent
    print(f"{len(found)} situations of {library} compared in {seconds:.0f} s, {len(lines)} differ")
    return 1 if lines else 0


def _rows(chosen: list[Situation]) -> dict[str, Row]:
    jax = importlib.util.find_spec("jax") is not None
    return {
        situation.name: _row(situation) for situation in chosen if jax or situation.special != "jax"
    }


def _row(situation: Situation) -> Row:
    """The row, or the name of the exception in its place: the others are still of interest."""
    try:
        return row_of(situation)
    except Exception as error:
        print(f"{situation.name}: {type(error).__name__}: {error}")
        return Row(FAILED + type(error).__name__, *[NONE] * (len(Row._fields) - 1))


if __name__ == "__main__":
    sys.exit(main())
