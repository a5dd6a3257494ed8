"""Records of runs on disk: one JSON object a line, safe against a kill at any byte.

`records.jsonl` (a finished run a line), `pictures.jsonl` (data of pictures, a line each) and `costs.json` lie in one
folder; everything the lab reports is made from these three alone. Each line ends in a CRC-32 of itself, so that a bit
that flips on a disk costs one line, which is run again, and never changes a result unseen.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = 1
CHECK = b', "check": "%08x"}'
MEBIBYTE = 1 << 20

Record = dict[str, Any]


class Records(NamedTuple):
    """What a file of JSON lines held.

    Attributes:
        records: every whole record, in the order of the file.
        damaged: number of lines that are no whole JSON object, such as one cut by a kill.
    """

    records: list[Record]
    damaged: int


def plain(value: Any) -> Any:
    """The value in JSON's own types: numpy arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def append_records(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a file of JSON lines and force them to the disk; numbers that are not finite become null.

    A last line that was cut is closed with a newline first, so that the new record starts on its own line; nothing
    that is in the file is removed. A missing file is created, its folder must exist.

    Args:
        path: the file.
        records: JSON-like objects.

    Raises:
        OSError: the disk is full, say; the file is as before then.
        ValueError: the file is a link out of its folder.
    """
    lines = b"".join(sealed(record) + b"\n" for record in records)
    # Without a buffer, or closing the file would write once more what could not be written.
    with open(within(Path(path).parent, Path(path).name), "ab+", buffering=0) as file:
        size = file.tell()
        if size > 0:
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        try:
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def sealed(record: Mapping[str, Any]) -> bytes:
    """A line of JSON with the CRC-32 of the rest of it as its last entry, `"check"`; the record is not empty."""
    line = json.dumps(plain(record), allow_nan=False).encode()
    return line[:-1] + CHECK % zlib.crc32(line)


def opened(line: bytes) -> Record | None:
    """The record of a line, without its check; None where the line is damaged. Older lines have no check."""
    seal = len(CHECK % 0)
    if line[-seal:].startswith(CHECK[:12]):
        body = line[:-seal] + b"}"
        if CHECK % zlib.crc32(body) != line[-seal:]:
            return None
        line = body
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        return None
    return record if isinstance(record, dict) else None


def within(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of what is called `name` in a folder; a ValueError where a link leads out of the folder."""
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"{path}: a link that leads out of the folder, to {path.resolve()}; nothing was written. Replace it by a "
            "file or folder of its own, or give another folder"
        )
    return path


def read_records(path: str | os.PathLike[str], required: Iterable[str] = ("task",)) -> Records:
    """Every whole record of a file of JSON lines; damaged lines are skipped and counted; no file, no records.

    Args:
        path: the file.
        required: keys that every record has.

    Raises:
        ValueError: the file is something else: not one line is a JSON object, an object lacks a required key, or
            it was written by a later version of this library. The message names the file and the line.
    """
    if not Path(path).exists():
        return Records([], 0)
    records, damaged, ours = [], [], False
    content = Path(path).read_bytes()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        record = opened(line)
        if record is None:
            damaged.append(number)
            ours = ours or line.startswith(b"{")
            continue
        _check(record, f"{path}, line {number}", required)
        records.append(record)
    if damaged and not records and not ours:
        raise ValueError(
            f"{path}, line {damaged[0]}: not a JSON object, nor is any other line; give a file that "
            "`dopaminergic reproduce` wrote, or move this one away to start afresh"
        )
    return Records(records, len(damaged))


def _check(record: Record, where: str, required: Iterable[str]) -> None:
    missing = [key for key in required if key not in record]
    if missing:
        raise ValueError(f"{where}: a JSON object without {missing[0]!r}, so not a record; is this the right file?")
    if not isinstance(record.get("schema", SCHEMA), int) or record.get("schema", SCHEMA) > SCHEMA:
        raise ValueError(
            f"{where}: record of schema {record['schema']!r}, this version reads up to {SCHEMA}; upgrade dopaminergic"
        )


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file in one step: a reader, or a run after a kill, sees the old content or the new, never a part."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # never through a link
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def discard_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what `write_whole` left in a folder when its process was killed; files of living processes stay."""
    for path in Path(folder).glob(".*.tmp"):
        number = path.name.split(".")[-2]
        if number.isascii() and number.isdigit() and not _alive(int(number)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no number of a process
        return True
    return True


def writable(folder: Path) -> Path:
    """The folder, made if missing; an error before any work where it cannot be written, or a file not grow to 1 MiB."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".writable", bytes(MEBIBYTE))
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot write there ({error.strerror}); give another folder") from error
    discard_leftovers(folder)
    return folder


def read_costs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in `costs.json`, `{}` where there is no such file; ValueError where it is something else."""
    if not Path(path).exists():
        return {}
    costs = opened(Path(path).read_bytes().strip())
    if costs is None or not isinstance(costs.get("rows"), list):
        raise ValueError(f"{path}: damaged, or not JSON with a list 'rows'; delete it and measure the costs again")
    return costs
