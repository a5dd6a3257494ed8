"""Functions of a weight alone that are weights too: multiples of it, copies, and masked ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dopaminergic.activities.nodes import Weight
    from dopaminergic.activities.tape import Tape

aten: Any = torch.ops.aten


def _number(factor: Callable[[float], float]) -> Callable[[Any, Any], float | None]:
    """The factor on a weight that an operation with a number makes; None with a tensor."""

    def read(args: Any, kwargs: Any) -> float | None:
        return None if isinstance(args[1], Tensor) else factor(args[1])

    return read


# Operations on a weight alone whose result is a multiple of it, plus a constant.
AFFINE: dict[Any, Callable[[Any, Any], float | None]] = {
    aten.mul.Tensor: _number(float),
    aten.div.Tensor: _number(lambda x: 1.0 / x),
    aten.add.Tensor: _number(lambda x: 1.0),
    aten.sub.Tensor: _number(lambda x: 1.0),
    aten.rsub.Scalar: lambda args, kwargs: -float(args[2] if len(args) > 2 else 1),
    aten.neg.default: lambda args, kwargs: -1.0,
    aten.clone.default: lambda args, kwargs: 1.0,
    aten._to_copy.default: lambda args, kwargs: 1.0,
}


def affine(tape: Tape, func: Any, args: Any, kwargs: Any) -> tuple[Weight, Any] | None:
    """The weight that an operation makes a multiple of, and the factor; None if it does not.

    A tensor as large as the weight is a mask, as in a pruned network, unless it is known as an
    activity: `w * mask` has no place for samples.
    """
    read = AFFINE.get(func)
    weight = None if read is None else tape.weight(args[0])
    factor = None if read is None or weight is None else read(args, kwargs)
    if weight is not None and factor is not None:
        return weight, factor
    for i in (0, 1) if func is aten.mul.Tensor else ():
        mask = args[1 - i]
        weight = tape.weight(args[i])
        if weight is None or not isinstance(mask, Tensor) or (mask.ndim and args[i].ndim < 2):
            continue
        if tape.is_constant(mask) and torch.broadcast_shapes(mask.shape, args[i].shape) == (
            args[i].shape
        ):
            return weight, mask.detach()
    return None
