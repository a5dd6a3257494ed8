"""The user's own series from CSV and Parquet files.

They are read as written, or refused with the place and the way out.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import time as clock
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dopaminergic.files import shown
from dopaminergic.lab.tasks.cells import gap_message, has_decimal_comma, numbers_of, tail
from dopaminergic.lab.tasks.order import check_order
from dopaminergic.lab.tasks.text import MOST_BYTES, split
from dopaminergic.lab.tasks.times import Times, read_times

Series = NDArray[np.float64]

ENDINGS = (".csv", ".tsv")
PACKED_ENDINGS = (".gz", ".bz2", ".xz")
# A file that changed so recently could change again within one tick of the clock of its file
# system.
RECENT_NANOSECONDS = 100_000_000


NOTHING: Series = np.empty((0, 0))


class Data(NamedTuple):
    """Columns of a file.

    Attributes:
        names: the columns as they were asked for, or the one that was chosen.
        values: float64, shape `(rows, columns)`, read-only.
        contents: a hash of the values.
        notes: for a reader of the results, on how the file was read.
        future: known inputs of rows after the last one, shape `(rows, inputs)`: their cells of
            other columns are empty.
        times: None where no column of times was asked for.
    """

    names: list[str]
    values: Series
    contents: str
    notes: tuple[str, ...]
    future: Series = NOTHING
    times: Times | None = None


class Wanted(NamedTuple):
    """The columns that are wanted: to be forecast, known ahead, and of times."""

    names: tuple[str, ...] | None
    inputs: tuple[str, ...] = ()
    time: str | None = None


class Source(NamedTuple):
    """A file before its columns are chosen; `lines` is None where it has none."""

    names: list[str]
    columns: list[Any]
    lines: list[int] | None
    notes: list[str]


def read_series(path: str | Path, columns: str | Sequence[str], *, least: int = 1) -> Series:
    """Columns of numbers from a CSV or Parquet file.

    Args:
        path: a file that ends in `.csv`, `.tsv` or `.parquet`. A CSV file may be compressed, and
            end in `.gz`, `.bz2` or `.xz` too; its first line names its columns.
        columns: one name, or several.
        least: the number of rows that are needed.

    Returns:
        Shape `(rows, columns)`, read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, a missing column, or too few rows; a row with more or fewer
            cells than names. A cell that is not a number or has two readings; a missing or infinite
            value; dates that go back or repeat.
    """
    return read_data(path, columns, least=least).values


def read_data(
    path: str | Path,
    columns: str | Sequence[str] | None,
    *,
    inputs: str | Sequence[str] | None = None,
    time: str | None = None,
    least: int = 1,
) -> Data:
    """Columns of a file, read once a process as long as the file stays as it is; see `read_series`.

    Args:
        path: the file.
        columns: one name, or several; None where the file has one column of numbers.
        inputs: columns that are known ahead, after the others in `values`. With them, the file may
            end in rows whose other cells are empty.
        time: the column of times; None for none.
        least: the number of rows that are needed.
    """
    path = Path(path)
    names = None if columns is None else _several("columns", columns)
    wanted = Wanted(names, () if inputs is None else _several("inputs", inputs), time)
    every = [*(names or ()), *wanted.inputs, *([] if time is None else [time])]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"columns: {twice[:40]!r} is named twice; name each column once, as one to forecast, "
            "an input, or the time"
        )
    if wanted.inputs and names is None:
        raise ValueError("--inputs: which columns are to be forecast? name them by --targets")
    if time is not None and not isinstance(time, str):
        raise ValueError(f"time: expected the name of a column, got {time!r:.40}")
    state = _state(path)
    recent = clock.time_ns() - max(state[3:]) < RECENT_NANOSECONDS
    data = _read(path, wanted) if recent else _read_once(path, wanted, state)
    if len(data.values) < least:
        rows = len(data.values)
        raise ValueError(
            f"{tail(path)}: {rows} rows, but at least {least} are needed; give a longer series"
        )
    return data


def _several(what: str, names: str | Sequence[str]) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(names)
    if not (found and all(isinstance(name, str) for name in found)):
        raise ValueError(f"{what}: expected at least one name, got {names!r:.60}")
    return found


def _state(path: Path) -> tuple[int, ...]:
    """The facts that change when the file does.

    They are device, number, size, and times of its contents and of itself.
    """
    if not _is_text(path) and path.suffix.lower() != ".parquet":
        raise ValueError(
            "path: expected a file that ends in .csv or .parquet (or .tsv, or .csv.gz, .bz2, "
            f".xz), got {tail(path)!r}"
        )
    try:
        if path.is_file():
            found = os.stat(path)
            return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        there = path.exists()
    # A name that is too long, a folder that may not be entered.
    except (OSError, ValueError) as error:
        raise ValueError(
            f"path: cannot open {tail(path)!r} ({str(error)[:60]}); give another file"
        ) from error
    if there:
        raise ValueError(
            f"path: expected a file, got {tail(path)!r}, a folder, pipe or device; give a file"
        )
    raise FileNotFoundError(
        f"path: there is no file {tail(path)!r}; check the spelling and the working folder"
    )


def _is_text(path: Path) -> bool:
    endings = [suffix.lower() for suffix in path.suffixes]
    if endings and endings[-1] in PACKED_ENDINGS:
        endings.pop()
    return bool(endings) and endings[-1] in ENDINGS


@lru_cache(maxsize=8)
def _read_once(path: Path, wanted: Wanted, state: tuple[int, ...]) -> Data:
    return _read(path, wanted)


def _read(path: Path, wanted: Wanted) -> Data:
    source = _open(path)
    found = (
        _choose(path, source)
        if wanted.names is None
        else [_find(path, source.names, name) for name in wanted.names]
    )
    known = [_find(path, source.names, name) for name in wanted.inputs]
    notes = list(source.notes)
    comma = source.lines is not None and any(map(has_decimal_comma, source.columns))
    whole = len(source.columns[0]) if source.columns else 0
    rows = whole - (_future(source, found) if known else 0)
    columns = [_numbers(path, _cut(source, rows), index, comma, notes) for index in found]
    inputs = [_numbers(path, source, index, comma, notes) for index in known]
    others = {
        name: column for i, (name, column) in enumerate(_items(source)) if i not in found + known
    }
    backwards = check_order(tail(path), others, source.lines, notes)
    times = _times(path, source, wanted.time, rows, notes)
    if rows < whole and backwards:
        raise ValueError(
            f"{tail(path)}: rows to be forecast must stand at the end, but its rows go from the "
            "newest to the oldest; sort them with the oldest first"
        )
    past = [*columns, *(each[:rows] for each in inputs)]
    values = _frozen(np.stack(past, axis=1)[:: -1 if backwards else 1])
    future = _frozen(np.stack([each[rows:] for each in inputs], axis=1)) if inputs else NOTHING
    digest = hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:16]
    chosen = [source.names[i] for i in found] if wanted.names is None else list(wanted.names)
    return Data(chosen, values, f"sha256:{digest}", tuple(notes), future, times)


def _frozen(values: Series) -> Series:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values


def _future(source: Source, found: Sequence[int]) -> int:
    """How many rows at the end have nothing in any of these columns."""
    count = 0
    for row in range(len(source.columns[0]) - 1, -1, -1):
        cells = [source.columns[i][row] if isinstance(source.columns[i], list) else
                 source.columns[i].iloc[row] for i in found]  # fmt: skip
        if not all(_is_empty(cell) for cell in cells):
            break
        count += 1
    return count


def _is_empty(cell: Any) -> bool:
    return not cell.strip() if isinstance(cell, str) else cell is None or cell != cell


def _cut(source: Source, rows: int) -> Source:
    """The first rows of a file."""
    return source._replace(columns=[column[:rows] for column in source.columns])


def _times(
    path: Path, source: Source, name: str | None, rows: int, notes: list[str]
) -> Times | None:
    if name is None:
        return None
    cells = source.columns[_find(path, source.names, name)]
    return read_times(tail(path), name, cells, rows, source.lines, notes)


def _items(source: Source) -> list[tuple[str, Any]]:
    return list(zip(source.names, source.columns, strict=True))


def _open(path: Path) -> Source:
    with open(path, "rb") as file:
        parquet = file.read(4) == b"PAR1"
    if parquet or path.suffix.lower() == ".parquet":
        return _open_parquet(path)
    table = split(path)
    columns = [table.frame[i].tolist() for i in range(len(table.names))]
    return Source(table.names, columns, table.lines, table.notes)


def _open_parquet(path: Path) -> Source:
    import pandas
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            cells = file.metadata.num_rows * file.metadata.num_columns
        if not 0 <= 8 * cells <= MOST_BYTES:
            raise ValueError(
                f"more than {MOST_BYTES >> 20} MiB of cells; keep fewer columns or rows"
            )
        frame = pandas.read_parquet(path)
    except Exception as error:  # of two libraries, a dozen kinds for bytes that were not written
        said = shown(" ".join(str(error).split()), 150)
        raise ValueError(f"{tail(path)}: cannot be read as parquet: {said}") from error
    if not isinstance(frame.index, pandas.RangeIndex) and not set(frame.index.names) & set(
        frame.columns
    ):
        frame = frame.reset_index()
    names = [
        "/".join(map(str, label)) if isinstance(label, tuple) else str(label)
        for label in frame.columns
    ]
    return Source(names, [frame.iloc[:, i] for i in range(len(names))], None, [])


def _plain(name: str) -> str:
    """A name without its invisible parts: another normal form of accents, blanks around."""
    return unicodedata.normalize("NFC", name).strip().removeprefix("\ufeff")


def _find(path: Path, known: list[str], name: str) -> int:
    """The number of the column of a name."""
    for same in (str, _plain):
        found = [i for i, other in enumerate(known) if same(other) == same(name)]
        if len(found) > 1:
            places = " and ".join(str(i + 1) for i in found)
            raise ValueError(
                f"{tail(path)}: columns {places} are both called {name!r}; give each a name of its "
                "own"
            )
        if found:
            return found[0]
    near = difflib.get_close_matches(_plain(name).lower(), [other.lower() for other in known], n=1)
    hint = "".join(f" Did you mean {other!r}?" for other in known if near == [other.lower()])
    raise ValueError(f"{tail(path)}: no column {name[:40]!r}; it has {_listed(known)}.{hint}")


def _listed(known: list[str]) -> str:
    some = ", ".join(repr(name[:40]) for name in known[:6])
    return (some or "none") + (f" and {len(known) - 6} more" if len(known) > 6 else "")


def _choose(path: Path, source: Source) -> list[int]:
    """The number of the only column, where no name was given."""
    [*more] = range(len(source.names))
    if len(more) == 1 and source.names[0].strip() and not source.names[0].isdigit():
        return more
    example = next((name for name in reversed(source.names) if name.strip()), "NAME")
    raise ValueError(
        f"--column: which one? {tail(path)} has {_listed(source.names)}; for example --column "
        f"{example[:40]!r}"
    )


def _numbers(path: Path, source: Source, index: int, comma: bool, notes: list[str]) -> Series:
    name = source.names[index]
    column = source.columns[index]
    where = f"{tail(path)}: column {name[:60]!r}"
    if isinstance(column, list):
        return numbers_of(where, column, source.lines, comma, notes)
    return _parquet_numbers(where, column, notes)


def _parquet_numbers(where: str, column: Any, notes: list[str]) -> Series:
    import pandas

    kinds = pandas.api.types
    if kinds.is_datetime64_any_dtype(column) or kinds.is_timedelta64_dtype(column):
        raise ValueError(f"{where} holds dates, not numbers; choose another column")
    if not (kinds.is_numeric_dtype(column) or kinds.is_bool_dtype(column)):
        missing = column.isna()
        texts = ["" if lost else str(cell) for cell, lost in zip(column, missing, strict=True)]
        return numbers_of(where, texts, None, has_decimal_comma(texts), notes)
    if kinds.is_complex_dtype(column):
        raise ValueError(
            f"{where} holds complex numbers; write their real and imaginary parts as two columns"
        )
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    gaps = ~np.isfinite(values)
    if gaps.any():
        raise ValueError(gap_message(where, int(gaps.sum()), int(gaps.argmax()), None))
    return values


def check_changes(path: str | Path, names: Sequence[str], values: Series, train_rows: int) -> None:
    """Raises ValueError where a column does not change in its training part, but for rounding."""
    for name, column in zip(names, values[:train_rows].T, strict=True):
        # In halves: the difference of the ends may be larger than any float64.
        change = column.max() / 2 - column.min() / 2
        size = np.abs(column).max()
        if change <= 8 * np.finfo(np.float64).eps * size:
            most = f"by more than the rounding of {size:g}" if change > 0 else f"from {column[0]:g}"
            raise ValueError(
                f"{tail(path)}: column {name[:60]!r} never changes {most} in its first 70 %; "
                "choose another column"
            )
