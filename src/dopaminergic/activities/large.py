"""Steps for large matrices, which are made part by part while they are written.

    dW = v'e,    v: (n, rows),  e: (n, columns),  n few samples

The factors of such an estimate are smaller than itself. So neither the estimate nor the step is
ever there as a whole, and training needs little more memory than inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dopaminergic.activities.eigen import MOST_SIZES, basis_of, bounded, mean_squares
from dopaminergic.activities.estimates import Product, Sides, wide

PART = 2**16  # weights that are written at once
TINY = 1e-300


class Scale(NamedTuple):
    """The sizes that a step is divided by, in turned axes.

    Attributes:
        rows: mean squares of the estimate's rows, `(rows,)`.
        columns: of its columns, over the mean of all squares, `(columns,)`.
        left: turned axes of the rows, or None.
        right: turned axes of the columns, or None.
        least: size.
    """

    rows: Tensor
    columns: Tensor
    left: Tensor | None
    right: Tensor | None
    least: float


class LargeStep(NamedTuple):
    """Amounts that are added to a large matrix.

    Attributes:
        product: the estimate v'e, its factors in turned axes.
        decay: factor on the weights, which is added to the estimate.
        length: factor on all.
        scale: None: the estimate itself is the step.
    """

    product: Product
    decay: float
    length: float
    scale: Scale | None = None

    def fits(self, parameter: Tensor) -> bool:
        """Whether all weights stay within the numbers of their dtype."""
        most = torch.finfo(parameter.dtype).max
        there = float(torch.linalg.vector_norm(parameter, math.inf))
        if self.scale is None:
            sizes = [float(torch.linalg.vector_norm(x, math.inf)) for x in self.product]
            step = len(self.product.left) * sizes[0] * sizes[1] + self.decay * there
        else:
            sides = max([1.0, *(len(x) for x in self.scale[2:4] if x is not None)])
            step = MOST_SIZES * sides
        return there + abs(self.length) * step < most

    def parts(self, parameter: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the matrix, each with the amounts that are to be added.

        Each view may be written before the next one is asked for.
        """
        left, right = self.product
        scale = self.scale
        # Parts are cut along a side without turned axes.
        if scale is not None and scale.left is not None:
            parameter, left, right = parameter.mT, right, left
            scale = Scale(scale.columns, scale.rows, scale.right, scale.left, scale.least)
        step = max(1, PART // parameter.shape[1])
        for start in range(0, len(parameter), step):
            part = slice(start, start + step)
            weights = parameter[part]
            estimate = left[:, part].mT @ right
            axes = None if scale is None else scale.right
            if self.decay:
                decayed = self.decay * wide(weights)
                estimate += decayed if axes is None else decayed @ axes
            if scale is not None:
                sizes = (scale.rows[part, None] * scale.columns).sqrt_().clamp_(min=scale.least)
                estimate = bounded(estimate, sizes)
                estimate = estimate if axes is None else estimate @ axes.mT
            yield weights, estimate.mul_(-self.length).to(parameter.dtype)

    def whole(self, parameter: Tensor) -> Tensor:
        """All amounts, in the shape of the matrix."""
        found = parameter.detach().clone()
        for view, amount in self.parts(found):
            view.copy_(amount)
        return found


def scaled(
    memory: dict[str, Tensor],
    name: str,
    product: Product,
    sides: Sides,
    parameter: Tensor,
    decay: float,
    length: float,
    count: int,
) -> tuple[LargeStep, float]:
    """A step of about `length` for each weight, and the improvement that it promises.

    The mean squares of a product's rows follow from the products of its factors among samples:

        mean over columns of (v'e)^2 = diagonal of v' (e e') v / columns

    Those of the decay are added, as if it had nothing to do with the estimate.

    Args:
        memory: what is kept, by name; it is brought up to date.
        name: of the weight.
        product: the estimate.
        sides: of the matrix.
        parameter: the matrix.
        decay: factor on the weights.
        length: of the step.
        count: number of the step, from 1.
    """
    left = basis_of(memory, f"left of {name}", sides.left, count)
    right = basis_of(memory, f"right of {name}", sides.right, count)
    left, right = (None if axes is None else axes[0] for axes in (left, right))
    v = product.left if left is None else product.left @ left
    e = product.right if right is None else product.right @ right
    rows = ((e @ e.mT) @ v).mul_(v).sum(0).clamp_(min=0.0) / e.shape[1]
    columns = ((v @ v.mT) @ e).mul_(e).sum(0).clamp_(min=0.0) / v.shape[1]
    more = _mean_squares(parameter, left, right) if decay else (0.0, 0.0)
    kept = mean_squares(
        memory, name, (rows + decay**2 * more[0])[None], (columns + decay**2 * more[1])[None], count
    )
    scale = Scale(kept[0][0], kept[1][0], left, right, float(kept[2]))
    sums = [
        float(bounded(now, size.sqrt()).double().sum())
        for now, size in ((rows, scale.rows), (columns, scale.columns))
    ]
    promise = length * sums[0] * sums[1] / max(float(rows.mean()), TINY)
    return LargeStep(Product(v, e), decay, length, scale), promise


def _mean_squares(
    parameter: Tensor, left: Tensor | None, right: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean squares of the rows, and of the columns, of a matrix in turned axes."""
    if left is not None:
        turned = _mean_squares(parameter.mT, right, left)
        return turned[1], turned[0]
    rows: list[Tensor] = []
    columns = parameter.new_zeros(parameter.shape[1], dtype=torch.float32)
    step = max(1, PART // parameter.shape[1])
    for weights in parameter.split(step):
        squares = (wide(weights) if right is None else wide(weights) @ right).square()
        rows.append(squares.mean(1))
        columns = columns + squares.sum(0)
    return torch.cat(rows), columns / len(parameter)
