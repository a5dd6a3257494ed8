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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = 1
CHECK = b', "check": "%08x"}'
MEBIBYTE = 1 << 20

Record = dict[str, Any]
Method = tuple[str, str]  # (optimizer, variant)
Cells = dict[Method, list[Record]]  # the runs of one task

# The order is that of every table and legend: the rules under test, other perturbation rules, gradients.
LABELS = {
    "dopamine": "Dopamine",
    "dopamine2": "Dopamine2",
    "vector": "VectorDopamine",
    "wp": "WP",
    "spsa": "SPSA",
    "es": "ES",
    "sgd": "SGD",
    "adam": "Adam",
}
FORECASTING = ("lorenz", "rossler", "mackey-glass", "henon", "logistic")
TITLES = {
    "lorenz": "Lorenz",
    "rossler": "Rössler",
    "mackey-glass": "Mackey–Glass",  # noqa: RUF001
    "henon": "Hénon",
    "logistic": "Logistic map",
    "xor": "XOR",
    "vpt": "free run",
}


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


# --- what a record says ---


def final_error(record: Mapping[str, Any]) -> float:
    """Test error at the end of the run; infinity where the run diverged or the error is not finite."""
    errors = record["curve"]["error"]
    last = errors[-1] if errors else None
    return math.inf if last is None or record.get("diverged") or not math.isfinite(last) else float(last)


def solved_at(record: Mapping[str, Any]) -> float:
    """Forward passes when the task's threshold was first met; infinity for a run that never met it."""
    passes = record.get("solved_at")
    return math.inf if passes is None else float(passes)


def metric_name(records: Iterable[Mapping[str, Any]]) -> str:
    """Name of the metric that the curves show: the one whose final value is the curve's; "error" if none is."""
    for record in records:
        last = final_error(record)
        values = {name: value for name, value in record.get("metrics", {}).items() if value is not None}
        # Curves may be stored with fewer digits than metrics are.
        close = {name: abs(value - last) for name, value in values.items() if math.isclose(value, last, rel_tol=1e-3)}
        if close and math.isfinite(last):
            return min(close, key=lambda name: close[name])
    return "error"


METRICS = {
    "nrmse": "NRMSE",
    "mse": "mean squared error",
    "error": "error",
    "error_rate": "error rate",
    "train_error_rate": "Training error rate",
    "loss": "loss",
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "vpt": "Valid prediction time (Lyapunov times)",
    "test_nrmse": "NRMSE on the test part",
    "nrmse_one_lyapunov_time": "NRMSE over one Lyapunov time of free running",
    "diverged_share": "Share of free runs that diverge",
}


def metric_title(records: Iterable[Mapping[str, Any]]) -> str:
    """Name of the curves' metric for readers, to follow the word "test"."""
    name = metric_name(records)
    return METRICS.get(name, name.replace("_", " "))


def unique(records: Iterable[Record]) -> list[Record]:
    """Records without repetitions of the same run (task and its settings, method, role, budget, seed, settings).

    The last of each is kept, in the place of the first.
    """
    keys = ("task", "task_settings", "optimizer", "variant", "role", "budget", "seed", "settings")
    found = {json.dumps([record.get(key) for key in keys], sort_keys=True): record for record in records}
    return list(found.values())


def by_task(records: Iterable[Record], role: str | None = "report") -> dict[str, Cells]:
    """Records of a role by title of the task, then by (optimizer, variant), in the order of tables and legends.

    Tasks that share a name but differ in their settings or budget are kept apart and say in the title how they differ.

    Args:
        records: any records.
        role: "report", "tuning", or None for both.
    """
    chosen = [record for record in unique(records) if role is None or record["role"] == role]
    chosen.sort(key=lambda record: (task_rank(record["task"]), _method_rank(record)))
    tasks: dict[str, Cells] = {}
    for record, title in zip(chosen, titles(chosen), strict=True):
        tasks.setdefault(title, {}).setdefault((record["optimizer"], record["variant"]), []).append(record)
    return tasks


def titles(records: Sequence[Record]) -> list[str]:
    """The title of each record's task, which says how it differs from others of that name, if it does.

    Args:
        records: runs, or pictures of runs.
    """
    # Few records differ in what they are runs of: comparing each with each other would take minutes for a large run.
    settings: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        known = settings.setdefault(record["task"], [])
        if _distinguishing(record) not in known:
            known.append(_distinguishing(record))
    found = []
    for record in records:
        own, all_of_name = _distinguishing(record), settings[record["task"]]
        differing = [key for key in own if any(other.get(key) != own[key] for other in all_of_name)]
        suffix = ", ".join(f"{key.replace('_', ' ')} {own[key]}" for key in differing)
        found.append(task_title(record["task"]) + (f" ({suffix})" if suffix else ""))
    return found


def _distinguishing(record: Record) -> dict[str, Any]:
    told = {**record.get("task_settings", {}), "budget": record.get("budget")}
    return {key: value for key, value in told.items() if value is not None}


def task_rank(task: str) -> tuple[int, int, str]:
    """By what tasks are ordered in tables and figures: forecasting, XOR, others."""
    stem = next((rank for rank, name in enumerate(FORECASTING) if task.startswith(name)), len(FORECASTING))
    return (0 if is_forecasting(task) else 1 if is_xor(task) else 2, stem, task)


def _method_rank(record: Record) -> tuple[int, str, str]:
    names = list(LABELS)
    optimizer = record["optimizer"]
    return (names.index(optimizer) if optimizer in names else len(names), optimizer, record["variant"])


def task_title(task: str) -> str:
    """A task's name for readers: `mackey-glass` becomes Mackey-Glass with a dash, `xor-2-2-1` becomes XOR 2-2-1."""
    for name in FORECASTING:
        if task.startswith(name):
            rest = [TITLES.get(word, word) for word in task[len(name) :].split("-") if word]
            return " ".join([TITLES[name], *rest])
    shape = task.removeprefix("xor-")
    if shape != task:
        return f"XOR {shape}"
    words = " ".join(TITLES.get(word, word) for word in task.split("-"))
    return words[:1].upper() + words[1:]


def method_title(method: Method, bare: bool = False) -> str:
    """A method's name for readers; the variant is said where an optimizer has two, unless `bare`."""
    optimizer, variant = method
    name = LABELS.get(optimizer, optimizer)
    return f"{name}, {variant}" if optimizer.startswith("dopamine") and not bare else name


def is_forecasting(task: str) -> bool:
    """Whether the task is a chaotic series to be forecast."""
    return task.startswith(FORECASTING)


def is_xor(task: str) -> bool:
    """Whether the task is one of the XOR family."""
    return "xor" in task.split("-")


def has_threshold(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of the runs met a threshold, that is, whether passes to a threshold mean anything here."""
    return any(record.get("solved_at") is not None for record in records)


def compact(value: float, digits: int = 3) -> str:
    """A number for readers: three significant digits, thousands in groups, powers of ten where it is far from 1.

    >>> compact(0.033412), compact(20000), compact(1.2e-5), compact(float("inf")), compact(float("nan"))
    ('0.0334', '20,000', '1.20 × 10⁻⁵', '∞', '–')
    """
    if math.isnan(value):
        return "–"  # noqa: RUF001
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"  # noqa: RUF001
    if value == 0 or (float(value).is_integer() and 1 <= abs(value) < 1e7):
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 5:
        return f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - power)}f}"
    return f"{mantissa} × 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"  # noqa: RUF001
