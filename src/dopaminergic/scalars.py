"""Arithmetic that a rule may use, the same for one model and for a fleet.

A rule is a pure function of losses. One model hands it Python floats, since a dozen tensor
operations on single numbers would cost as much as a small network's forward pass. A fleet of R
replicas hands it float64 arrays of shape `(R,)`. They are numpy's, whose operations cost a fifth of
torch's at this size. `clip`, `finite` and `select` take tensors as well. All take the arrays of
JAX, or of any library that keeps to the array API standard.

Floats are asked for first, since to ask whether a number is an array takes longer than the sum it
is needed for. Sums, products and these functions give the same bits for both, so a fleet's replica
equals the single run.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# One number, or one for each replica. Typed loosely, since rules are made of operators between the
# two forms.
Scalar = Any
absolute = abs  # which serves both forms
TINY = 1e-300  # keeps a quotient of zeros at zero, see `tiny`


def as_array(x: Scalar) -> Scalar:
    """The value as a rule computes with it: a tensor's memory as an array, others as they are."""
    return x.detach().numpy() if isinstance(x, Tensor) else x


def as_tensor(x: Scalar) -> Scalar:
    """The value as users are given it: an array's memory as a tensor, others as they are."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def mean(values: list[Scalar]) -> Scalar:
    """Mean over directions."""
    return values[0] if len(values) == 1 else total(values) / len(values)


def total(values: Iterable[Scalar]) -> Scalar:
    """Sum, one after the other.

    Python's `sum` corrects the rounding of floats from 3.12 on, and never that of arrays.
    """
    return functools.reduce(operator.add, values)


def sqrt(x: Scalar) -> Scalar:
    """Square root."""
    return math.sqrt(x) if isinstance(x, float) else _functions(x).sqrt(x)


def exp(x: Scalar) -> Scalar:
    """Exponential; numpy's for both forms, because the C library's differs in the last bit."""
    return float(np.exp(x)) if isinstance(x, float) else _functions(x).exp(x)


def tiny(x: Scalar) -> float:
    """A number to add to a divisor so that 0 / 0 is 0.

    Next to any other number of the precision of `x` it is nothing.
    """
    if isinstance(x, float):
        return TINY
    return _functions(x).finfo(x.dtype).smallest_normal if _is_of_jax(x) else TINY


def clip(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """The nearest number to `x` in [low, high]."""
    if isinstance(x, float):
        return low if x < low else high if x > high else x
    if isinstance(x, np.ndarray):
        return np.minimum(np.maximum(x, low), high)
    if isinstance(x, Tensor):
        return x.clamp(
            *(torch.as_tensor(limit, dtype=x.dtype, device=x.device) for limit in (low, high))
        )
    if _is_of_jax(x):
        return _functions(x).minimum(_functions(x).maximum(x, low), high)
    return low if x < low else high if x > high else x


def finite(x: Scalar) -> Scalar:
    """Whether each number is neither infinite nor NaN: a bool, or bools of shape `(R,)`."""
    if isinstance(x, float):
        return math.isfinite(x)
    if isinstance(x, np.ndarray):
        return np.isfinite(x)
    if isinstance(x, Tensor):
        return torch.isfinite(x)
    return _functions(x).isfinite(x) if _is_of_jax(x) else math.isfinite(x)


def select(condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, bool):
        return yes if condition else no
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    if isinstance(condition, Tensor):  # two plain numbers would make a float32 tensor
        device = condition.device
        return torch.where(
            condition, *(torch.as_tensor(x, dtype=torch.float64, device=device) for x in (yes, no))
        )
    if _is_of_jax(condition):
        return _functions(condition).where(condition, yes, no)
    return yes if condition else no


def _is_of_jax(x: Scalar) -> bool:
    return hasattr(x, "__array_namespace__") and not isinstance(x, np.ndarray | np.generic)


def _functions(x: Scalar) -> Any:
    """Numpy's, or those of the library that an array belongs to."""
    return x.__array_namespace__() if _is_of_jax(x) else np
