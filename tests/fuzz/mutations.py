"""Bytes and values, changed at random."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dopaminergic.plain import as_float

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320,
    1e308, -1e308, math.nan, math.inf, -math.inf, "", "x", "gaussian", "\x1b]52;c;YQ==\x07",
    "\ud800", "a" * 300, "../" * 40,
    "[/red]", "<script>", [], {}, [[]], [None], {"": {}}, [1, 2, 3], "nan", "\u202e", [[[[[[]]]]]],
]  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes with a few flipped, cut, doubled or replaced."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        length = min(chance.choice((1, 1, 4, 30)), len(out) - at)
        how = chance.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del out[at : at + length]
        elif how == 2:
            out[at:at] = bytes(chance.randrange(256) for _ in range(length))
        elif how == 3:
            out[at:at] = out[at : at + length]
        elif how == 4:
            del out[at:]
        else:
            out[at : at + length] = (
                chance.choice((b"\0", b"\xff", b"\x1b", b"\n", b"9", b"\xed\xa0\x80")) * length
            )
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within lists and dicts."""
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list | tuple)
        else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(value: Any, chance: random.Random) -> Any:
    """A copy in which something is replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = list(places(value))
        if not found:
            return value
        # As many chances for what lies above as for the many numbers below it.
        depth = chance.choice(sorted({len(path) for path in found}))
        *above, key = chance.choice([path for path in found if len(path) == depth])
        holder = value
        for each in above:
            holder = holder[each]
        if isinstance(holder, tuple):
            continue
        new = _replacement(holder[key], chance)
        if chance.random() < 0.15:
            del holder[key]
        else:
            holder[key] = new
    return value


def _replacement(old: Any, chance: random.Random) -> Any:
    if isinstance(old, torch.Tensor) and _is_usual(old) and chance.random() < 0.7:
        tensors: list[Callable[[], Any]] = [
            lambda: old.double() * math.nan, lambda: old.double() * 1e300,
            lambda: old.reshape(-1)[:0],
            lambda: old.reshape(1, *old.shape), lambda: old.to(torch.int8), lambda: -old,
            lambda: old.flatten().tolist(), lambda: old.to_sparse(),
            lambda: old.flatten()[:1].expand(max(2, old.numel())), lambda: torch.zeros(3, 5),
            lambda: torch.empty_like(old, device="meta"),
        ]  # fmt: skip
        return chance.choice(tensors)()
    if type(old) in (int, float) and chance.random() < 0.3:
        near = as_float(old)
        numbers: list[Callable[[], Any]] = [
            lambda: -old, lambda: old + 1, lambda: old * 2**40, lambda: near, lambda: repr(near),
        ]  # fmt: skip
        return chance.choice(numbers)()
    if isinstance(old, str) and chance.random() < 0.3:
        return old + chance.choice(("\x1b[31m", "\ud800", " " * 200, "?"))
    return copy.deepcopy(chance.choice(HOSTILE))


def _is_usual(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and tensor.layout == torch.strided and tensor.numel() > 0
