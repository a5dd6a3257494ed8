"""The loss as a function of a closure's outcome: its slope and its curvature there, in closed form.

    l(o + do) = l(o) + <r, do> + <do, H do> / 2,    r = dl/do,  H = d2l/do2 >= 0

The outcome o holds n numbers for each of R replicas. Nothing here knows how the network made them.

- `squared_error`: r = 2 (o - y) / N, H = 2 / N.
- `cross_entropy`: r = (p - e_y) / N, H = (diag(p) - p p') / N, p the softmax of the logits.
- `outcome(values, loss)`: torch differentiates the loss, a function of the values alone.
- losses without predictions (a black box): o are the losses l_i themselves, so r = 1 / N. Their
  mean is not curved; the network behind them is. Each is taken for the square of a number that the
  weights change linearly, l_i = u_i^2. That gives the second moment of regrets in a unit of its own
  for each sample, H = 1 / (2 l_i N). It is a natural gradient (Amari 1998), exact for squared
  errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic.noise.reference import WITHOUT_DOUBLE
from dopaminergic.outcomes import IGNORED, Outcome, Reading, as_double, read

SOLVED = 0.1  # of the mean loss: samples below it are all alike


class Quadratic(NamedTuple):
    """The loss around one outcome of R replicas.

    Attributes:
        values: o, shape `(R, n)`.
        loss: mean loss, float64 `(R,)` on the CPU.
        slope: r, shape `(R, n)`.
        curve: maps changes of the outcome `(R, K, n)` to H times them, of the same shape.
        samples: number N of losses of one replica; of rows of the values where an outcome's loss is
            a lone number.
        black_box: the values are losses, curved functions of the weights even where the network is
            linear.
        saturates: H may shrink as the network becomes sure of its outcomes. It is constant in a
            squared error. In a black box it is that of losses, which grow and shrink.
        width: outcomes of one sample, in the order of the samples; 0 if they do not belong to
            samples.
        in_nats: a negative logarithm of probabilities, whose unit is known.
    """

    values: Tensor
    loss: Tensor
    slope: Tensor
    curve: Callable[[Tensor], Tensor]
    samples: int
    black_box: bool
    saturates: bool
    width: int
    in_nats: bool = False


def quadratic(returned: Any, rule: str, replicas: int | None) -> Quadratic:
    """The loss around a closure's value.

    Args:
        returned: a number, losses, or an `Outcome`; of a fleet with a leading dimension of
            replicas.
        rule: the optimizer's name, for errors.
        replicas: R, or None for one model.

    Raises:
        TypeError: it is not a loss.
        ValueError: it is a tensor of a shape that is not one, or an outcome whose loss is not
            known.
    """
    reading = read(returned, rule, replicas)
    returned = reading.value
    values = outcome_in(reading)
    loss = _mean_in_double(reading.losses)
    if not isinstance(returned, Outcome):
        samples = values.shape[1]
        bend = _black_box(values)
        slope = torch.full_like(values, 1.0 / samples)
        return Quadratic(values, loss, slope, lambda J: bend * J, samples, True, False, 1)
    if returned.kind not in KINDS:
        raise ValueError(
            f"{rule}: the outcome's loss is {returned.kind!r}, which is not known; use "
            "squared_error, cross_entropy, "
            "or outcome(values, loss) with any loss that is a convex function of the values"
        )
    samples = _samples(returned, replicas)
    slope, curve = KINDS[returned.kind](returned, values, samples)
    width = values.shape[1] // samples if values.shape[1] % samples == 0 else 0
    saturates = returned.kind != "squared_error"
    in_nats = returned.kind == "cross_entropy"
    return Quadratic(values, loss, slope, curve, samples, False, saturates, width, in_nats)


def _samples(returned: Outcome, replicas: int | None) -> int:
    """Number of samples of one replica: of losses, or else of rows of the values.

    The rows count where only the mean of the losses is known.
    """
    leading = 0 if replicas is None else 1
    if returned.losses.ndim == leading and returned.values.ndim > leading:
        return max(1, returned.values.shape[leading])
    return returned.losses.numel() // (replicas or 1)


def outcome_in(reading: Reading) -> Tensor:
    """The outcome o in a closure's value, shape `(R, n)`, in float32 or float64."""
    value = reading.value
    values = value.values if isinstance(value, Outcome) else value
    if not isinstance(values, Tensor):
        values = torch.tensor(values, dtype=torch.float32, device="cpu")
    if isinstance(value, Outcome) and value.kind == "cross_entropy":
        # Positions that are not scored must not look like an outcome that has saturated.
        values = values.masked_fill((value.truth == IGNORED)[..., None], 0.0)
    # A copy, since the outcome may be a weight itself, which the next perturbation changes.
    values = values.detach().reshape(len(reading.losses), -1).clone()
    return values if values.dtype in (torch.float32, torch.float64) else values.to(torch.float32)


def read_again(returned: Any, first: Tensor, rule: str, replicas: int | None) -> Tensor:
    """The outcome o at other weights, of the shape `(R, n)` that it had at first.

    Raises:
        TypeError: it is not a loss.
        ValueError: it has another shape.
    """
    found = outcome_in(read(returned, rule, replicas))
    if found.shape != first.shape:
        raise ValueError(
            f"{rule}: the closure returned {first.shape[1]} outcomes at first and "
            f"{found.shape[1]} at perturbed weights of the same step; it must use the same batch "
            "each time"
        )
    return found


def _mean_in_double(losses: Tensor) -> Tensor:
    """The mean of each row, where improvements near the end are lost in that of float32."""
    if losses.device.type in WITHOUT_DOUBLE:
        return as_double(losses).mean(1)
    return losses.detach().to(torch.float64).mean(1).cpu()


def _black_box(losses: Tensor) -> Tensor:
    """H of losses `(R, N)`, broadcast over directions: `(R, 1, N)`."""
    excess = losses - losses.min(1, keepdim=True).values.clamp(max=0.0)  # squares are not negative
    mean = excess.mean(1, keepdim=True)
    # Samples that are nearly solved must not outweigh the rest; a lone negative loss has no excess
    # but its size.
    unit = torch.where(mean > 0.0, excess + SOLVED * mean, losses.abs())
    return (0.5 / losses.shape[1] / (unit + torch.finfo(losses.dtype).tiny))[:, None]


Parts = tuple[Tensor, Callable[[Tensor], Tensor]]


def _squared_error(returned: Outcome, values: Tensor, samples: int) -> Parts:
    target = returned.truth.reshape(values.shape).to(values.dtype)
    return 2.0 / samples * (values - target), lambda J: 2.0 / samples * J


def _cross_entropy(returned: Outcome, values: Tensor, samples: int) -> Parts:
    classes = returned.values.shape[-1]
    p = values.unflatten(-1, (-1, classes)).softmax(-1)  # (R, N, C)
    labels = returned.truth.reshape(p.shape[:-1]).long()
    slope = (p - torch.nn.functional.one_hot(labels.clamp(min=0), classes)) / samples
    slope = slope.masked_fill((labels == IGNORED)[..., None], 0.0)

    def curve(J: Tensor) -> Tensor:
        weighted = p[:, None] * J.unflatten(-1, (-1, classes))
        return ((weighted - p[:, None] * weighted.sum(-1, keepdim=True)) / samples).flatten(-2)

    return slope.flatten(-2), curve


def _custom(returned: Outcome, values: Tensor, samples: int) -> Parts:
    shape = returned.values.shape
    replicas = values.shape[0]

    def total(v: Tensor) -> Tensor:
        return returned.truth(v.reshape(shape)).reshape(replicas, -1).mean(1).sum()

    slope, pull = torch.func.vjp(torch.func.grad(total), values)[:2]

    def curve(J: Tensor) -> Tensor:
        # The Hessian is symmetric, and that of a sum over replicas has no terms between them: all
        # share one product.
        return torch.func.vmap(lambda v: pull(v)[0], in_dims=1, out_dims=1)(J)

    return slope, curve


KINDS: dict[str, Callable[[Outcome, Tensor, int], Parts]] = {
    "squared_error": _squared_error,
    "cross_entropy": _cross_entropy,
    "custom": _custom,
}
