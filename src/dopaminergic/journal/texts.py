"""The text records of a journal: headers and states as JSON, from which no code is ever run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.files import shown
from dopaminergic.journal.format import MOST_MEMORY, JournalError

DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (torch.float64, torch.float32, torch.int64, torch.bool)
}


def to_json(value: Any) -> bytes:
    """Numbers, text, lists, dicts, tuples and tensors; floats come back to the bit."""
    return json.dumps(_plain(value), separators=(",", ":")).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """The dict that `to_json` wrote.

    Raises `JournalError` for anything else.
    """
    if json_memory(data) > MOST_MEMORY:
        raise JournalError(
            f"a text record of {len(data):,} bytes would take more than {MOST_MEMORY >> 20} MiB of "
            "memory"
        )
    try:
        value = _full(json.loads(data))
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        said = shown(" ".join(str(error).split()), 100)
        raise JournalError(
            f"a text record cannot be read ({type(error).__name__}: {said})"
        ) from None
    if not isinstance(value, dict):
        raise JournalError("a text record is not a JSON object")
    return value


def json_memory(data: bytes) -> int:
    """Bound on the bytes of memory that JSON takes when it is read.

    It includes the tensors and tuples that are made of it.
    """
    containers = data.count(b"[") + data.count(b"{")
    values = data.count(b",") + data.count(b":")
    return 144 * containers + 64 * values + 4 * len(data)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise TypeError(
                f"a journal cannot hold a tensor of dtype {dtype}; make it one of "
                f"{', '.join(DTYPES)}"
            )
        return {"tensor": dtype, "shape": list(value.shape), "values": value.flatten().tolist()}
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return {"tuple": [_plain(v) for v in value]}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a journal cannot hold {value!r}; it takes numbers, text, lists, dicts and tensors of "
        "numbers"
    )


def _full(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tensor", "shape", "values"}:
        return torch.tensor(value["values"], dtype=DTYPES[value["tensor"]], device="cpu").reshape(
            value["shape"]
        )
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(_full(v) for v in value["tuple"])
    if isinstance(value, dict):
        return {key: _full(v) for key, v in value.items()}
    return [_full(v) for v in value] if isinstance(value, list) else value
