"""Hashes that tell whether all ranks have the same settings, shards and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.weights.sharding import first_element, is_sharded, local

CHUNK = 1 << 20  # weights that are hashed at once
EXACT = 1 << 52  # integers below it are float64 numbers


def fingerprint(identity: Any, parameters: Iterable[Tensor]) -> list[float]:
    """Three integers below 2^52 that are equal on all ranks: of settings, shards and weights.

    Args:
        identity: anything made of numbers, strings, tensors, lists and dicts.
        parameters: of which this rank's part is read once.
    """
    parameters = list(parameters)
    places = [(first_element(p), local(p).numel()) for p in parameters if is_sharded(p)]
    return [
        float(digest(_plain(identity)) % EXACT),
        float(digest(places) % EXACT),
        float(_hash(parameters) % EXACT),
    ]


def _hash(parameters: list[Tensor]) -> int:
    """A hash of the sum of the weights' bits times odd numbers, mod 2^64.

    Every change of one weight changes it.
    """
    total = 0
    for p in map(local, parameters):
        p = torch.view_as_real(p) if p.is_complex() else p  # frozen ones may be anything
        p = p.int_repr() if p.is_quantized else p
        if p.is_meta:
            continue
        bits = p.reshape(-1).view(
            {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[p.element_size()]
        )
        factors = _factors(min(CHUNK, bits.numel())).to(p.device)
        for start in range(0, bits.numel(), CHUNK):
            chunk = bits[start : start + CHUNK].to(torch.int64)
            chunk = chunk ^ (
                chunk >> 32
            )  # or two signs of float64 that change would leave the sum as it was
            total = (total * 0x9E3779B97F4A7C15 + int((chunk * factors[: len(chunk)]).sum())) % (
                1 << 64
            )
    return digest(total)


def _factors(count: int) -> Tensor:
    """Odd numbers, as good as random (the finalizer of splitmix64, Steele et al. 2014)."""
    x = torch.arange(1, count + 1, dtype=torch.int64, device="cpu") * -0x61C8864680B583EB
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return (x ^ (x >> 31)) | 1


def digest(value: Any) -> int:
    """A number of 56 bits that tells one value from another."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=7).digest(), "little")


def _plain(value: Any) -> Any:
    """Without tensors, whose text leaves digits out."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return [(key, _plain(v)) for key, v in value.items()]
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
