"""The span of a step's random directions: its regrets, and the angles between the directions."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from dopaminergic.evidence import Penalised, fitted
from dopaminergic.outcomes import as_double
from dopaminergic.pooling import Projection
from dopaminergic.quadratic import Quadratic
from dopaminergic.scalars import total
from dopaminergic.subspace import FEWEST, in_units, subspace
from dopaminergic.weights import Weights

# Directions are as good as orthogonal where there are this many weights for each of them.
GRAM_WORTH_IT = 16


def default_length(
    size: float, dtypes: Collection[torch.dtype], usual: float, most: float
) -> float:
    """How far a perturbation moves all weights together.

    Args:
        size: number d of weights of one replica.
        dtypes: of the weights, and those that the closure casts to.
        usual: the length without 16-bit weights.
        most: the longest.
    """
    if torch.bfloat16 not in dtypes and torch.float16 not in dtypes:
        return usual
    # A weight's change must show beside its rounding, and the effect of all changes together
    # beside the rounding of the outcomes.
    parts = 80.0 if torch.bfloat16 in dtypes else 200.0
    return min(most, math.sqrt(max(1.0, size)) / parts)


def project_regrets(regrets: Tensor, loss: Quadratic) -> Projection:
    """The loss in the span of the directions.

    A direction with an outcome that is not finite is not used.

    Args:
        regrets: J, shape `(R, K, n)`, not all finite perhaps.
        loss: around the outcome at the weights.
    """
    used = regrets.isfinite().all(-1, keepdim=True)
    regrets = torch.where(used, regrets, 0.0)
    if loss.black_box and regrets.shape[1] >= FEWEST:
        # The expected regret of each sample is about sigma^2 tr(H) / 2d. It is no slope.
        expected = regrets.sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp(min=1)
        regrets = torch.where(used, regrets - expected, 0.0)
    space = subspace(
        regrets, loss, torch.eye(regrets.shape[1], dtype=torch.float64, device="cpu")[None]
    )
    slope, unit = in_units(loss.slope)
    steepness = as_double(slope.square().sum(1)) * unit.square()
    return Projection(space, steepness, (regrets != 0.0).any(-1).cpu(), used[..., 0].cpu())


def written_out(weights: Weights, count: int, step: int) -> Tensor | None:
    """D z_k `(R, K, d)` in float64; None where the weights are too many beside the directions.

    Args:
        weights: along which the directions lie.
        count: number K of directions.
        step: step number.
    """
    if sum(weights.sizes) > GRAM_WORTH_IT * count:
        return None
    return weights.directions(count, weights.sigmas, step)


def held(weights: Weights, count: int, samples: int) -> Tensor | None:
    """The weights `(R, d)` in float64 on the CPU; None where their squares may grow.

    That takes directions that are written out, and at least twice as many samples as directions.
    Fewer leave nothing that tells noise from signal. The weights must not be perturbed now.
    """
    if sum(weights.sizes) > GRAM_WORTH_IT * count or samples < 2 * count:
        return None
    replicas = len(weights.seeds)
    # Of weights that are cut into shards every rank puts together the few that there are.
    whole = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in weights.parameters]
    rows = [as_double(p).reshape(replicas, -1) for p in whole]
    return torch.cat(rows, 1)


def angles(z: Tensor | None, taken: Tensor) -> Tensor:
    """<D z_k, D z_l> `(R, K, K)` with a mean diagonal of 1.

    It is an identity where directions hardly overlap. Directions without regrets have no part in
    those beside them. Otherwise they would be taken to shorten the step.

    Args:
        z: the directions, from `written_out`.
        taken: directions that change any outcome, bool `(R, K)`.
    """
    if z is None:
        return torch.eye(taken.shape[1], dtype=torch.float64, device="cpu")[None]
    gram = _gram(z, taken)
    return gram / gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]


def penalise(
    z: Tensor | None, w: Tensor | None, taken: Tensor, reach: Tensor, loss: Quadratic
) -> Penalised | None:
    """The squares of the weights in the span of the directions that change any outcome.

    Args:
        z: the directions, from `written_out`.
        w: the weights, from `held`.
        taken: directions that change any outcome, bool `(R, K)`.
        reach: how many times as long the directions are, `(R,)`.
        loss: at the weights.
    """
    if z is None or w is None:
        return None
    z = z * reach[:, None, None]
    inner = (z @ w[..., None])[..., 0] * taken
    return Penalised(inner, _gram(z, taken), w.square().sum(1), fitted(loss, taken.shape[1]))


def part_taken(weights: Weights, rates: list[Tensor]) -> Tensor:
    """How much of the proposal is taken.

    With several groups each group's rate counts by its size.
    """
    squares = [n * sigma**2 for n, sigma in zip(weights.sizes, weights.sigmas, strict=True)]
    whole = total(squares)
    return total(rate * (square / whole) for rate, square in zip(rates, squares, strict=True))


def _gram(z: Tensor, taken: Tensor) -> Tensor:
    gram = z @ z.mT
    taken = taken.to(torch.float64)
    own = torch.eye(taken.shape[1], dtype=torch.bool, device="cpu")
    return torch.where(own, gram, gram * taken[:, None] * taken[..., None])
