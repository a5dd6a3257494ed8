"""The tensors that a journal is about: found in a model or a file, compared, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dopaminergic.files import open_file, shown
from dopaminergic.journal.format import JournalError
from dopaminergic.journal.reading import Contents

Parameters = nn.Module | Iterable[Any] | dict[str, Tensor]


def digest(parameters: Sequence[Tensor]) -> str:
    """SHA-256 of the elements of all tensors, in order, as little-endian bytes."""
    hashed = hashlib.sha256()
    for p in parameters:
        hashed.update(p.detach().to("cpu").reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def load(path: Path) -> dict[str, Tensor]:
    """The `state_dict` in a file that `torch.save` wrote; a file from others can run no code."""
    try:
        with open_file(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise JournalError(
            f"{path} cannot be loaded ({type(error).__name__}); torch.save a state_dict there"
        ) from error
    if not isinstance(state, dict):
        raise JournalError(f"{path} holds a {type(state).__name__}; torch.save a state_dict there")
    return state


def matched(model: Parameters, contents: Contents) -> list[Tensor]:
    """The tensors that the journal is about, in its order.

    Raises if the model has no such tensors.
    """
    wanted = max((header.parameters for header in contents.headers), key=len)
    named, listed = _tensors(model)
    names = [p.get("name") for p in wanted]
    if named is not None and all(name in named for name in names):
        found = [named[str(name)] for name in names]
    elif isinstance(model, dict) and named is not None:
        found = _subsequence(list(named.values()), wanted)
    else:
        found = listed
    if len(found) != len(wanted):
        raise JournalError(
            f"{contents.path} is about {len(wanted)} parameters, but {len(found)} were given that "
            "could be these; pass "
            "what the optimizer was given, such as model.head.parameters(), in the same order"
        )
    for i, (p, w) in enumerate(zip(found, wanted, strict=True)):
        if not _has_memory(p):
            raise JournalError(
                f"{contents.path}: parameter {_name(w, i)} is a meta, sparse, nested or expanded "
                "tensor, which has no "
                "memory for each of its entries; give a dense one, such as p.clone()"
            )
        if not fits(p, w):
            raise JournalError(
                f"{contents.path}: parameter {_name(w, i)} was {shown(w['dtype'], 20)} of shape "
                f"{str(w['shape'])[:60]}, that given is {dtype_name(p)} of shape {list(p.shape)}; "
                "build the same model, "
                "and pass its parameters in the same order (an optimizer over "
                "model.named_parameters() writes names, "
                "and the order does not matter then)"
            )
    return found


def _tensors(model: Parameters) -> tuple[dict[str, Tensor] | None, list[Tensor]]:
    if isinstance(model, nn.Module):
        return dict(model.named_parameters(remove_duplicate=False)), list(model.parameters())
    if isinstance(model, dict):
        return {str(name): x for name, x in model.items() if isinstance(x, Tensor)}, []
    flat: list[Any] = []
    for each in model:
        flat += list(each["params"]) if isinstance(each, dict) else [each]
    flat = [each[1] if isinstance(each, tuple) else each for each in flat]
    if not all(isinstance(each, Tensor) for each in flat):
        raise JournalError("pass a model, its parameters, or a dict of tensors")
    return None, flat


def _subsequence(tensors: list[Tensor], wanted: list[dict[str, Any]]) -> list[Tensor]:
    """The first tensors that fit, in order: a state_dict holds buffers between the parameters."""
    found: list[Tensor] = []
    for tensor in tensors:
        if len(found) < len(wanted) and fits(tensor, wanted[len(found)]):
            found.append(tensor)
    return found


def _name(wanted: dict[str, Any], index: int) -> str:
    return shown(str(wanted.get("name") or index), 60)


def _has_memory(p: Tensor) -> bool:
    """Whether the entries of a tensor can be read and written one by one."""
    if p.is_meta or p.is_nested or p.layout != torch.strided:
        return False
    return all(stride or size < 2 for stride, size in zip(p.stride(), p.shape, strict=True))


def fits(p: Tensor, wanted: dict[str, Any]) -> bool:
    """Whether a tensor has the shape and dtype of a parameter in a header."""
    return not p.is_nested and list(p.shape) == wanted["shape"] and dtype_name(p) == wanted["dtype"]


def dtype_name(p: Tensor) -> str:
    """For example `"float32"`."""
    return str(p.dtype).removeprefix("torch.")
