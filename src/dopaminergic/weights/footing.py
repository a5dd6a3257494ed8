"""The ground that a step stands on: the memory of the weights, while code of others runs.

A closure may move weights. For example, it casts the model, or rebinds `p.data`. If it hands
weights to another process, torch moves them to shared memory. Addresses that were looked up before
are then of no use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.weights.sharding import is_sharded, local


class Place(NamedTuple):
    """Where a parameter lay when the step began.

    Attributes:
        parameter: the parameter itself, which may lie elsewhere by now.
        address: of its first element.
        storage: of its memory; kept, so that no other tensor can get the same address.
        size: bytes of the storage.
        sharded: it is a DTensor.
    """

    parameter: Tensor
    address: int
    storage: Any
    size: int
    sharded: bool


def places(parameters: Iterable[Tensor]) -> list[Place]:
    """Where parameters lie now."""
    found = []
    for p in parameters:
        held = local(p)
        storage = held.untyped_storage()
        found.append(Place(p, held.data_ptr(), storage, storage.nbytes(), is_sharded(p)))
    return found


def stand(there: list[Place]) -> bool:
    """Whether all parameters lie where they lay."""
    for parameter, address, storage, size, sharded in there:
        held = local(parameter) if sharded else parameter
        if held.data_ptr() != address or storage.nbytes() != size:
            return False
    return True


def has_memory(t: Tensor) -> bool:
    """Whether every element of a tensor lies within its storage."""
    if t.numel() == 0 or t.is_meta:
        return not t.is_meta
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (t.storage_offset() + last + 1) * t.element_size() <= t.untyped_storage().nbytes()


@torch.no_grad()
def put(p: Tensor, value: Tensor) -> str:
    """Write the weights of before the step to where a parameter lies now.

    Returns:
        "", or why that cannot be done.
    """
    held = local(p)
    if held.shape != value.shape:
        return f"a parameter of shape {tuple(value.shape)} now has shape {tuple(held.shape)}"
    if not has_memory(held):
        return f"a parameter of shape {tuple(value.shape)} has no memory any more"
    held.copy_(value)
    return ""
