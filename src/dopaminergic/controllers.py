"""The controllers of VectorDopamine: prediction errors set damping, length and reach of a step.

Actual against expected improvement on the same batch sets lambda. On the next batch it sets eta.
Everything here is a plain function of float64 tensors whose first dimension is the replica.
Equations: algorithms.md, "VectorDopamine".
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopaminergic.scalars import TINY
from dopaminergic.subspace import Proposal, Subspace, VectorState, mean_curvature, surprise

DAMPING_LIMITS = (1e-8, 1e4)
GAIN_LIMITS = (0.05, 1.0)
WIDEST = 2.0**16  # most that perturbations are made larger by, where no step of any length helps
# Noise is at most so many times the gap between a batch and the next: none where all are one.
SURPRISE = 8.0
# Least share of the step, times N / surprise: few samples are damped, and that is enough.
FEW = 1.6
# A lone sample is the same each time if the gap between steps is less than this part of the loss.
SAME = 0.1
PATIENCE = 10  # steps before one sample is called too few
ONE_BY_ONE = (
    "{}: each step learns from N = 1 loss, another one each time, which tells little about the "
    "next; return the losses of the last 8 or more samples together, which tell far more"
)


def with_noise(state: VectorState, proposal: Proposal, *, beta: float) -> VectorState:
    """Remember how much of the slope the noise of the batch explains.

    g.c is larger than the true slope along c, since c follows the noise of g. The excess is tr(C (A
    + ...)^-1), with C the covariance of g (the leave-one-out correction; Stein 1981). Samples
    differ in a full batch as well, though there is no noise in it. Then the next batch holds no
    surprise, and the surprise bounds the excess.

    Args:
        state: from `next_gain`.
        proposal: of this step.
        beta: decay of the sums.
    """
    noise = torch.minimum(proposal.noise, SURPRISE * state.gap / (state.comparisons + TINY))
    return state._replace(
        slope=beta * state.slope + (1.0 - beta) * proposal.slope,
        signal=beta * state.signal + (1.0 - beta) * (proposal.slope - noise),
    )


def share(state: VectorState, lost: Tensor, samples: int) -> Tensor:
    """Part of the proposal that is taken: eta, at most the share of the slope without noise.

    Where outcomes saturate, the noise vanishes with the loss, and that bound with it. Fresh batches
    of a few samples tell nearly nothing of their noise, and lambda has made their steps short. So
    of N of them at least `FEW` / N of the step is taken. The best of wide copies is taken as it is.

    Args:
        state: from `with_noise`.
        lost: of the proposal.
        samples: number N of losses in the batch.
    """
    sound = (state.signal / (state.slope + TINY)).clamp(*GAIN_LIMITS)
    part = lost * state.gain + (1.0 - lost) * torch.minimum(state.gain, sound)
    part = torch.maximum(part, (FEW / samples * surprise(state)).clamp(*GAIN_LIMITS))
    return torch.where(state.reach > 1.0, 1.0, part)


def next_gain(
    state: VectorState, loss: Tensor, *, tau: float, kappa: float, beta: float
) -> VectorState:
    """Set eta by the prediction error on the next batch: actual against expected improvement.

    The improvement is that of the last step.

    Args:
        state: from the last step.
        loss: of this batch at the weights, `(R,)`.
        tau: share of the expected improvement that is taken for enough, in (0, 1).
        kappa: speed of the controller.
        beta: decay of the scales.
    """
    # algorithms.md, "VectorDopamine", next-batch RPE; a rejected step expected nothing and teaches
    # nothing.
    taught = state.expected > 0.0
    improvement = state.last_loss - loss
    weight = 1.0 - beta
    actual = beta * state.actual + weight * improvement.abs()
    promised = beta * state.promised + weight * state.expected
    comparisons = beta * state.comparisons + weight
    gap = beta * state.gap + weight * (loss - state.tried).abs()
    error = (improvement - tau * state.expected) / ((actual + promised) / comparisons + TINY)
    gain = (state.gain * torch.exp(kappa * error.clamp(-3.0, 3.0))).clamp(*GAIN_LIMITS)
    return state._replace(
        gain=torch.where(taught, gain, state.gain),
        actual=torch.where(taught, actual, state.actual),
        promised=torch.where(taught, promised, state.promised),
        comparisons=torch.where(taught, comparisons, state.comparisons),
        gap=torch.where(taught, gap, state.gap),
    )


def next_curvature(
    state: VectorState, space: Subspace, loss: Tensor, steepness: Tensor
) -> VectorState:
    """Remember the largest mean curvature.

    A loss without curvature is taken for a square.

    Args:
        state: from `next_gain`.
        space: the projected loss.
        loss: at the weights, `(R,)`.
        steepness: |r|^2, `(R,)`.
    """
    curvature = mean_curvature(space)
    flat = steepness / (2.0 * loss.abs())
    curvature = torch.where(curvature > 0.0, curvature, flat.nan_to_num(posinf=0.0))
    return state._replace(curvature=torch.maximum(state.curvature, curvature * space.samples))


def next_damping(state: VectorState, expected: Tensor, actual: Tensor) -> VectorState:
    """Set lambda by the prediction error on the same batch.

    It is halved where the expectation held, and tripled where it did not.

    Args:
        state: of this step.
        expected: improvement that the step promised, `(R,)`; where it is 0 nothing was tried.
        actual: improvement that it brought; NaN counts as none.
    """
    ratio = actual / (expected + TINY)
    factor = torch.where(ratio > 0.75, 0.5, torch.where(ratio >= 0.5, 1.0, 3.0))
    factor = torch.where(expected > 0.0, factor, 1.0)
    return state._replace(damping=(state.damping * factor).clamp(*DAMPING_LIMITS))


def next_reach(
    before: VectorState, after: VectorState, actual: Tensor, *, first: float
) -> VectorState:
    """Look twice as far each time where lambda is at its ceiling and no step helps all the same.

    Perturbations grow until a copy of the weights is better, or until they are `WIDEST`; then all
    begins anew.

    Args:
        before: of this step.
        after: its damping and reach are set.
        actual: improvement that the step brought, `(R,)`; NaN counts as none.
        first: the lambda to begin with anew.
    """
    better = actual > 0.0
    wide = before.reach > 1.0
    stuck = ~better & (wide | (before.damping >= DAMPING_LIMITS[1]))
    reach = torch.where(stuck, 2.0 * before.reach, 1.0)
    anew = (wide & better) | (reach > WIDEST)
    return after._replace(
        reach=torch.where(anew, 1.0, reach),
        damping=torch.where(anew, first, torch.where(wide, before.damping, after.damping)),
    )


def one_by_one(state: VectorState, samples: int, step: int) -> bool:
    """Whether each step has one sample alone, and the samples differ from step to step.

    Args:
        state: from `next_gain`.
        samples: number N of losses in the batch.
        step: step number.
    """
    if samples > 1 or step < PATIENCE:
        return False
    gap = state.gap / (state.comparisons + TINY)
    return bool((gap > SAME * state.last_loss.abs()).any())
