"""Checks of all that users may get wrong.

Every error says the same four things: the argument, the rule, the value got, and the way out.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dopaminergic.noise import KINDS
from dopaminergic.noise.reference import MAX_DIRECTIONS
from dopaminergic.perturbable import (
    any_16_bits,
    apart,
    has_memory,
    parameters,
    perturbable,
    some_trainable,
    tensors,
    thawed,
)
from dopaminergic.plain import as_float, brief, number_of, plain

__all__ = [
    "FLAGS",
    "RANGES",
    "any_16_bits",
    "apart",
    "directions",
    "explain",
    "flag",
    "group",
    "levels_up",
    "noise",
    "number",
    "parameters",
    "rates",
    "refuse",
    "seeds",
    "settings",
    "some_trainable",
    "tensors",
    "thawed",
    "usable",
    "usual_rate",
]

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
    "patience": {"above": 0},
}
FLAGS = ("batched", "two_sided", "automatic")


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


def span(rule: str, value: Any) -> int:
    """The number of time steps; raise unless `value` is a possible one."""
    found = number_of(value)
    if not isinstance(found, int):
        raise TypeError(f"{rule}: span must be an int, got {brief(value)}")
    if not 1 <= found < 1 << 20:
        raise ValueError(f"{rule}: span must be >= 1 and < {1 << 20}, got {brief(found)}")
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
    known = {"directions": directions, "noise": noise, "seed": seeds, "span": span}
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
        has_memory(rule, place, p)
        if p.requires_grad:
            perturbable(rule, place, p, replicas)


def refuse(place: str, name: str, wanted: str, value: Any) -> NoReturn:
    """Raise: a value of a saved state is not as it must be."""
    raise ValueError(
        f"{place}: {name} must be {wanted}, got {brief(value)}; the state is damaged, load another "
        "copy"
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
    if isinstance(error, StopIteration):
        warnings.warn(
            f"{rule}: an iterator ended within the closure, which is called once for each forward "
            "pass; if it takes a new batch at each call, losses of different batches are compared: "
            "take the batch before the step, and let the closure use it",
            RuntimeWarning,
            stacklevel=levels_up(),
        )
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        raise RuntimeError(
            f"{rule}: the closure asked for gradients, with backward() or autograd.grad, and there "
            "are none in a step; "
            "return the loss and leave backward() out. If the loss itself needs derivatives, "
            "compute them under "
            "torch.enable_grad()"
        ) from error
