"""Tiny networks whose losses have the same bits on each processor: products, sums in a fixed order,
quotients.

No matrix products, no functions such as tanh, and no sums of torch, whose order depends on the
processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dopaminergic import outcome, squared_error

WIDTH = 16  # inputs and hidden units; a power of 2
SAMPLES = 4
REPLICAS = 2


def numbers(*shape: int, seed: int) -> Tensor:
    """float64 multiples of 1/1024 in [-1/2, 1/2), without a generator."""
    count = 1
    for size in shape:
        count *= size
    places = torch.arange(count, dtype=torch.int64) + 7919 * seed
    scattered = (places * places * 31 + places * 40503) >> 5
    return ((scattered % 1024).double() / 1024 - 0.5).reshape(shape)


def total(x: Any) -> Any:
    """The sum over the last dimension, whose size is a power of 2, half by half."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def squashed(x: Any) -> Any:
    """x / (1 + |x|), in the place of a tanh."""
    return x / (1.0 + abs(x))


def wide(p: Tensor) -> Tensor:
    """The numbers of a parameter in float64; a parameter of that type itself, since that is what a
    user would take.
    """
    return p if p.dtype == torch.float64 else p.double()


class Network:
    """A hidden layer on four points, and its losses in all forms that a closure may return.

    Args:
        dtype: of the weights; everything else is float64.
        fleet: weights have a leading dimension of two replicas.
        strided: the first matrix is a transposed view.

    Attributes:
        parameters: by name.
        step: which of three batches is seen.
        draws: torch's generator moves the inputs in each evaluation.
    """

    def __init__(self, dtype: torch.dtype, *, fleet: bool = False, strided: bool = False) -> None:
        lead = (REPLICAS,) if fleet else ()
        first = numbers(*lead, WIDTH, WIDTH, seed=1).to(dtype)
        if strided:
            first = first.transpose(-1, -2).contiguous().transpose(-1, -2)
        self.parameters: dict[str, nn.Parameter] = {
            "first": nn.Parameter(first),
            "bias": nn.Parameter(numbers(*lead, WIDTH, seed=2).to(dtype)),
            "last": nn.Parameter(numbers(*lead, WIDTH, seed=3).to(dtype)),
        }
        self.fleet = fleet
        self.step = 0
        self.draws = False
        self._inputs = 2.0 * numbers(3, SAMPLES, WIDTH, seed=4)
        self._targets = numbers(3, SAMPLES, seed=5)

    def inputs(self) -> Tensor:
        """Four points of 16 numbers each; float64."""
        x = self._inputs[self.step % 3]
        if self.draws:
            x = x + torch.rand(SAMPLES, WIDTH, dtype=torch.float64) / 8
        return x

    def predictions(self) -> Tensor:
        """Of shape `(4,)` or, for a fleet, `(2, 4)`; float64."""
        first, bias, last = list(self.parameters.values())[:3]
        products = wide(first).unsqueeze(-3) * self.inputs().unsqueeze(-2)
        hidden = squashed(total(products) + wide(bias).unsqueeze(-2))
        return total(hidden * wide(last).unsqueeze(-2))

    def targets(self) -> Tensor:
        """Of the shape of the predictions."""
        targets = self._targets[self.step % 3]
        return targets.expand(REPLICAS, SAMPLES) if self.fleet else targets

    def samples(self) -> Tensor:
        """Squared errors, one for each point."""
        error = self.predictions() - self.targets()
        return error * error

    def number(self) -> Tensor:
        """Their mean."""
        return total(self.samples()) / SAMPLES

    def numpy(self) -> Any:
        """The mean, which leaves torch on its way."""
        mean = self.number().detach().numpy()
        return mean.copy() if self.fleet else float(mean)

    def squared(self) -> Any:
        """Predictions under the squared error."""
        return squared_error(self.predictions(), self.targets())

    def custom(self) -> Any:
        """Predictions under a loss that the library does not know."""
        targets = self.targets()

        def loss(values: Tensor) -> Tensor:
            error = values - targets
            return error * error * (1.0 + error * error / 4)

        return outcome(self.predictions(), loss)

    def closure(self, name: str) -> Callable[[], Any]:
        """The method of that name."""
        return getattr(self, name)
