"""Whether a value that was read from a file is built like one that this process made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dopaminergic.files import shown


def difference(theirs: Any, own: Any, name: str = "") -> str:
    """The first place where two values are not built alike, in words; "" if there is none.

    Dicts must have the same keys, lists the same length, tensors the same shape and dtype, and all
    else must be equal.

    Args:
        theirs: of a file, so anything.
        own: numbers, strings, None and tensors in dicts, lists and tuples.
        name: of the value, for the words.

    >>> difference({"a": [1, torch.zeros(2)]}, {"a": [1, torch.ones(2)]})
    ''
    >>> difference({"a": [1, torch.zeros(3)]}, {"a": [1, torch.ones(2)]}, "state")
    "state['a'][1] must be a float32 tensor of shape [2]"
    """
    if isinstance(own, Tensor):
        kind = str(own.dtype).removeprefix("torch.")
        return (
            ""
            if is_like(theirs, own)
            else f"{name} must be a {kind} tensor of shape {list(own.shape)}"
        )
    if type(theirs) is not type(own) and not (isinstance(own, dict) and isinstance(theirs, dict)):
        return f"{name} must be a {type(own).__name__}, not a {type(theirs).__name__}"
    if isinstance(own, dict):
        if theirs.keys() != own.keys():
            return f"{name} must have the keys {shown(str(list(own)), 80)}"
        pairs = [(f"{name}[{shown(repr(key), 40)}]", theirs[key], own[key]) for key in own]
    elif isinstance(own, list | tuple):
        if len(theirs) != len(own):
            return f"{name} must have a length of {len(own)}, not {len(theirs)}"
        pairs = [
            (f"{name}[{i}]", each, other)
            for i, (each, other) in enumerate(zip(theirs, own, strict=True))
        ]
    else:
        return "" if theirs == own else f"{name} must be {shown(repr(own), 40)}"
    return next(
        (found for place, each, other in pairs if (found := difference(each, other, place))), ""
    )


def is_like(theirs: Any, own: Tensor) -> bool:
    """Whether a value is a tensor of the shape and dtype of another one.

    Each of its entries must be one that may be written.
    """
    return (
        isinstance(theirs, Tensor)
        and theirs.layout == torch.strided
        and not (theirs.is_meta or theirs.is_nested or theirs.requires_grad)
        and (theirs.dtype, theirs.shape) == (own.dtype, own.shape)
        and (theirs.is_contiguous() or theirs.stride() == own.stride())
    )
