"""What users can get wrong, said in one voice: argument, rule, the value got, and the way out."""

from __future__ import annotations

import itertools
import math
import numbers
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dopaminergic.noise import KINDS
from dopaminergic.noise.reference import MAX_DIRECTIONS


def number(
    rule: str, name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    """Raise unless `value` is a finite real number in the range."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{rule}: {name} must be a number, got {value!r}")
    x = float(value)
    if not (math.isfinite(x) and x > above and x >= at_least and x < below):
        bounds = [f"> {above:g}"] * (above > -math.inf) + [f">= {at_least:g}"] * (at_least > -math.inf)
        bounds += [f"< {below:g}"] * (below < math.inf)
        raise ValueError(f"{rule}: {name} must be finite{''.join(f' and {b}' for b in bounds)}, got {value!r}")


def directions(rule: str, value: Any) -> None:
    """Raise unless `value` is a possible number of directions."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{rule}: directions must be an int, got {value!r}")
    if not 1 <= value < MAX_DIRECTIONS:
        raise ValueError(f"{rule}: directions must be >= 1 and < {MAX_DIRECTIONS}, got {value}; 1 is the plain method")


def noise(rule: str, value: Any) -> None:
    """Raise unless `value` names a kind of noise."""
    if value not in KINDS:
        raise ValueError(f"{rule}: noise must be one of {', '.join(map(repr, KINDS))}, got {value!r}")


def parameters(rule: str, params: Any) -> Any:
    """Return the parameters, a list unless torch has an error of its own for them; raise if there are none."""
    if isinstance(params, Tensor):
        return params
    params = _listed(params)
    if not params:
        raise ValueError(f"{rule}: params is empty; pass model.parameters() of a model that has some")
    return params


def _listed(params: Any) -> list[Any]:
    """Parameters that can be looked at more than once: also those of a group may come from a generator."""
    if isinstance(params, Tensor):
        return [params]
    return [{**p, "params": _listed(p["params"])} if isinstance(p, dict) and "params" in p else p for p in params]


def any_16_bits(params: Any) -> bool:
    """Whether any of these parameters, named parameters or groups of either have 16-bit weights."""
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in tensors(params))


def tensors(params: Any) -> list[Tensor]:
    """All tensors among these parameters, named parameters or groups of either."""
    flat = [q for p in _listed(params) for q in (p.get("params", []) if isinstance(p, dict) else [p])]
    bare = [q[1] if isinstance(q, tuple) else q for q in flat]
    return [q for q in bare if isinstance(q, Tensor)]


def usual_rate(rule: str, groups: Iterable[dict[str, Any]], default: float) -> None:
    """Warn where a dimensionless learning rate is of the size that other optimizers take.

    A rate of 0 freezes a group on purpose; a fleet's may sweep over rates, so its largest counts.
    """
    rates = [settings["lr"] for settings in groups]
    found = [float(rate.max()) if isinstance(rate, Tensor) else float(rate) for rate in rates]
    small = [rate for rate in found if 0.0 < rate < default / 100.0]
    if small:
        warnings.warn(
            f"{rule}: lr={small[0]:g} is below a hundredth of its default {default:g}; here lr is a factor on a step "
            "that the rule finds by itself, not a rate of gradient descent: leave it out, or take about "
            f"{default:g}",
            RuntimeWarning,
            stacklevel=levels_up(),
        )


def seeds(rule: str, value: Any) -> int | list[int]:
    """Return the seed, or a fleet's seeds as a list; raise unless they are ints in [0, 2^63)."""
    single = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not single and (isinstance(value, bool | str) or not isinstance(value, Iterable)):
        raise TypeError(f"{rule}: seed must be an int or a sequence of ints, got {value!r}")
    fleet = [value] if isinstance(value, numbers.Integral) else list(value)
    if not fleet:
        raise ValueError(f"{rule}: seed is an empty sequence; give one seed for each replica")
    for seed in fleet:
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
            raise TypeError(f"{rule}: seed must be an int or a sequence of ints, got {value!r}")
        if not 0 <= int(seed) < 1 << 63:
            raise ValueError(f"{rule}: seed must be in [0, 2^63), got {seed}")
    return int(fleet[0]) if single else [int(seed) for seed in fleet]


def group(rule: str, settings: dict[str, Any], replicas: int | None) -> None:
    """Raise unless a parameter group can be perturbed; `replicas` is None for a single model."""
    lr = settings["lr"]
    for rate in lr.flatten().tolist() if isinstance(lr, Tensor) else [lr]:
        number(rule, "lr", rate, at_least=0)
    number(rule, "sigma", settings["sigma"], above=0)
    number(rule, "weight_decay", settings["weight_decay"], at_least=0)
    if isinstance(lr, Tensor) and lr.shape != (replicas,):
        fits = "a float" if replicas is None else f"a float or a tensor of shape ({replicas},)"
        raise ValueError(f"{rule}: lr must be {fits}, got a tensor of shape {tuple(lr.shape)}")
    for i, p in enumerate(settings["params"]):
        if not p.is_floating_point():
            raise TypeError(
                f"{rule}: parameter {i} (shape {tuple(p.shape)}) has dtype {p.dtype}, which cannot be perturbed; "
                "leave it out: [p for p in model.parameters() if p.is_floating_point()]"
            )
        if replicas is not None and (p.ndim == 0 or p.shape[0] != replicas):
            raise ValueError(
                f"{rule}: with {replicas} seeds every parameter needs a first dimension of {replicas}, one entry for "
                f"each replica, but parameter {i} has shape {tuple(p.shape)}; stack the replicas, or give a single seed"
            )


def apart(rule: str, groups: Iterable[dict[str, Any]]) -> None:
    """Raise where weights share memory: each would be perturbed and updated as often as it is listed.

    Parameters are compared by the stretch of memory from their first to their last element, so that two which
    interleave without an element in common are refused too.
    """
    stretches = []
    for i, p in enumerate(p for settings in groups for p in settings["params"]):
        if type(p) not in (Tensor, torch.nn.Parameter) or p.numel() == 0 or p.data_ptr() == 0:
            continue  # shards and the like have no memory that could be compared
        if any(stride == 0 and size > 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise ValueError(f"{rule}: elements of parameter {i} share memory (an expanded tensor); give it .clone()")
        last = sum((size - 1) * abs(stride) for size, stride in zip(p.shape, p.stride(), strict=True))
        first = p.data_ptr()
        stretches.append((p.device.type, p.device.index or 0, first, first + (last + 1) * p.element_size(), i))
    stretches.sort()
    for (kind, index, _, end, i), (other_kind, other_index, start, _, j) in itertools.pairwise(stretches):
        if (kind, index) == (other_kind, other_index) and start < end:
            raise ValueError(
                f"{rule}: parameters {min(i, j)} and {max(i, j)} share memory, so that weights would be "
                "perturbed twice; list a tied parameter once, and give views a .clone() of their own"
            )


def some_trainable(rule: str, groups: Iterable[dict[str, Any]]) -> None:
    """Raise unless at least one weight may change."""
    parameters = [p for settings in groups for p in settings["params"]]
    if not any(p.requires_grad and p.numel() for p in parameters):
        raise ValueError(
            f"{rule}: params has nothing to train: all {len(parameters)} parameters are frozen or empty; set "
            "requires_grad_(True) on those that may change (no gradient will be computed)"
        )


def state_dict(rule: str, saved: Any, expected: dict[str, Any]) -> None:
    """Raise unless a saved state belongs to an optimizer like this one."""
    if not isinstance(saved, dict) or "forward" not in saved:
        has = list(saved) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(
            f"{rule}: this state_dict does not come from a forward-only optimizer (its keys are {has}); pass what "
            f"{rule}.state_dict() returned"
        )
    for key, what in (("optimizer", "optimizer"), ("shapes", "parameter shapes"), ("dtypes", "parameter dtypes")):
        if key not in saved["forward"]:
            raise ValueError(f"{rule}: the state_dict is damaged, it lacks the {what}; save it again")
        if saved["forward"][key] != expected[key]:
            raise ValueError(
                f"{rule}: the state_dict is of another {what}: it has {_short(saved['forward'][key])}, this one has "
                f"{_short(expected[key])}; build the same model and optimizer first"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def levels_up() -> int:
    """The `stacklevel` by which the caller's warning names the line of the user that led to it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("dopaminergic.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level
