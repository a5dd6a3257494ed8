"""Records of runs on disk: one JSON object a line, safe against a kill at any byte.

`records.jsonl` (a finished run a line), `pictures.jsonl` (data of pictures, a line each) and
`costs.json` lie in one folder. Everything the lab reports is made from these three alone. Each line
ends in a CRC-32 of itself. So a bit that flips on a disk costs one line, which is run again, and
never changes a result unseen.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dopaminergic.files import discard_leftovers, open_file, replacing, shown
from dopaminergic.lab.schema import COST, RECORD, SchemaError, check, check_picture, cleaned

SCHEMA = 1
CHECK = b', "check": "%08x"}'
MEBIBYTE = 1 << 20
LONGEST_LINE = 64 * MEBIBYTE  # bytes
# By the report.
REQUIRED = ("task", "optimizer", "variant", "role", "seed", "settings", "budget", "curve")

Record = dict[str, Any]


class Records(NamedTuple):
    """The contents of a file of JSON lines.

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
    """Append records to a file of JSON lines and force them to the disk.

    Numbers that are not finite become null. A last line that was cut is closed with a newline
    first, so that the new record starts on its own line. Nothing that is in the file is removed. A
    missing file is created, its folder must exist.

    Args:
        path: the file.
        records: JSON-like objects.

    Raises:
        OSError: for example, the disk is full; the file is as before then.
        ValueError: the file is a link out of its folder.
    """
    lines = b"".join(sealed(record) + b"\n" for record in records)
    # It has no buffer, or closing the file would write once more the bytes that failed.
    with open_file(within(Path(path).parent, Path(path).name), "a+b") as file:
        size = file.seek(0, os.SEEK_END)
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
    """A line of JSON with the CRC-32 of the rest of it as its last entry, `"check"`.

    The record is not empty.
    """
    line = json.dumps(plain(record), allow_nan=False).encode()
    return line[:-1] + CHECK % zlib.crc32(line)


def opened(line: bytes) -> Record | None:
    """The record of a line, without its check; None where the line is damaged.

    Older lines have no check.
    """
    seal = len(CHECK % 0)
    if line[-seal:].startswith(CHECK[:12]):
        body = line[:-seal] + b"}"
        if CHECK % zlib.crc32(body) != line[-seal:]:
            return None
        line = body
    try:
        record = json.loads(line)
    # JSONDecodeError and UnicodeDecodeError are ValueErrors.
    except (ValueError, RecursionError, MemoryError):
        return None
    return record if isinstance(record, dict) else None


def within(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` in a folder.

    Raises ValueError where a link leads out of the folder.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"{path}: a link that leads out of the folder, to {path.resolve()}; nothing was "
            "written. Replace it by a "
            "file or folder of its own, or give another folder"
        )
    return path


def read_records(
    path: str | os.PathLike[str], required: Iterable[str] = ("task",), *, as_written: bool = False
) -> Records:
    """Every whole record of a file of JSON lines; no file, no records.

    Damaged lines are skipped and counted. Lines of `PATH.gz` come before those of the file itself:
    a finished folder may keep its records compressed.

    Args:
        path: the file.
        required: keys that every record has.
        as_written: keep control characters in text, which are spelled out otherwise; only to
            compare, not to show.

    Raises:
        ValueError: the file is something else: not one line is a JSON object, or an object lacks a
            required key or has a wrong value. It is raised, too, if a later version of this library
            wrote the file. The message names the file and the line.
    """
    records: list[Record] = []
    damaged: list[str] = []
    ours = False
    for where, line in _lines(Path(path)):
        record = opened(line.rstrip(b"\n"))
        if record is None:
            damaged.append(where)
            ours = ours or line.startswith(b"{")
            continue
        _check(record, where, required)
        # Without an escape there is nothing in ASCII to clean, but for one character.
        plain_text = b"\\" not in line and b"\x7f" not in line and line.isascii()
        records.append(record if as_written or plain_text else cleaned(record))
    if damaged and not records and not ours:
        raise ValueError(
            f"{damaged[0]}: not a JSON object, nor is any other line; give a file that "
            "`dopaminergic reproduce` wrote, or move this one away to start afresh"
        )
    return Records(records, len(damaged))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, and where each of them stands.

    Those of `PATH.gz` come first.
    """
    packed = path.with_name(f"{path.name}.gz")
    if packed.exists():
        with open_file(packed) as file, gzip.GzipFile(fileobj=file) as inner:
            yield from _numbered(inner, shown(os.fspath(packed), 120))
    if path.exists():
        with open_file(path) as file:
            yield from _numbered(file, shown(os.fspath(path), 120))


def _numbered(file: Any, name: str) -> Iterator[tuple[str, bytes]]:
    number = 0
    try:
        while line := file.readline(LONGEST_LINE):  # a few kB may unpack to one line of gigabytes
            number += 1
            if len(line) == LONGEST_LINE:
                raise ValueError(
                    f"{name}, line {number}: longer than {LONGEST_LINE >> 20} MiB, which no record "
                    "is"
                )
            if line.strip():
                yield f"{name}, line {number}", line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{name}, after line {number}: damaged ({error}); take it from its source again"
        ) from error


def _check(record: Record, where: str, required: Iterable[str]) -> None:
    schema = record.get("schema", SCHEMA)
    if type(schema) is not int or schema > SCHEMA:
        said = shown(
            repr(schema) if not isinstance(schema, int) or schema < 1 << 80 else "a huge number", 40
        )
        raise SchemaError(
            f"{where}: record of schema {said}, this version reads up to {SCHEMA}; upgrade "
            "dopaminergic"
        )
    check(record, RECORD, required, where)
    if "name" in required:
        check_picture(record, where)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file in one step.

    A reader, or a run after a kill, sees the old content or the new, never a part.
    """
    with replacing(path) as file:  # never through a link
        file.write(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


def writable(folder: Path) -> Path:
    """The folder, made if missing.

    It is an error before any work if it cannot be written, or if a file in it cannot grow to 1 MiB.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".writable", bytes(MEBIBYTE))
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {folder}: cannot write there ({error.strerror}); give another folder"
        ) from error
    discard_leftovers(folder)
    return folder


def read_costs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in `costs.json`, `{}` where there is no such file.

    Raises ValueError where it is something else.
    """
    if not Path(path).exists():
        return {}
    with open_file(path) as file:
        costs = opened(file.read().strip())
    name = shown(os.fspath(path), 120)
    way_out = "delete it and measure the costs again"
    if (
        costs is None
        or not isinstance(costs.get("rows"), list)
        or not isinstance(costs.get("environment", {}), dict)
    ):
        raise ValueError(f"{name}: damaged, or not JSON with a list 'rows'; {way_out}")
    for number, row in enumerate(costs["rows"], start=1):
        if not isinstance(row, dict):
            raise SchemaError(f"{name}, row {number}: not a JSON object; {way_out}")
        check(row, COST, COST, f"{name}, row {number}")
    return cleaned(costs)
