"""Learned expectations: from a trial to regrets, and from the slope of an outcome to credit.

    expected regrets   D^_t = sum over families, lags k, units of (xi g)_{t-k} K_k
    credit             e^_s = g_s sum_k K_k r_{s+k}

The same numbers K serve both, so that credit becomes exact as the regrets become expected. K is a
kernel over lags where units and outcomes both have time, and a matrix otherwise. A kernel reaches
`span` steps back.

K learns from the unexpected part of each sample's vector of regrets. It takes the least squares
step of the batch, with a ridge that grows with the number of units N for M regrets:

    K += F' (F F' + .3 M + N)^-1 unexpected,   F: rows of xi g, of mean square 1 in each family

One sample says little about many units; the ridge keeps it from being believed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dopaminergic.activities.families import Family

RIDGE = 0.3


class Times(NamedTuple):
    """How the time steps of units and outcomes belong together.

    Attributes:
        outcomes: T.
        lag: units' step s comes with outcome s - lag.
        span: steps that a kernel reaches back.
    """

    outcomes: int
    lag: int
    span: int


def times_of(family: Family, outcomes: int, span: int) -> Times | None:
    """How a family is in time with the outcomes; None where it is not."""
    steps = family.shape[2]
    if family.lag is None:
        return None
    return Times(outcomes, family.lag, min(span, steps))


def shape_of(family: Family, times: Times | None, outcomes: tuple[int, int]) -> tuple[int, ...]:
    """The shape of K: `(R, span, U, C)`, or `(R, S U, T C)` without time."""
    replicas, _, steps, units = family.shape
    if times is not None:
        return (replicas, times.span, units, outcomes[1])
    return (replicas, steps * units, outcomes[0] * outcomes[1])


def rows(found: Tensor, times: Times | None) -> Tensor:
    """What units have, as it comes with each row of outcomes.

    Args:
        found: `(R, B, S, U)`.
        times: of the family.

    Returns:
        `(R, B T, span U)`, or `(R, B, S U)` without time.
    """
    if times is None:
        return found.flatten(2)
    before = max(0, times.span - 1 - times.lag)
    padded = functional.pad(found, (0, 0, before, 0)) if before else found
    last = before + times.lag
    parts = [padded[:, :, last - k : last - k + times.outcomes] for k in range(times.span)]
    return torch.stack(parts, 3).flatten(1, 2).flatten(2)


def credit(slope: Tensor, kernel: Tensor, family: Family, times: Times | None) -> Tensor:
    """What an outcome's slope says of each unit's output, `(R, B, S, U)`.

    Args:
        slope: r, `(R, B, T, C)`.
        kernel: K.
        family: the units.
        times: of the family.
    """
    if times is None:
        return torch.bmm(slope.flatten(2), kernel.mT).view(family.shape)
    steps = family.shape[2]
    after = times.span - 1
    late = steps - times.lag - times.outcomes
    spread = functional.pad(slope, (0, 0, times.lag, late + after))
    parts = [spread[:, :, k : k + steps] for k in range(times.span)]
    flat = torch.stack(parts, 3).flatten(1, 2).flatten(2)  # (R, B S, span C)
    back = kernel.mT.flatten(1, 2)  # (R, span C, U)
    return torch.bmm(flat, back).view(family.shape)


def learned(features: list[Tensor], unexpected: Tensor, units: int) -> list[Tensor]:
    """The changes of K for families with like rows, each `(R, features, outcomes)`.

    Args:
        features: rows of xi g of each family, `(R, M, features)`.
        unexpected: regrets that were not expected, `(R, M, outcomes)`.
        units: N, of all families.
    """
    count = unexpected.shape[1]
    eye = torch.eye(count, dtype=unexpected.dtype, device=unexpected.device)
    gram = (RIDGE * count + units) * eye
    sizes = [_size(one) for one in features]
    for one, size in zip(features, sizes, strict=True):
        gram = gram + torch.bmm(one / size, one.mT / size)
    answer = torch.linalg.solve(gram, unexpected)
    pairs = zip(features, sizes, strict=True)
    return [torch.bmm(one.mT, answer) / size.square() for one, size in pairs]


def _size(x: Tensor) -> Tensor:
    """The root mean square of each replica's numbers, `(R, 1, 1)`."""
    size = x.square().mean((1, 2), keepdim=True).sqrt()
    return size.clamp(min=torch.finfo(size.dtype).tiny ** 0.5)
