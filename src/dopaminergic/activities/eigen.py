"""Steps of one size in the directions in which activities and credits vary.

    A = mean of v v',  C = mean of e e',    their eigenvectors Q_A, Q_C
    G = Q_A' dW Q_C,   s_ij^2 = mean of G_ij^2, taken for a product of its rows and columns
    step = Q_A (G / s) Q_C'

Weights that share inputs or outputs have estimates that vary together. In the eigenvectors of both
sides they hardly do, so that a size of its own for each is worth more. The sides are those of K-FAC
(Martens and Grosse 2015), in whose axes SOAP (Vyas et al. 2024) takes Adam's step. The squares are
those of Adafactor (Shazeer and Stern 2018): means of rows and of columns, so that nothing as large
as the weights is kept. A weight that is no matrix takes products of its estimates for its sides. A
side of more than `WIDEST` weights, and a vector of weights, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopaminergic.activities.estimates import WIDEST, Sides, products_of_columns

SQUARES = 0.99  # decay of the means of squares
SMALLEST = 1e-4  # size over the root mean square of all
MOST_SIZES = 10.0  # of an estimate over its usual size; 1 / sqrt(1 - SQUARES), as in Adam
SIDES = 0.95  # decay of the means of products
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
    if estimate.ndim < 3:
        square = _averaged(memory, f"square of {name}", estimate.square(), SQUARES)
        return bounded(estimate, (square / (1.0 - SQUARES**count)).sqrt())
    flat = estimate.flatten(2)
    if sides is None:
        sides = Sides(products_of_columns(flat.mT), products_of_columns(flat))
    left = basis_of(memory, f"left of {name}", sides.left, count)
    right = basis_of(memory, f"right of {name}", sides.right, count)
    turned = _turned(flat, left, right)
    squares = turned.square()
    rows, columns, least = mean_squares(memory, name, squares.mean(2), squares.mean(1), count)
    sizes = (rows[..., None] * columns[..., None, :]).sqrt().maximum(least[..., None])
    return _turned_back(bounded(turned, sizes), left, right).view(estimate.shape)


def mean_squares(
    memory: dict[str, Tensor], name: str, rows: Tensor, columns: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Two vectors, whose products are the mean squares of all numbers of a matrix; the least size.

    Few samples leave most directions without an estimate. Its rounding must not become a step, so
    that no size is below the third result, `(R, 1)`.

    Args:
        memory: what is kept, by name; it is brought up to date.
        name: of the weight.
        rows: mean squares of the rows of this step's estimate, `(R, rows)`.
        columns: of its columns, `(R, columns)`.
        count: number of the step, from 1.
    """
    rows = _averaged(memory, f"rows of {name}", rows, SQUARES) / (1.0 - SQUARES**count)
    columns = _averaged(memory, f"columns of {name}", columns, SQUARES) / (1.0 - SQUARES**count)
    whole = rows.mean(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return rows, columns / whole, SMALLEST * whole.sqrt()


def bounded(x: Tensor, sizes: Tensor) -> Tensor:
    """Numbers over their usual sizes, without rare ones that are far larger."""
    over = x / (sizes + torch.finfo(sizes.dtype).tiny ** 0.5)
    return over.nan_to_num(0.0).clamp(-MOST_SIZES, MOST_SIZES)


def _averaged(memory: dict[str, Tensor], name: str, new: Tensor, decay: float) -> Tensor:
    old = memory.get(name)
    if old is None or old.shape != new.shape:
        old = torch.zeros_like(new)
    memory[name] = old.lerp(new, 1.0 - decay)
    return memory[name]


def basis_of(memory: dict[str, Tensor], name: str, product: Tensor, count: int) -> Tensor | None:
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
