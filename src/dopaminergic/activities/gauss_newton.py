"""Gauss-Newton steps from a Jacobian that was learned, with no pass of its own.

    A = mean of J'H J over batches,  g = J'r
    step = 1/2 (A + (lambda mean(diag A) + pull) I)^-1 (g + pull w)

The step is checked on the same batch: lambda follows actual against expected improvement
(Levenberg 1944; Marquardt 1963). The pull keeps weights small as far as the data ask for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dopaminergic.quadratic import Quadratic

MEMORY = 0.9  # decay of the mean of A, and of the loss
LOOK = 10  # steps between two looks at the evidence
HALF = 0.5  # of a step is taken
DAMPING = (1e-8, 1e4)  # the range of lambda
GROWS, SHRINKS = 3.0, 0.5  # lambda is multiplied by these


class Proposal(NamedTuple):
    """A step that is to be checked, of each replica.

    Attributes:
        taken: amounts that are taken from the weights, `(R, d)`.
        expected: improvement of loss and penalty, float64 `(R,)` on the CPU.
        penalty: the change of the penalty, likewise.
    """

    taken: Tensor
    expected: Tensor
    penalty: Tensor


def propose(
    memory: dict[str, Tensor],
    loss: Quadratic,
    jacobian: Tensor,
    weights: Tensor,
    damping: Tensor,
    rates: Tensor,
) -> Proposal:
    """The step of a batch.

    Args:
        memory: what is kept, by name; it is brought up to date.
        loss: around the outcomes.
        jacobian: J, `(R, n, d)`.
        weights: w, float64 `(R, d)`.
        damping: lambda, `(R,)`.
        rates: factors on the step of each weight, `(R, d)`.
    """
    turned = jacobian.mT
    now = (loss.curve(turned) @ jacobian).double()
    curvature = _averaged(memory, now)
    size = curvature.diagonal(dim1=-2, dim2=-1).mean(-1)
    shift = damping.to(size.device) * size
    pull = evidence(memory, curvature, weights, loss, shift.cpu()).to(now.device)
    gradient = torch.bmm(turned, loss.slope[..., None])[..., 0].double() + pull[:, None] * weights
    ridge = (shift + pull).clamp(min=torch.finfo(size.dtype).tiny)
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    damped = curvature + ridge[:, None, None] * eye
    taken = HALF * rates * torch.linalg.solve_ex(damped, gradient)[0]
    bent = torch.einsum("rd,rde,re->r", taken, now, taken) + pull * taken.square().sum(-1)
    expected = (gradient * taken).sum(-1) - 0.5 * bent
    grown = (weights - taken).square().sum(-1) - weights.square().sum(-1)
    return Proposal(taken, expected.cpu(), (0.5 * pull * grown).cpu())


def _averaged(memory: dict[str, Tensor], now: Tensor) -> Tensor:
    old = memory.get("curvature")
    if old is None or old.shape != now.shape:
        old = now
    memory["curvature"] = old.lerp(now, 1.0 - MEMORY)
    return memory["curvature"]


def evidence(
    memory: dict[str, Tensor], curvature: Tensor, weights: Tensor, loss: Quadratic, shift: Tensor
) -> Tensor:
    """How strongly weights are pulled to 0, float64 `(R,)`, as the data speak for it.

    gamma of the weights are known from the data, those whose curvature a exceeds the pull:

        gamma = min(sum a / (a + pull), n / 2)
        pull = 2 gamma L / ((n - gamma) sum w^2) max(0, 1 - sum a / (a + pull + damping) / n)

    with n outcomes of a batch (MacKay 1992; Foresee and Hagan 1997). The last factor is ours. The
    damping of steps tells how many directions the data agree about. Where these are as many as
    outcomes, as with the four of XOR, nothing is known of noise. So are three bounds: gamma is at
    most n / 2, sum w^2 at least that of the first weights, the pull at most the mean curvature.
    """
    looks = memory.get("looks", torch.zeros((), dtype=torch.int64, device="cpu")) + 1
    level = memory.get("level", loss.loss)
    pull = memory.get("pull", torch.zeros_like(loss.loss))
    squares = weights.square().sum(-1).cpu()
    first = memory.setdefault("first squares", squares)
    if int(looks) % LOOK == 0 and bool(curvature.isfinite().all()):
        spectrum = torch.linalg.eigvalsh(curvature).clamp(min=0.0).cpu()
        tiny = torch.finfo(spectrum.dtype).tiny
        count = loss.values.shape[1]
        known = (spectrum / (spectrum + pull[:, None] + tiny)).sum(-1).clamp(max=0.5 * count)
        agreed = (spectrum / (spectrum + (pull + shift)[:, None] + tiny)).sum(-1)
        spare = (1.0 - agreed / count).clamp(min=0.0)
        residual = torch.minimum(level, loss.loss).clamp(min=0.0)
        # Weights that shrink must not raise the pull that shrinks them.
        squares = torch.maximum(squares, first).clamp(min=tiny)
        pull = 2.0 * spare * known * residual / ((count - known) * squares)
        pull = torch.minimum(pull, spectrum.mean(-1))
    memory["looks"] = looks
    memory["level"] = level.lerp(loss.loss, 1.0 - MEMORY)
    memory["pull"] = pull
    return pull


def next_damping(damping: Tensor, expected: Tensor, actual: Tensor) -> Tensor:
    """The next lambda, after a step that promised and brought so much."""
    worse = ~(actual > 0.0) | (expected <= 0.0) | (actual < 0.5 * expected)
    better = actual > 0.75 * expected
    factor = torch.where(worse, GROWS, torch.where(better, SHRINKS, 1.0))
    return (damping * factor).clamp(*DAMPING)
