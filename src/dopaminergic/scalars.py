"""Arithmetic that a rule may use, the same for one model and for a fleet.

A rule is a pure function of losses. One model hands it Python floats, since a dozen tensor operations on single numbers
would cost as much as a small network's forward pass; a fleet of R replicas hands it float64 tensors of shape `(R,)`.
Floats are asked for first, since to ask whether a number is a tensor takes longer than the sum it is needed for.
Sums, products and these functions give the same bits for both, so a fleet's replica equals the single run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# One number, or one for each replica. Typed loosely: operators between the two forms are what the rules are made of.
Scalar = Any
absolute = abs  # which serves both forms
__all__ = ["Scalar", "absolute", "clip", "exp", "finite", "mean", "select", "sqrt"]


def mean(values: list[Scalar]) -> Scalar:
    """Mean over directions."""
    return values[0] if len(values) == 1 else sum(values[1:], values[0]) / len(values)


def sqrt(x: Scalar) -> Scalar:
    """Square root; numpy's for a fleet, since torch's is not always the nearest number."""
    return math.sqrt(x) if isinstance(x, float) else torch.from_numpy(np.sqrt(x.numpy()))


def exp(x: Scalar) -> Scalar:
    """Exponential; numpy's for both forms, because torch's and the C library's differ in the last bit."""
    if isinstance(x, float):
        return float(np.exp(x))
    return torch.from_numpy(np.exp(x.numpy()))


def clip(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """The nearest number to `x` in [low, high]."""
    if isinstance(x, float) or not isinstance(x, Tensor):
        return low if x < low else high if x > high else x
    return x.clamp(torch.as_tensor(low, dtype=x.dtype), torch.as_tensor(high, dtype=x.dtype))


def finite(x: Scalar) -> Scalar:
    """Whether each number is neither infinite nor NaN: a bool, or a bool tensor of shape `(R,)`."""
    return math.isfinite(x) if isinstance(x, float) or not isinstance(x, Tensor) else torch.isfinite(x)


def select(condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, bool) or not isinstance(condition, Tensor):
        return yes if condition else no
    # Two plain numbers would make a float32 tensor.
    return torch.where(condition, *(torch.as_tensor(x, dtype=torch.float64) for x in (yes, no)))
