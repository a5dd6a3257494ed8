"""The numbers of a rule in a saved state: each where the rule could have come to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.plain import is_list, number_of

Bounds = dict[str, tuple[float, float]]
_SIZE = (0.0, math.inf)
_SHARE = (0.0, 1.0 + 1e-9)
_DOUBT = (1.0 - 1e-9, math.inf)

# The ranges of a rule's state besides finite, by the name of its class.
BOUNDS: dict[str, Bounds] = {
    "DopamineState": {"root": _SIZE, "size": _SIZE, "trials": _SHARE, "doubt": _DOUBT},
    "Dopamine2State": {
        "root": _SIZE,
        "size": _SIZE,
        "trials": _SHARE,
        "doubt": _DOUBT,
        "actual": _SIZE,
        "promised": _SIZE,
        "comparisons": _SHARE,
        "expected": _SIZE,
        "gain": (1e-3, 1e3),
    },
    "NodeState": {"damping": (1e-300, math.inf), "updates": _SIZE},
    "VectorState": {
        "damping": (1e-300, math.inf),
        "gain": _SHARE,
        "curvature": _SIZE,
        "actual": _SIZE,
        "promised": _SIZE,
        "comparisons": _SHARE,
        "expected": _SIZE,
        "gap": _SIZE,
        "reach": (1.0, 2.0**17),
    },
}
# Times its root mean square, that a mean regret may be; once at most, but for how a rule weighs
# outliers.
UNEVEN = 10.0


def numbers(place: str, saved: Any, start: Any) -> list[Any] | None:
    """The rule's state: finite, and each number where it may be."""
    if start is None:
        if saved is not None:
            checks.refuse(place, "rule", "None, for this rule has no state", saved)
        return None
    fields: Any = getattr(start, "_fields", range(len(start)))
    if not is_list(saved) or len(saved) != len(start):
        checks.refuse(place, "rule", f"a list of {len(start)} numbers", saved)
    bounds = BOUNDS.get(type(start).__name__, {})
    found = []
    for name, value, first in zip(fields, saved, start, strict=True):
        low, high = bounds.get(name, (-math.inf, math.inf))
        entry, entries = _entry(
            place, f"rule {name}", value, None if isinstance(first, float) else first.shape
        )
        if not all(math.isfinite(x) and low <= x <= high for x in entries):
            within = "" if (low, high) == (-math.inf, math.inf) else f" in [{low:g}, {high:g}]"
            checks.refuse(place, f"rule {name}", f"finite{within}", value)
        found.append(entry)
    _even(place, dict(zip(fields, found, strict=True)))
    return found


def _entry(place: str, name: str, value: Any, shape: Any) -> tuple[Any, list[float]]:
    """One number of a rule, a float or a tensor on the CPU, and its entries as a list."""
    if shape is None:
        number = None if isinstance(value, Tensor) and value.ndim else number_of(value)
        if number is None:
            checks.refuse(place, name, "a number", value)
        return float(number or 0.0), [float(number or 0.0)]
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.dtype != torch.float64
        or value.is_meta
    ):
        checks.refuse(place, name, f"a float64 tensor of shape {tuple(shape)}", value)
    entry = value.detach().cpu().clone()
    return entry, entry.tolist()


def _even(place: str, rule: dict[Any, Any]) -> None:
    """Refuse a mean of regrets that is larger than their root mean square.

    Weights would be thrown far if the mean were divided by it.
    """
    if not {"regret", "root", "trials"} <= rule.keys():
        return
    regret, root, trials = (
        torch.as_tensor(rule[name], dtype=torch.float64, device="cpu")
        for name in ("regret", "root", "trials")
    )
    if bool((regret.abs() > UNEVEN * root * trials.sqrt() + 1e-150 * trials).any()):
        checks.refuse(
            place,
            "rule regret",
            "a mean of what rule root is the root mean square of",
            rule["regret"],
        )
