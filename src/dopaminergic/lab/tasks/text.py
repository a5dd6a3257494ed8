"""The text of a CSV file: decompressed, decoded, and split into cells.

Every odd line is named and none is skipped.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from dopaminergic.lab.tasks.cells import tail

if TYPE_CHECKING:
    import pandas

MOST_BYTES = 1 << 28
SEPARATORS = ",;\t|"
SAMPLE = 50  # lines from which the separator is found

PACKED: dict[bytes, Callable[[IO[bytes]], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ\x00": lambda file: lzma.LZMAFile(file),  # noqa: SIM115
}
OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"ARROW1": "a Feather file",
    b"ORC": "an ORC file",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
}
MARKS = {  # the longer ones first: one of UTF-32 begins as one of UTF-16 does
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


class Table(NamedTuple):
    """Cells as they are written.

    Attributes:
        frame: strings, the columns numbered from 0.
        names: of the columns, as the first line has them.
        lines: the line of the file in which each row ends.
        notes: for a reader of the results, on how the file was read.
    """

    frame: pandas.DataFrame
    names: list[str]
    lines: list[int]
    notes: list[str]


def unpack(path: Path) -> bytes:
    """The content of a file, decompressed where it is compressed, for any name of the file.

    Raises:
        ValueError: it is larger than 256 MiB, damaged, or of another kind.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(0)
        packed = next((make for magic, make in PACKED.items() if start.startswith(magic)), None)
        try:
            content = (packed(file) if packed else file).read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{tail(path)}: cannot be read as csv: damaged, or cut short ({error})"
            ) from error
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{tail(path)}: cannot be read as csv: it holds more than {MOST_BYTES >> 20} MiB; keep "
            "fewer columns or "
            "rows, or write it as Parquet"
        )
    kind = next((kind for magic, kind in OTHERS.items() if content.startswith(magic)), None)
    if kind:
        raise ValueError(
            f"{tail(path)}: cannot be read as csv: it is {kind}; save it as CSV or Parquet"
        )
    return content


def decode(path: Path, content: bytes, notes: list[str]) -> str:
    """The text of a file: UTF-8, UTF-16 or UTF-32, else Windows-1252, which a note says then."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    encoding = encoding or _without_mark(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding != "utf-8":
            raise ValueError(
                f"{tail(path)}: line {line} is not {encoding}; save the file as UTF-8"
            ) from error
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError as other:
            raise ValueError(
                f"{tail(path)}: line {line} is neither UTF-8 nor Windows-1252 (byte "
                f"0x{content[other.start]:02x}); save the file as UTF-8"
            ) from other
        notes.append(f"line {line} is not UTF-8, so the text was read as Windows-1252 (Latin-1)")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{tail(path)}: line {line} holds a NUL character: damaged, or not a text; write the "
            "file anew"
        )
    return text


def _without_mark(content: bytes) -> str:
    start = content[: 1 << 12]
    even = start[::2].count(0)
    odd = start[1::2].count(0)
    if odd > len(start) // 4 and not even:
        return "utf-16-le"
    if even > len(start) // 4 and not odd:
        return "utf-16-be"
    return "utf-8"


def split(path: Path) -> Table:
    """The cells of a CSV file, compressed or not, with any separator.

    Raises:
        ValueError: a row is longer or shorter than the first line, there are two separators, names
            are missing, or the text is damaged. The message has the line.
    """
    import pandas

    notes: list[str] = []
    text = decode(path, unpack(path), notes)
    text, skipped, given = _after_preamble(text, notes)
    if not text.strip():
        raise ValueError(f"{tail(path)}: cannot be read as csv: there is no line of names in it")
    separator = given or _separator(path, text, skipped)
    names, lines = _check(path, text, separator, skipped, notes)
    frame = pandas.read_csv(
        io.StringIO(text), sep=separator, header=None, skiprows=0, dtype=str, keep_default_na=False,
        skip_blank_lines=True, index_col=False, names=list(range(len(names))),
    ).iloc[1:]  # fmt: skip
    if len(frame) != len(lines):
        raise ValueError(
            f"{tail(path)}: cannot be read as csv: its quotes are not closed or not doubled; write "
            "it anew"
        )
    return Table(frame.reset_index(drop=True), names, lines, notes)


def _after_preamble(text: str, notes: list[str]) -> tuple[str, int, str | None]:
    """The text from the names on, the number of lines before, and the named separator.

    It is the one that Excel's line `sep=;` names.
    """
    skipped = 0
    given = None
    while match := re.match(r"(?:#[^\r\n]*|sep=(.)|[ \t]*)(?:\r\n|\r|\n)", text):
        if match[0].startswith("#"):
            notes.append(f"line {skipped + 1} begins with '#' and was left out")
        given = match[1] or given
        text = text[match.end() :]
        skipped += 1
    return text, skipped, given


def _separator(path: Path, text: str, skipped: int) -> str:
    """The separator by which most of the first lines have as many cells as the names."""
    sample = [line for line in islice(io.StringIO(text, newline=""), SAMPLE) if line.strip()]
    scores: dict[str, tuple[int, int]] = {}
    for separator in SEPARATORS:
        counts = [len(row) for row in csv.reader(sample, delimiter=separator)]
        if counts and counts[0] > 1:
            scores[separator] = (counts.count(counts[0]), counts[0])
    best = max(scores, key=scores.__getitem__, default=",")
    for other in SEPARATORS.replace(best, ""):
        if (
            other not in sample[0]
            and len(sample) > 1
            and all(other in _bare(line) for line in sample[1:])
        ):
            if other == "," and best != ",":
                continue  # a decimal comma
            raise ValueError(
                f"{tail(path)}: line {skipped + 2} has {other!r} between its cells, the names in "
                f"line {skipped + 1} "
                f"have {'none' if best not in sample[0] else repr(best)}; write all lines with one "
                "separator"
            )
    return best


def _bare(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _check(
    path: Path, text: str, separator: str, skipped: int, notes: list[str]
) -> tuple[list[str], list[int]]:
    """The names, and the line of every row.

    Each row is known to have as many cells as there are names then.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    lines: list[int] = []
    blank: list[int] = []
    gaps: list[int] = []
    try:
        for row in reader:
            line = reader.line_num + skipped
            if not row or (len(row) == 1 and not row[0].strip()):
                blank.append(line)
                continue
            if not names:
                names = row
                continue
            if len(row) != len(names):
                raise ValueError(_odd_row(path, row, line, names, skipped + 1, separator))
            gaps += blank
            blank.clear()
            lines.append(line)
    except csv.Error as error:
        raise ValueError(
            f"{tail(path)}: line {reader.line_num + skipped}: cannot be read as csv: {error}; is a "
            "quote not closed?"
        ) from error
    if gaps and len(names) == 1:
        raise ValueError(
            f"{tail(path)}: line {gaps[0]} is blank: a missing value? fill it in, or remove the "
            "line"
        )
    if gaps:
        notes.append(f"{len(gaps)} blank lines were left out, the first is line {gaps[0]}")
    _check_names(path, names, skipped + 1)
    return names, lines


def _odd_row(
    path: Path, row: list[str], line: int, names: list[str], first: int, separator: str
) -> str:
    way = "give every column a name" if len(row) > len(names) else "complete or remove the row"
    if separator == "," and len(row) > len(names):
        way += ", and quote cells with a decimal comma"
    return (
        f"{tail(path)}: line {line} has {len(row)} cells ({_start(row)}), but line {first} has "
        f"{len(names)} names "
        f"({_start(names)}); {way}"
    )


def _start(cells: list[str]) -> str:
    shown = ", ".join(repr(cell[:20]) for cell in cells[:3])
    return shown + (", ..." if len(cells) > 3 else "")


def _check_names(path: Path, names: list[str], line: int) -> None:
    """Raises ValueError where the line of names is one of numbers.

    The numbers would be lost as names.
    """
    counted = [[str(first + i) for i in range(len(names))] for first in (0, 1)]
    if names in counted or not all(
        re.fullmatch(r"\s*[+-]?[\d.,]+(?:[eE][+-]?\d+)?\s*", name) for name in names
    ):
        return
    raise ValueError(
        f"{tail(path)}: line {line} holds numbers ({_start(names)}) where the names of the columns "
        "should be; put a "
        "line of names before it, or remove the '#' before the names"
    )
