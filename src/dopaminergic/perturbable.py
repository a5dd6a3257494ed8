"""Checks of parameters: whether there are some, and whether each can be perturbed.

Every error says the same four things as those of `checks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dopaminergic.plain import brief

# The dtypes that perturbed weights may have.
PERTURBED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def parameters(rule: str, params: Any) -> Any:
    """Return the parameters; raise if there are none.

    They come as a list, unless torch has an error of its own for them.
    """
    if isinstance(params, Tensor):
        return params
    if isinstance(params, torch.nn.Module | dict) or not isinstance(params, Iterable):
        raise TypeError(
            f"{rule}: params must be an iterable of parameters, got {type(params).__name__}; pass "
            "model.parameters(), "
            "model.named_parameters(), or a list of groups"
        )
    params = _listed(params)
    if not params:
        raise ValueError(
            f"{rule}: params is empty; pass model.parameters() of a model that has some"
        )
    for i, p in enumerate(tensors(params)):
        has_memory(rule, f"parameter {i}", p)
    return params


def _listed(params: Any) -> list[Any]:
    """Parameters that can be looked at more than once.

    Those of a group, too, may come from a generator.
    """
    if isinstance(params, Tensor):
        return [params]
    return [
        {**p, "params": _listed(p["params"])} if isinstance(p, dict) and "params" in p else p
        for p in params
    ]


def any_16_bits(params: Any) -> bool:
    """Whether any of these parameters has 16-bit weights.

    They may be named parameters, or groups of either.
    """
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in tensors(params))


def tensors(params: Any) -> list[Tensor]:
    """All tensors among these parameters, named parameters or groups of either."""
    flat = [
        q for p in _listed(params) for q in (p.get("params", []) if isinstance(p, dict) else [p])
    ]
    bare = [q[1] if isinstance(q, tuple) else q for q in flat]
    return [q for q in bare if isinstance(q, Tensor)]


def thawed(rule: str, groups: Iterable[dict[str, Any]], replicas: int | None) -> None:
    """Raise unless all parameters that are trainable now can be perturbed.

    This includes those that were frozen before.
    """
    for settings in groups:
        for i, p in enumerate(settings["params"]):
            if p.requires_grad:
                perturbable(rule, f"parameter {i}", p, replicas)


def has_memory(rule: str, place: str, p: Tensor) -> None:
    """Raise unless it is strided.

    Frozen parameters must be strided too, since their memory is looked at in each step.
    """
    if torch.nn.parameter.is_lazy(p):
        raise ValueError(
            f"{rule}: {place} is not initialized yet (of a lazy layer); run one forward pass of "
            "the model first, "
            "model(x) say, and then make the optimizer"
        )
    if p.layout != torch.strided or p.is_nested:
        kind = "nested" if p.is_nested else str(p.layout).removeprefix("torch.")
        raise TypeError(
            f"{rule}: {place} is a {kind} tensor, whose entries have no place of their own; pass a "
            "dense one "
            "(p.to_dense()), or leave it out of params if it is frozen"
        )


def perturbable(rule: str, place: str, p: Tensor, replicas: int | None) -> None:
    """Raise unless this trainable parameter can be perturbed."""
    shape = tuple(p.shape)
    if p.dtype not in PERTURBED:
        kind = str(p.dtype).removeprefix("torch.")
        way = "freeze it, or leave it out: [p for p in model.parameters() if p.is_floating_point()]"
        if p.is_complex():
            way = (
                "make its real view the parameter: "
                "nn.Parameter(torch.view_as_real(p.detach()).clone())"
            )
        elif p.is_floating_point():
            way = (
                "an update is far below its resolution; "
                "train it as p.to(torch.bfloat16), or freeze it"
            )
        raise TypeError(
            f"{rule}: {place} (shape {shape}) has dtype {kind}, which cannot be perturbed; {way}"
        )
    if p.is_meta:
        raise ValueError(
            f"{rule}: {place} (shape {shape}) is on the meta device, where it has no memory; call "
            "model.to_empty(device='cpu'), give it weights, and then make the optimizer"
        )
    if replicas is not None and (p.ndim == 0 or p.shape[0] != replicas):
        raise ValueError(
            f"{rule}: with {replicas} seeds every trainable parameter needs a first dimension of "
            f"{replicas}, one entry "
            f"for each replica, but {place} has shape {shape}; stack the replicas, or give a "
            "single seed"
        )


def apart(rule: str, groups: Iterable[dict[str, Any]]) -> None:
    """Raise where weights share memory.

    Each would be perturbed and updated as often as it is listed. Parameters are compared by the
    stretch of memory from their first to their last element. So two that interleave without an
    element in common are refused too.
    """
    stretches = []
    for i, p in enumerate(p for settings in groups for p in settings["params"]):
        if p.dtype not in PERTURBED:
            continue  # nobody writes to it
        if type(p) not in (Tensor, torch.nn.Parameter) or p.numel() == 0 or p.data_ptr() == 0:
            continue  # shards and the like have no memory that could be compared
        if any(stride == 0 and size > 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise ValueError(
                f"{rule}: elements of parameter {i} share memory (an expanded tensor); give it "
                ".clone()"
            )
        last = sum(
            (size - 1) * abs(stride) for size, stride in zip(p.shape, p.stride(), strict=True)
        )
        first = p.data_ptr()
        stretches.append(
            (p.device.type, p.device.index or 0, first, first + (last + 1) * p.element_size(), i)
        )
    stretches.sort()
    for (kind, index, _, end, i), (other_kind, other_index, start, _, j) in itertools.pairwise(
        stretches
    ):
        if (kind, index) == (other_kind, other_index) and start < end:
            raise ValueError(
                f"{rule}: parameters {min(i, j)} and {max(i, j)} share memory, so that weights "
                "would be "
                "perturbed twice; list a tied parameter once, and give views a .clone() of their "
                "own"
            )


def some_trainable(rule: str, groups: Iterable[dict[str, Any]]) -> None:
    """Raise unless at least one weight may change."""
    parameters = [p for settings in groups for p in settings["params"]]
    if not any(p.requires_grad and p.numel() for p in parameters):
        if parameters and not any(p.dtype in PERTURBED for p in parameters):
            kinds = brief(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
            raise TypeError(
                f"{rule}: params has nothing to train: all {len(parameters)} parameters are of "
                f"dtypes {kinds}, which "
                "cannot be perturbed; pass floating-point weights, of a complex one its "
                "torch.view_as_real"
            )
        raise ValueError(
            f"{rule}: params has nothing to train: all {len(parameters)} parameters are frozen or "
            "empty; set "
            "requires_grad_(True) on those that may change (no gradient will be computed)"
        )
