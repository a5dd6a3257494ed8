"""Adam in the directions in which activities and credits vary.

    A = mean of v v',  C = mean of e e',    their eigenvectors Q_A, Q_C
    step = Q_A Adam(Q_A' dW Q_C) Q_C'

Weights that share inputs or outputs have estimates that vary together. In the eigenvectors of both
sides they hardly do, so that a step of its own for each is worth more. The sides are those of K-FAC
(Martens and Grosse 2015), the step is that of SOAP (Vyas et al. 2024). A weight that is no matrix
takes products of its estimates instead. A side of more than `WIDEST` weights, and a vector of
weights, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopaminergic.activities.estimates import WIDEST, Sides, products_of_columns

FIRST, SECOND = 0.9, 0.99  # decays of the means of estimates and of their squares
SIDES = 0.95  # decay of the means of products of estimates
EVERY, AT_FIRST = 20, 10  # steps between two looks for eigenvectors, but for the first ones


def direction(
    memory: dict[str, Tensor], name: str, estimate: Tensor, sides: Sides | None, count: int
) -> Tensor:
    """A step of about the size 1 for each weight.

    Args:
        memory: what is kept, by name; it is brought up to date.
        name: of the weight.
        estimate: `(R, ...)`, the replicas first.
        sides: of a matrix; None: products of the estimate.
        count: number of the step, from 1.
    """
    mean = _averaged(memory, f"mean of {name}", estimate, FIRST)
    if estimate.ndim < 3:
        square = _averaged(memory, f"square of {name}", estimate.square(), SECOND)
        return _scaled(mean, square, count)
    flat = estimate.flatten(2)
    if sides is None:
        sides = Sides(products_of_columns(flat.mT), products_of_columns(flat))
    left = _basis(memory, f"left of {name}", sides.left, count)
    right = _basis(memory, f"right of {name}", sides.right, count)
    square = _averaged(memory, f"square of {name}", _turned(flat, left, right).square(), SECOND)
    scaled = _scaled(_turned(mean.flatten(2), left, right), square, count)
    return _turned_back(scaled, left, right).view(estimate.shape)


def _averaged(memory: dict[str, Tensor], name: str, new: Tensor, decay: float) -> Tensor:
    old = memory.get(name)
    if old is None or old.shape != new.shape:
        old = torch.zeros_like(new)
    memory[name] = old.lerp(new, 1.0 - decay)
    return memory[name]


def _scaled(mean: Tensor, square: Tensor, count: int) -> Tensor:
    size = (square / (1.0 - SECOND**count)).sqrt()
    return mean / (1.0 - FIRST**count) / (size + torch.finfo(size.dtype).tiny ** 0.5)


def _basis(memory: dict[str, Tensor], name: str, product: Tensor, count: int) -> Tensor | None:
    """Eigenvectors of one side, in columns; None for a side that is too wide, or a single row."""
    if not 1 < product.shape[-1] <= WIDEST:
        return None
    decay = min(SIDES, 1.0 - 1.0 / count)
    mean = _averaged(memory, name, product, decay)
    basis = f"basis {name}"
    if count <= AT_FIRST or count % EVERY == 0 or basis not in memory:
        memory[basis] = torch.linalg.eigh(mean)[1]
    return memory[basis]


def _turned(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    x = x if left is None else left.mT @ x
    return x if right is None else x @ right


def _turned_back(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    x = x if left is None else left @ x
    return x if right is None else x @ right.mT
