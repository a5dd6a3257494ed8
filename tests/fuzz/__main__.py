"""The command, which tries cases of every kind and counts what became of them."""

from __future__ import annotations

import argparse
import collections
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.fuzz.checkpoints import Checkpoints
from tests.fuzz.folders import Folders
from tests.fuzz.journals import Bases, Journals
from tests.fuzz.judging import judged, limit_time
from tests.fuzz.kind import Kind
from tests.fuzz.states import States
from tests.fuzz.tables import Tables

from dopaminergic.lab.records import append_records

KINDS: dict[str, type[Kind]] = {
    "journal": Journals, "base": Bases, "state": States, "record": Folders,
    "checkpoint": Checkpoints, "csv": Tables,
}  # fmt: skip
SHARES = {
    "journal": 0.25,
    "base": 0.05,
    "state": 0.3,
    "record": 0.15,
    "checkpoint": 0.15,
    "csv": 0.1,
}
SOUND = ("taken", "refused")


def in_processes(folder: Path, chance: random.Random, processes: int) -> Iterator[tuple[str, str]]:
    """A few cases of the command line as users call it: exit status, and no traceback."""
    (folder / "cli").mkdir()
    journals = Journals(folder / "cli")
    for number in range(processes):
        path = folder / f"{number}.journal"
        path.write_bytes(journals.forged(chance.choice(journals.examples)[1], chance))
        yield _called("journal", "verify", str(path))
    out = folder / "report"
    out.mkdir()
    append_records(out / "records.jsonl", [{"task": "\x1b[31m", "optimizer": [], "curve": 1}])
    yield _called("report", str(out))


def _called(*arguments: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "dopaminergic", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    wrong = (
        "Traceback" in done.stderr
        or done.returncode not in (0, 1, 2)
        or "\x1b" in done.stdout + done.stderr
    )
    return ("traceback", f"{arguments[0]}: {done.stderr[-200:]}") if wrong else ("refused", "")


def cases(folder: Path, count: int, seed: int, kinds: list[str]) -> Iterator[tuple[str, str, str]]:
    """The kind, outcome and details of each case."""
    share = sum(SHARES[kind] for kind in kinds)
    for kind in kinds:
        (folder / kind).mkdir()
        tried = KINDS[kind](folder / kind)
        for number in range(math.ceil(count * SHARES[kind] / share)):
            outcome, detail = judged(tried, random.Random(f"{seed} {kind} {number}"))
            yield kind, outcome, detail.replace(str(folder), "")
    (folder / "cli").mkdir()
    processes = min(4, math.ceil(count / 100))
    for outcome, detail in in_processes(folder / "cli", random.Random(seed), processes):
        yield "command", outcome, detail


def fuzz(count: int, seed: int, kinds: list[str], details: int) -> int:
    """Try cases and print a summary; the number of failures."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    limit_time()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = collections.Counter(cases(Path(folder), count, seed, kinds))
    wrong = collections.Counter(
        {case: times for case, times in found.items() if case[1] not in SOUND}
    )
    for (kind, outcome, detail), times in wrong.most_common(details):
        print(f"{kind}: {outcome} x{times}: {detail}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for (kind, outcome, _), times in found.items():
        counts[kind, outcome] += times
    told = ", ".join(
        f"{kind} {outcome} {times}" for (kind, outcome), times in sorted(counts.items())
    )
    seconds = time.monotonic() - began
    print(
        f"{found.total():,} cases in {seconds:.0f} s, seed {seed}: {wrong.total()} failures "
        f"({told})"
    )
    return wrong.total()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Try damaged and forged files.", prog="python -m tests.fuzz"
    )
    parser.add_argument("--count", type=int, default=5000, help="cases (5000)")
    parser.add_argument("--seed", type=int, default=0, help="other cases for another seed (0)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of files (%(default)s)")
    parser.add_argument("--details", type=int, default=40, help="kinds of failures to print (40)")
    options = parser.parse_args()
    return min(1, fuzz(options.count, options.seed, options.kinds.split(","), options.details))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
