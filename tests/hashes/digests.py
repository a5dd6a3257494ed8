"""Values of any kind as text, and the hashes of it; the same in each process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGITS = 12  # of a hash, in hex
START_BYTES, CHECKSUM_BYTES = 10, 4  # of a journal, and of each of its records
HEADER = 1  # the kind of a journal's record that names the library's version


def digest(value: Any) -> str:
    """The first digits of the SHA-256 of a value's text, or of bytes."""
    data = value if isinstance(value, bytes) else canonical(value).encode()
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def canonical(value: Any) -> str:
    """Text that is equal for equal values alone: floats and tensors to the bit, dicts in their
    order.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Tensor):
        return f"tensor({value.dtype}, {tuple(value.shape)}, {bytes_of(value).hex()})"
    if isinstance(value, np.ndarray):
        return f"array({value.dtype}, {value.shape}, {value.tobytes().hex()})"
    if isinstance(value, dict):
        entries = (f"{canonical(key)}: {canonical(entry)}" for key, entry in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list | tuple):
        entries = ", ".join(map(canonical, value))
        return f"[{entries}]" if isinstance(value, list) else f"({entries})"
    raise TypeError(f"canonical: no text is defined for {type(value).__name__}; add it here")


def bytes_of(tensor: Tensor) -> bytes:
    """The numbers of a tensor in their logical order, whatever its layout in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def journal_content(path: Path) -> bytes:
    """The bytes of a journal, without the version of the library and the checksums that depend on
    it.
    """
    data = path.read_bytes()
    parts = [data[:START_BYTES]]
    at = START_BYTES
    while at < len(data):
        kind = data[at]
        length, at = _varint(data, at + 1)
        payload = data[at : at + length]
        at += length + CHECKSUM_BYTES
        parts += [bytes((kind,)), _without_version(payload) if kind == HEADER else payload]
    return b"|".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if byte < 0x80:
            return value, at


def _without_version(payload: bytes) -> bytes:
    header = json.loads(payload)
    del header["library"]
    return json.dumps(header).encode()
