"""The rule of VectorDopamine: the loss in the span of K directions, and its damped minimum.

    J_k = o(W + D z_k) - o(W),   l(c) = l - g.c + c.A.c / 2,   c = (A + top J J' + lambda T G)^-1 g,
    W <- W - D Z c

Only a part of that step is trusted. Everything here is a plain function of float64 tensors whose
first dimension is the replica. Equations: algorithms.md, "VectorDopamine", after Levenberg (1944)
and Marquardt (1963).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dopaminergic.batched import MEMORY
from dopaminergic.evidence import Penalised
from dopaminergic.outcomes import as_double
from dopaminergic.quadratic import Quadratic
from dopaminergic.scalars import TINY

# Early steps are rough anyhow, and should come soon.
FIRST_DIRECTIONS = 32
GROWTH = 1.05
MOST_DIRECTIONS = 512
FEWEST = 8
LIFT = 0.2  # of the curvature that saturated outcomes have lost
DAMPED = 0.015  # least lambda where the outcomes have lost all of it
ROUNDING = 1e-4  # of the curvature
# Least lambda, times N^2 (N + 1), where the next batch differs from this one by all of the loss.
CAUTION = 1024.0
# Batches of fewer samples than so many for each direction have a decay only if they come again.
MANY = 3


class VectorState(NamedTuple):
    """The state of `VectorDopamine`: float64, shape `(R,)` each.

    Attributes:
        damping: lambda.
        gain: eta, how much of the damped step is taken.
        curvature: the largest mean curvature so far of the sum of a batch's losses, for batches of
            any size.
        actual: decayed sum of sizes of actual improvements from batch to batch.
        promised: decayed sum of expected ones.
        comparisons: decayed sum of weights of both.
        last_loss: the loss of the last step.
        expected: the improvement P that is expected of the last step; 0 if it was rejected.
        tried: the loss of the last step's batch after the step.
        gap: decayed sum of sizes of differences between that and the loss of the next batch at the
            same weights.
        slope: decayed sum of the slopes g.c of the proposals.
        signal: the same sum without the part that the noise of the batch explains.
        reach: how many times sigma the perturbations of the next step are; 1 but where no step
            helps, see `next_reach`.
    """

    damping: Tensor
    gain: Tensor
    curvature: Tensor
    actual: Tensor
    promised: Tensor
    comparisons: Tensor
    last_loss: Tensor
    expected: Tensor
    tried: Tensor
    gap: Tensor
    slope: Tensor
    signal: Tensor
    reach: Tensor


class Subspace(NamedTuple):
    """The loss in the span of K directions, as a function of their coefficients; float64.

    Attributes:
        slope: g_k = <J_k, r>, shape `(R, K)`.
        products: A_kl = <J_k, H J_l>, shape `(R, K, K)`.
        outputs: <J_k, J_l>, shape `(R, K, K)`.
        moments: sum_i g_i g_i' over the parts g_i that samples have in g, shape `(R, K, K)`.
        gram: <D z_k, D z_l> over the mean of its diagonal, shape `(R, K, K)`, or an identity
            `(1, K, K)`.
        samples: number N of losses.
    """

    slope: Tensor
    products: Tensor
    outputs: Tensor
    moments: Tensor
    gram: Tensor
    samples: int


class Proposal(NamedTuple):
    """The damped minimum, each entry of shape `(R,)` but the first.

    Attributes:
        coefficients: c of the step -sum_k c_k D z_k, shape `(R, K)`.
        slope: g.c, that of the penalty on squared weights included.
        curvature: c.A.c, likewise.
        noise: the part of g.c that is expected from the noise of the batch alone.
        lost: share of the largest curvature so far that saturated outcomes have lost, in [0, 1].
        saturated: root of that; exactly 0 of a loss whose curvature is constant.
        pull: the part of the slope that is the penalty's.
        stiffness: the part of the curvature that is the penalty's.
    """

    coefficients: Tensor
    slope: Tensor
    curvature: Tensor
    noise: Tensor
    lost: Tensor
    saturated: Tensor
    pull: Tensor | float = 0.0
    stiffness: Tensor | float = 0.0

    def expected(self, share: Tensor) -> Tensor:
        """Improvement to expect from `share` of the step: s g.c - s^2 c.A.c / 2."""
        return share * self.slope - share**2 * self.curvature / 2

    def shrinking(self, share: Tensor) -> Tensor:
        """The part of the expected improvement that is the penalty's; known exactly."""
        return share * self.pull - share**2 * self.stiffness / 2

    def within(self, length: float) -> Proposal:
        """The proposal, shortened to a length of at most `length` in units of one direction's."""
        factor = (length / (self.coefficients.norm(dim=1) + TINY)).clamp(max=1.0)
        return self._replace(
            coefficients=factor[:, None] * self.coefficients,
            slope=factor * self.slope,
            curvature=factor**2 * self.curvature,
            noise=factor * self.noise,
            pull=factor * self.pull,
            stiffness=factor**2 * self.stiffness,
        )


def directions_for(
    weights: int, samples: int, step: int, outcomes: int = 1, memory: int = MEMORY
) -> int:
    """Number of directions that a step tries if nobody sets it: K grows by a twentieth each step.

    It grows up to two thirds of the weights, or up to half the number of losses. As many directions
    as losses would fit their noise. It is at least 8, at most 512, and no more than the memory
    holds regrets for.

    Args:
        weights: number d of weights.
        samples: number N of losses in a batch.
        step: step number.
        outcomes: number n of outcomes.
        memory: bytes that K n regrets may take.

    >>> [directions_for(10_000, 1_000, step) for step in (0, 1, 20, 60)], directions_for(33, 4, 10)
    ([32, 33, 84, 500], 8)
    """
    useful = min(
        math.ceil(2 * weights / 3),
        max(FEWEST, samples // 2),
        MOST_DIRECTIONS,
        memory // (4 * outcomes),
    )
    ramp = FIRST_DIRECTIONS * GROWTH ** min(step, 60)
    return max(1, min(weights, max(min(FEWEST, weights), min(useful, int(ramp)))))


def subspace(regrets: Tensor, loss: Quadratic, gram: Tensor) -> Subspace:
    """Project the loss onto the directions.

    Args:
        regrets: J, shape `(R, K, n)`; directions with an entry that is not finite must be 0.
        loss: around the unperturbed outcome.
        gram: see `Subspace`.
    """
    small, unit = in_units(regrets)
    slope, unit_of_slope = in_units(loss.slope)
    across = small.mT
    parts = _parts(small, slope, loss)
    return Subspace(
        as_double(small @ slope[..., None])[..., 0] * (unit * unit_of_slope)[:, None],
        as_double(loss.curve(small) @ across) * unit.square()[:, None, None],
        as_double(small @ across) * unit.square()[:, None, None],
        as_double(parts @ parts.mT) * (unit * unit_of_slope).square()[:, None, None],
        gram,
        loss.samples,
    )


def in_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` divided by a power of two near its largest entry, so that products fit in float32: exact.

    Args:
        x: shape `(R, ...)`.

    Returns:
        `x` in these units, and the units, float64 `(R,)` on the CPU.
    """
    largest = x.abs().flatten(1).amax(1) if x[0].numel() else x.new_zeros(len(x))
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    shape = (-1, *[1] * (x.ndim - 1))
    one = torch.ones(len(x), dtype=torch.float64, device="cpu")
    return torch.ldexp(x, -exponent.reshape(shape)), torch.ldexp(one, exponent.cpu())


def _parts(regrets: Tensor, slope: Tensor, loss: Quadratic) -> Tensor:
    """The part of each sample in g, shape `(R, K, N)`.

    The parts are equal where outcomes do not belong to samples.
    """
    parts = regrets * slope[:, None]
    if loss.width == 0:
        return parts.sum(-1, keepdim=True) / loss.samples**0.5
    return parts.unflatten(-1, (-1, loss.width)).sum(-1)


def covariance(space: Subspace) -> Tensor:
    """Covariance of g from batch to batch, shape `(R, K, K)`.

    The samples of this batch tell it; it is 0 of one sample.
    """
    count = space.samples
    if count < 2:
        return torch.zeros_like(space.moments)
    return (
        count
        / (count - 1)
        * (space.moments - space.slope[..., None] * space.slope[:, None] / count)
    )


def mean_curvature(space: Subspace) -> Tensor:
    """Curvature of the loss over that of |o|^2 / 2 along the regrets, shape `(R,)`.

    It is tr A / tr <J, J>.
    """
    return _trace(space.products) / (_trace(space.outputs) + TINY)


def propose(space: Subspace, state: VectorState, penalised: Penalised | None = None) -> Proposal:
    """The damped Gauss-Newton step: c = (A + lift J J' + lambda T G)^-1 g.

    The unit of lambda is T = h mean_k |J_k|^2 / 2, with h the largest mean curvature so far. It is
    that of A (for squared errors half the mean of its diagonal), yet does not vanish where a
    softmax saturates. The part of h that outcomes have lost tells how little the batch still says
    about others. A share of that part is put back, and lambda does not fall below another share. G
    measures the length of the step in the weights, for any angles between the directions.

    Where perturbations are wide the slopes do not tell the loss in between, and the step is to the
    best of the copies.

    Args:
        space: the projected loss.
        state: its damping, curvature and reach are used.
        penalised: the squares of the weights, to be kept small as `evidence` says; None: they are
            not.
    """
    none = torch.zeros_like(state.damping)
    proposal = _damped(space, state, penalised, none)
    if penalised is None:
        return proposal
    decay = penalised.strength(proposal.noise, proposal.slope, space.products)
    if space.samples < MANY * space.slope.shape[1]:
        decay = decay * again(state, space.samples)
    return _damped(space, state, penalised, decay) if bool(decay.any()) else proposal


def _damped(
    space: Subspace, state: VectorState, penalised: Penalised | None, decay: Tensor
) -> Proposal:
    """The damped minimum of the loss and of `decay` times half the squares of the weights."""
    largest = state.curvature / space.samples
    gone = (largest - mean_curvature(space)).clamp(min=0.0)
    lost = gone / (largest + TINY)
    unit = largest / 2 * _trace(space.outputs) / space.slope.shape[1]
    least = torch.maximum(DAMPED * lost, _caution(state, space.samples))
    ridge = (torch.maximum(state.damping, least) * unit + TINY)[:, None, None] * space.gram
    matrix = space.products + LIFT * gone[:, None, None] * space.outputs + ridge
    slope = space.slope
    if penalised is not None:
        slope = slope + decay[:, None] * penalised.inner
        matrix = matrix + decay[:, None, None] * penalised.gram
    solved = _solve(matrix, torch.cat([slope[..., None], covariance(space)], -1))
    c = torch.where(state.reach[:, None] > 1.0, _best_copy(space), solved[..., 0])
    pull, stiffness = (decay, decay) if penalised is None else penalised.gain(c, decay)
    curvature = (c[:, None] @ space.products @ c[..., None])[:, 0, 0] + stiffness
    saturated = torch.where(lost > ROUNDING, lost, 0.0).sqrt()
    return Proposal(
        c,
        (slope * c).sum(1),
        curvature,
        _trace(solved[..., 1:]),
        lost,
        saturated,
        pull,
        stiffness,
    )


def _caution(state: VectorState, samples: int) -> Tensor:
    """Least lambda, by the gap between the last batch and the next; none where all batches are one.

    Few samples can be fitted together with their noise, and a check on the same batch approves of
    it. The gap between the loss that was reached and that of the next batch shows it.
    """
    return CAUTION / (samples**2 * (samples + 1)) * surprise(state)


def surprise(state: VectorState) -> Tensor:
    """The gap between a batch and the next at the same weights, over the loss; `(R,)`, at most 1.

    It is 0 where all batches are one and the same.
    """
    gap = state.gap / (state.comparisons + TINY)
    return (gap / (state.last_loss.abs() + TINY)).clamp(max=1.0)


def again(state: VectorState, samples: int) -> Tensor:
    """How surely the batches are one and the same: 1 where no batch surprises, `(R,)`.

    The losses of N fresh samples differ by about 1 / sqrt(N) of them by chance alone. If there are
    always fresh ones, their noise averages out, and a weight decay is only an error.
    """
    return (1.0 - samples**0.5 * surprise(state)).clamp(min=0.0)


def _best_copy(space: Subspace) -> Tensor:
    """Coefficients c = -e_k of the step to the best perturbed weights.

    These are the ones whose outcomes promise the least loss.
    """
    promised = space.slope + space.products.diagonal(dim1=-2, dim2=-1) / 2
    return -torch.nn.functional.one_hot(promised.argmin(1), promised.shape[1]).to(torch.float64)


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems, scaled to a unit diagonal.

    The solution is 0 for directions that change nothing, and NaN if an entry is not finite.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).rsqrt()[..., None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    unit = matrix * scale * scale.mT + 1e-14 * identity
    # One replica's NaN would be an error of all.
    sound = unit.isfinite().all(-1).all(-1)[:, None, None]
    unit = torch.where(sound, unit, identity)
    factor, failed = torch.linalg.cholesky_ex(unit)
    solution = torch.cholesky_solve(right * scale, factor)
    # Rounding has made it indefinite: the least-squares solution is sound all the same.
    if bool(failed.any()):
        least = torch.linalg.pinv(unit, hermitian=True) @ (right * scale)
        solution = torch.where(failed[:, None, None] == 0, solution, least)
    return torch.where(sound, solution, torch.nan) * scale


def kept(proposal: Proposal, weights: int, moved: Tensor, squares: Tensor) -> Tensor:
    """Factor on the weights that takes back the length which a step adds to them.

    It differs from 1 only where outcomes saturate.

    The step to given outcomes is longer in the span of K random directions than among all d. If
    they are few, it is so by sqrt(d / K). No sample has asked for the extra length. It adds up as
    in a random walk and spoils the answers to other samples. Nothing is taken back of a loss whose
    curvature is constant, and little where K is near d.

    Args:
        proposal: its `saturated` and K are used.
        weights: number d of weights.
        moved: squared length of the step, `(R,)`.
        squares: of the weights, summed, `(R,)`.
    """
    chance = (1.0 - proposal.coefficients.shape[1] / weights) ** 2
    return (1.0 - chance * proposal.saturated * moved / (squares + moved + TINY)).sqrt()
