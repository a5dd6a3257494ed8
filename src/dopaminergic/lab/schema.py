"""The keys and values of a line of `records.jsonl`, `pictures.jsonl` and `costs.json`.

Files of others are read by this alone. A checksum shows that a line is as it was written, not that
it was written by us.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dopaminergic.files import shown

Test = Callable[[Any], bool]
LARGEST = 1e100  # of a number: its square is still one
DEEPEST = 20  # nested lists and objects


class SchemaError(ValueError):
    """A record that is not made as records are."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _truth(value: Any) -> bool:
    return type(value) is bool


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _numbers_or_none(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number_or_none, value))


def _object(value: Any) -> bool:
    return isinstance(value, dict) and _depth(value) < DEEPEST


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(each) for each in inner if isinstance(each, dict | list)), default=0)


def _settings(value: Any) -> bool:
    """Settings of a run: a rate, and others of any kind."""
    return _object(value) and _number(value.get("lr", 0.0)) and all(map(_finite, value.values()))


def _finite(value: Any) -> bool:
    return type(value) is bool or not isinstance(value, int | float) or _number(value)


def _metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number_or_none, value.values()))


def _curve(value: Any) -> bool:
    return _columns(value, {"passes": _numbers, "error": _numbers_or_none})


def _traces(value: Any) -> bool:
    columns = {"passes": _numbers, "rpe": _numbers_or_none, "learning_rate": _numbers_or_none}
    return value is None or _columns(value, columns)


def _columns(value: Any, columns: Mapping[str, Test]) -> bool:
    if not isinstance(value, dict) or not all(
        test(value.get(name)) for name, test in columns.items()
    ):
        return False
    return len({len(value[name]) for name in columns}) == 1


def _rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(map(_numbers_or_none, value))
        and {len(row) for row in value} == {len(value[0])} != {0}
    )


def _truth_of_a_run(value: Any) -> bool:
    return _rows(value) and all(map(_numbers, value)) and any(any(row) for row in value)


def _forecast(value: Any) -> bool:
    return (
        value == []
        or (isinstance(value, list) and len(value) == 1 and _numbers_or_none(value[0]))
        or _rows(value)
    )


def _extent(value: Any) -> bool:
    return _numbers(value) and len(value) > 1 and value[0] < value[-1]


def _square(value: Any) -> bool:
    return _rows(value) and len(value) == len(value[0]) and all(map(_numbers, value))


RECORD: dict[str, tuple[Test, str]] = {
    "task": (_text, "text"),
    "task_settings": (_settings, "an object"),
    "optimizer": (_text, "text"),
    "variant": (_text, "text"),
    "role": (_text, "text"),
    "settings": (_settings, "an object whose 'lr' is a number"),
    "seed": (_count, "a whole number >= 0"),
    "budget": (_count, "a whole number >= 0"),
    "forward_passes": (_count, "a whole number >= 0"),
    "curve": (_curve, "an object with 'passes' and 'error', lists of numbers of one length"),
    "traces": (
        _traces,
        "null, or an object with 'passes', 'rpe' and 'learning_rate', lists of one length",
    ),
    "metrics": (_metrics, "an object of numbers"),
    "solved_at": (_number_or_none, "a number or null"),
    "diverged": (_truth, "true or false"),
    "seconds": (_number, "a number"),
    "replicas": (_count, "a whole number >= 0"),
    "versions": (_object, "an object"),
    "created": (_text, "text"),
    "dtype": (_text, "text"),
    # Of pictures.
    "name": (_text, "text"),
    "sample_time": (_positive, "a number > 0"),
    "lyapunov_time": (_positive, "a number > 0"),
    "truth": (_truth_of_a_run, "two or more rows of numbers, of one length, not all zero"),
    "forecast": (_forecast, "rows of numbers, of one length"),
    "extent": (_extent, "two numbers, the lower one first"),
    "probability": (_square, "rows of numbers, as many as each has"),
}
OF_PICTURES = {
    "free_run": ("truth", "forecast", "sample_time", "lyapunov_time"),
    "decision_boundary": ("extent", "probability"),
}
COST: dict[str, tuple[Test, str]] = {
    "optimizer": (_text, "text"),
    "task": (_text, "text"),
    "passes_per_step": (_positive, "a number > 0"),
    "time_over_two_forwards": (_positive, "a number > 0"),
    "peak_memory_over_inference": (
        lambda value: value is None or _positive(value),
        "null or a number > 0",
    ),
}


def check(
    record: Mapping[str, Any],
    schema: Mapping[str, tuple[Test, str]],
    required: Iterable[str],
    where: str,
) -> None:
    """Raise unless a record has all required keys, and values of the right kind.

    Keys that the schema does not know may have any value.

    Args:
        record: as it was read.
        schema: for each key a test, and in words the values that pass it.
        required: keys that must be there.
        where: file and line, for the message.

    Raises:
        SchemaError: it names the file, the line, the key, the value, and the way out.
    """
    for key in required:
        if key not in record:
            raise SchemaError(
                f"{where}: a JSON object without {key!r}, so not a record; is this the right file?"
            )
    for key, value in record.items():
        test, words = schema.get(key, (None, ""))
        if test is not None and not test(value):
            raise SchemaError(
                f"{where}: {key!r} must be {words}, got {_told(value)}; delete the line, or let "
                "its run be made again"
            )


def check_picture(record: Mapping[str, Any], where: str) -> None:
    """Raise unless a picture has all that its kind needs, in shapes that fit."""
    check(record, RECORD, OF_PICTURES.get(record["name"], ()), where)
    if record["name"] == "free_run":
        widths = {len(row) for key in ("truth", "forecast") for row in record[key]}
        if len(widths) > 1:
            raise SchemaError(
                f"{where}: rows of 'truth' and 'forecast' differ in length; delete the line"
            )


def cleaned(value: Any) -> Any:
    """The value with all text in it, keys too, as a terminal or a page may show it.

    See `files.shown`.
    """
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown(key): cleaned(each) for key, each in value.items()}
    return [cleaned(each) for each in value] if isinstance(value, list) else value


def _told(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    kind = {dict: "an object", list: "a list"}.get(type(value))
    return kind or shown(
        repr(value) if not isinstance(value, int) or abs(value) < 1 << 80 else "a huge number", 60
    )
