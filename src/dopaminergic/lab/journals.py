"""`dopaminergic journal show | verify | replay`: journals for people."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dopaminergic.files import replacing, shown
from dopaminergic.journal import Contents, JournalError, read, replay
from dopaminergic.journal.format import (
    DIGEST_BYTES,
    HEADER,
    SKIPPED,
    SNAPSHOT,
    STEP,
    TRACE,
)
from dopaminergic.journal.reading import header_of
from dopaminergic.journal.tensors import load
from dopaminergic.journal.texts import from_json
from dopaminergic.lab.progress import Progress


def show(path: Path, last: int, as_json: bool) -> int:
    """Print the header, the number of steps, their cost, and the last of them."""
    contents = read(path)
    steps = _last_steps(contents, last)
    facts = _facts(contents)
    if as_json:
        print(json.dumps({**facts, "last": steps}))
        return 0
    console = Console(file=sys.stdout)
    for name, value in facts.items():
        console.print(
            f"{name.replace('_', ' '):20} {_short(value)}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    table = Table(
        "step", "multiples of the directions, the largest", "decay", title_justify="left", box=None
    )
    for each in steps:
        table.add_row(f"{each['step']:,}", each["multiples"], each["scales"])
    console.print(table)
    return 0


def verify(path: Path, as_json: bool) -> int:
    """Check every byte; 0 if all are sound, 1 if the journal is damaged."""
    contents = read(path)
    reason = contents.warning
    if not reason:
        try:
            _last_steps(contents, 0)
        except JournalError as error:
            reason = str(error)
    if as_json:
        print(
            json.dumps(
                {
                    "sound": not reason,
                    "steps": contents.steps,
                    "bytes": contents.size,
                    "damage": reason,
                }
            )
        )
    else:
        print(
            shown(reason) or f"{path}: {contents.steps:,} steps, {contents.size:,} bytes, all sound"
        )
    return 1 if reason else 0


def rebuild(path: Path, base: Path | None, out: Path | None, upto: int | None, quiet: bool) -> int:
    """Replay a journal over a file of weights, and write another one."""
    if base is None or out is None:
        raise ValueError(
            "journal replay needs --base FILE, the initial weights, and --out FILE, where to write"
        )
    if out.resolve() == base.resolve():
        raise ValueError(
            f"--out {out} is the base itself, which is needed to replay again; give another file"
        )
    contents = read(path)
    with _written(out) as file:  # before a long replay, not after it
        state = load(base)
        with Progress(quiet) as progress:
            steps = replay(
                state,
                contents,
                upto,
                progress=lambda done, total: progress("replay", done, total, []),
            )
        torch.save(state, file)
    print(
        json.dumps({"steps": steps, "out": str(out)})
        if quiet
        else f"weights after {steps:,} steps: {out}"
    )
    return 0


@contextlib.contextmanager
def _written(out: Path) -> Iterator[BinaryIO]:
    """The file that is to be `out`, which is made anew and never through a link."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(replacing(out))
        except OSError as error:
            raise ValueError(
                f"--out {out}: cannot write there ({error.strerror}); give another path"
            ) from error
        yield file


def _facts(contents: Contents) -> dict[str, Any]:
    header = contents.headers[-1]
    payload = contents.size - contents.kinds["header"]
    return {
        "file": str(contents.path),
        "optimizer": header.optimizer,
        "settings": header.settings,
        "written_by": f"dopaminergic {header.library}",
        "parameters": len(header.parameters),
        "weights": sum(int(np.prod(p["shape"])) for p in header.parameters),
        "base": f"SHA-256 {contents.snapshots[0].weights}",
        "end": (
            f"SHA-256 {contents.snapshots[-1].weights} after {contents.snapshots[-1].steps:,} steps"
        ),
        "sections": len(contents.headers),
        "steps": contents.steps,
        "skipped": contents.skipped,
        "snapshots": len(contents.snapshots),
        "bytes": contents.size,
        "bytes_a_step": round(payload / contents.steps, 2) if contents.steps else None,
        "damage": contents.warning or None,
    }


def _last_steps(contents: Contents, count: int) -> list[dict[str, Any]]:
    """Decode everything; return the last steps."""
    steps = []
    number = 0
    codec = contents.headers[0].codec()
    for raw in contents.records():
        try:
            if raw.kind == HEADER:
                codec = header_of(raw).codec()
            elif raw.kind in (STEP, SKIPPED):
                number += 1
                step = codec.read_step(raw.payload) if raw.kind == STEP else None
                if number > contents.steps - count:
                    steps.append(_described(number, step))
            elif raw.kind == SNAPSHOT:
                codec.displacement = b""
                from_json(raw.payload[DIGEST_BYTES:])
            elif raw.kind == TRACE:
                codec.read_traces(raw.payload)
        except JournalError as error:
            raise JournalError(
                f"{contents.path}: the record at byte {raw.start}: {error}"
            ) from None
    return steps


def _described(number: int, step: Any) -> dict[str, Any]:
    if step is None or not step.terms:
        return {"step": number, "multiples": "skipped", "scales": ""}
    sizes = sorted(
        (
            (float(np.abs(np.concatenate([np.atleast_1d(m) for m in ms])).max()), d)
            for d, ms in step.terms
        )
    )
    largest = ", ".join(f"{size:.4g} z_{d}" for size, d in sizes[::-1][:3]) + (
        ", ..." if len(sizes) > 3 else ""
    )
    scales = (
        "" if step.scales is None else ", ".join(f"{float(np.mean(s)):.9g}" for s in step.scales)
    )
    return {"step": number, "multiples": largest, "scales": scales}


def _short(value: Any) -> str:
    return shown(f"{value:,}" if isinstance(value, int) else str(value), 300)
