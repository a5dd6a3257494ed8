"""Two journals become one.

The second one goes on from the weights that the first one ended with.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

from dopaminergic.journal.format import START, JournalError, framed
from dopaminergic.journal.reading import read


def merge(
    first: str | os.PathLike[str], second: str | os.PathLike[str], out: str | os.PathLike[str]
) -> None:
    """Write a journal from the initial weights of the first to the last weights of the second.

    This is sound, and replays to the bit, if and only if the second starts from the very weights
    that the first ends with. Two journals of one base cannot be merged. Floating-point sums depend
    on their order, and neither run saw the other's weights. So no order gives the weights of
    either.

    Args:
        first: a whole journal that was closed, so that it ends with a snapshot.
        second: a whole journal.
        out: file to write; it must not exist.

    Raises:
        JournalError: one is damaged, or the second does not start where the first ends.
        FileExistsError: `out` exists.
    """
    out = Path(out)
    contents = [read(first), read(second)]
    for each in contents:
        if each.damage is not None:
            raise JournalError(
                f"{each.warning}; resume it and let it end, or merge what a replay of it gives"
            )
    end = contents[0].snapshots[-1]
    start = contents[1].snapshots[0]
    shapes = [[(p["shape"], p["dtype"]) for p in each.header.parameters] for each in (end, start)]
    if end.steps != contents[0].steps or end.end != contents[0].size:
        raise JournalError(f"{first} does not end with a snapshot; resume it and close it first")
    if end.weights != start.weights or shapes[0] != shapes[1]:
        same = contents[0].snapshots[0].weights == start.weights
        raise JournalError(
            f"{second} does not start from the weights that {first} ends with"
            + (
                "; both start from the same weights, and no order of their steps is sound"
                if same
                else ""
            )
            + f": SHA-256 {start.weights[:16]}... and {end.weights[:16]}...; "
            "replay one, and train on from its end"
        )
    checksum = zlib.crc32(START)
    parts = [START]
    for each in contents:
        for raw in each.records():
            record, checksum = framed(raw.kind, raw.payload, checksum)
            parts.append(record)
    with open(out, "xb") as file:
        try:
            file.write(b"".join(parts))
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                out.unlink()
            raise
