"""Checks of all that users may get wrong.

Every error says the same four things: the argument, the rule, the value got, and the way out.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import KINDS
from dopaminergic.noise.reference import MAX_DIRECTIONS
from dopaminergic.plain import as_float, brief, number_of, plain

Range = dict[str, float]

# The ranges of settings, the same in all rules. They hold where a constructor is given the
# settings, and where a state is loaded.
RANGES: dict[str, Range] = {
    "loss_floor": {},
    "cap": {"above": 0},
    "beta": {"at_least": 0, "below": 1},
    "tau": {"above": 0, "below": 1},
    "kappa": {"at_least": 0},
    "damping": {"above": 0},
    "memory": {"above": 0},
}
FLAGS = ("batched", "two_sided", "automatic")
# The dtypes that perturbed weights may have.
PERTURBED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def number(
    rule: str,
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
) -> float:
    """The number as a float, in the form of any library.

    Raises unless `value` is a finite real number in the range.
    """
    found = number_of(value)
    if found is None:
        raise TypeError(f"{rule}: {name} must be a number, got {brief(value)}")
    x = as_float(found)
    if not (math.isfinite(x) and x > above and x >= at_least and x < below):
        bounds = [f"> {above:g}"] * (above > -math.inf) + [f">= {at_least:g}"] * (
            at_least > -math.inf
        )
        bounds += [f"< {below:g}"] * (below < math.inf)
        raise ValueError(
            f"{rule}: {name} must be finite{''.join(f' and {b}' for b in bounds)}, got "
            f"{brief(value)}"
        )
    return x


def flag(rule: str, name: str, value: Any) -> bool:
    """The bool; raise unless `value` is one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{rule}: {name} must be True or False, got {brief(value)}")
    return bool(value)


def directions(rule: str, value: Any) -> int:
    """The number of directions; raise unless `value` is a possible one."""
    found = number_of(value)
    if not isinstance(found, int):
        raise TypeError(f"{rule}: directions must be an int, got {brief(value)}")
    if not 1 <= found < MAX_DIRECTIONS:
        raise ValueError(
            f"{rule}: directions must be >= 1 and < {MAX_DIRECTIONS}, got {brief(found)}; 1 is the "
            "plain method"
        )
    return found


def noise(rule: str, value: Any) -> str:
    """The kind of noise; raise unless `value` names one."""
    if not isinstance(value, str) or value not in KINDS:
        raise ValueError(
            f"{rule}: noise must be one of {', '.join(map(repr, KINDS))}, got {brief(value)}"
        )
    return KINDS[KINDS.index(value)]


def settings(rule: str, given: dict[str, Any]) -> dict[str, Any]:
    """All settings in plain form; raise unless each is in its range.

    The settings that a user's own rule adds are not known, and pass.
    """
    known = {"directions": directions, "noise": noise, "seed": seeds}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in known:
            found[name] = known[name](rule, value)
        elif name in FLAGS:
            found[name] = flag(rule, name, value)
        elif name in RANGES:
            found[name] = number(rule, name, value, **RANGES[name])
        else:
            found[name] = plain(value)
    if "memory" in found:
        found["memory"] = min(max(1, int(found["memory"])), 1 << 62)
    return found


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
        _has_memory(rule, f"parameter {i}", p)
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


def usual_rate(rule: str, groups: Iterable[dict[str, Any]], default: float) -> None:
    """Warn where a dimensionless learning rate is of the size that other optimizers take.

    A rate of 0 freezes a group on purpose; a fleet's may sweep over rates, so its largest counts.
    """
    rates = [settings["lr"] for settings in groups]
    found = [float(rate.max()) if isinstance(rate, Tensor) else float(rate) for rate in rates]
    small = [rate for rate in found if 0.0 < rate < default / 100.0]
    if small:
        warnings.warn(
            f"{rule}: lr={small[0]:g} is below a hundredth of its default {default:g}; here lr is "
            "a factor on a step "
            "that the rule finds by itself, not a rate of gradient descent: leave it out, or take "
            "about "
            f"{default:g}",
            RuntimeWarning,
            stacklevel=levels_up(),
        )


def seeds(rule: str, value: Any) -> int | list[int]:
    """Return the seed, or a fleet's seeds as a list; raise unless they are ints in [0, 2^63)."""
    single = number_of(value)
    if single is None and (
        isinstance(value, bool | np.bool_ | str | bytes | dict | set) or not _is_sequence(value)
    ):
        raise TypeError(f"{rule}: seed must be an int or a sequence of ints, got {brief(value)}")
    fleet = [single] if single is not None else [number_of(seed) for seed in value]
    if not fleet:
        raise ValueError(f"{rule}: seed is an empty sequence; give one seed for each replica")
    for seed in fleet:
        if not isinstance(seed, int):
            raise TypeError(
                f"{rule}: seed must be an int or a sequence of ints, got {brief(value)}"
            )
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"{rule}: seed must be in [0, 2^63), got {brief(seed)}")
    found: Any = fleet[0] if single is not None else fleet
    return found


def _is_sequence(value: Any) -> bool:
    return (
        isinstance(value, Iterable)
        and getattr(value, "ndim", 1) == 1
        and not getattr(value, "is_meta", False)
    )


def usable(lr: Any, sigma: Any, weight_decay: Any) -> bool:
    """Whether these are plain numbers that a step may use.

    This is the short way past `rates`, for each step of one model.
    """
    return 0.0 <= lr < math.inf and 0.0 < sigma < math.inf and 0.0 <= weight_decay < math.inf


def rates(rule: str, group: dict[str, Any], replicas: int | None) -> dict[str, Any]:
    """The `lr`, `sigma` and `weight_decay` of a group in plain form.

    Raises unless a step may use them.
    """
    for name in ("lr", "sigma", "weight_decay"):
        if name not in group:
            raise ValueError(
                f"{rule}: a parameter group lacks {name}; give it, or make the group anew"
            )
    return {
        "lr": _learning_rate(rule, group["lr"], replicas),
        "sigma": number(rule, "sigma", group["sigma"], above=0),
        "weight_decay": number(rule, "weight_decay", group["weight_decay"], at_least=0),
    }


def _learning_rate(rule: str, lr: Any, replicas: int | None) -> float | Tensor:
    if isinstance(lr, np.ndarray) and lr.ndim > 0 and lr.dtype.kind in "iuf":
        lr = torch.from_numpy(lr.astype(np.float64))
    if not isinstance(lr, Tensor) or lr.ndim == 0 or lr.is_meta:
        return number(rule, "lr", lr, at_least=0)
    for rate in lr.flatten().tolist():
        number(rule, "lr", rate, at_least=0)
    if lr.shape != (replicas,):
        fits = "a float" if replicas is None else f"a float or a tensor of shape ({replicas},)"
        raise ValueError(f"{rule}: lr must be {fits}, got a tensor of shape {tuple(lr.shape)}")
    if lr.device.type == "cpu" and lr.is_floating_point() and not lr.requires_grad:
        return lr  # the very tensor, which its owner may write to
    return lr.detach().cpu().to(torch.float64)


def group(rule: str, settings: dict[str, Any], replicas: int | None) -> None:
    """Make the numbers of a parameter group plain; raise unless it can be perturbed.

    `replicas` is None for one model.
    """
    settings.update(rates(rule, settings, replicas))
    names = settings.get("param_names", [])
    for i, p in enumerate(settings["params"]):
        place = f"parameter {i} ({names[i]!r})" if i < len(names) else f"parameter {i}"
        _has_memory(rule, place, p)
        if p.requires_grad:
            perturbable(rule, place, p, replicas)


def thawed(rule: str, groups: Iterable[dict[str, Any]], replicas: int | None) -> None:
    """Raise unless all parameters that are trainable now can be perturbed.

    This includes those that were frozen before.
    """
    for settings in groups:
        for i, p in enumerate(settings["params"]):
            if p.requires_grad:
                perturbable(rule, f"parameter {i}", p, replicas)


def _has_memory(rule: str, place: str, p: Tensor) -> None:
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


def levels_up() -> int:
    """The `stacklevel` by which the caller's warning names the user's line that led to it."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("dopaminergic.", "torch.")
    ):
        level = level + 1
        frame = frame.f_back
    return level


def explain(rule: str, error: BaseException, closure: Any) -> None:
    """Raise our own sentence for an error of Python or torch that helps nobody.

    Args:
        rule: the optimizer's name.
        error: raised in the step, whose weights are restored.
        closure: the one that the step was given.
    """
    if closure is not None and not callable(closure):
        raise TypeError(
            f"{rule}: the closure must be a function that computes the loss, got {brief(closure)}; "
            "pass "
            "opt.step(lambda: loss_of(model(x), y)), for it is called once for each forward pass"
        ) from error
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        raise RuntimeError(
            f"{rule}: the closure asked for gradients, with backward() or autograd.grad, and there "
            "are none in a step; "
            "return the loss and leave backward() out. If the loss itself needs derivatives, "
            "compute them under "
            "torch.enable_grad()"
        ) from error
