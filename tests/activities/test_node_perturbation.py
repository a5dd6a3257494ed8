"""NodePerturbation against closed forms: its mean, its variance, and how fast a readout learns.

Linear readout y = W x, E = mean of half squared errors. Sources: Werfel, Xie and Seung (2005) for
one input at a time; Zuege, Klos and Memmesheimer (PRX 2023) for trials over many time steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodePerturbation, outcome, squared_error
from optimizers import randn

SIGMA = 1e-5  # so that curvature does not count
ERRORS = 4.5  # standard errors: 1 in 150,000


class Learned(NamedTuple):
    """Weights of all replicas after one step from the same start, `(R, N, M)`."""

    weights: Tensor

    def factor(self) -> tuple[float, float]:
        """Mean square of the weights' errors, and its standard error; all targets are 0."""
        square = self.weights.square().sum((1, 2))
        return float(square.mean()), float(square.std()) / math.sqrt(len(square))


def one_step(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    replicas: int,
    lr: float,
    noise: str,
    first: int = 0,
) -> Learned:
    """Take one step with many seeds."""
    w = nn.Parameter(start.expand(replicas, *start.shape).clone())
    optimizer = NodePerturbation(
        [w], lr=lr, sigma=SIGMA, noise=noise, seed=list(range(first, first + replicas))
    )
    optimizer.step(lambda: loss(w))
    return Learned(w.detach())


def width(noise: str, outputs: int) -> int:
    """E |xi|^2 (xi.e)^2 / |e|^2: M for signs, M + 2 for normals."""
    return outputs if noise == "rademacher" else outputs + 2


NOISE = pytest.mark.parametrize("noise", ["rademacher", "gaussian"])


@NOISE
@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(5, 3, 1), (3, 2, 1), (4, 3, 6)])
def test_the_error_shrinks_with_new_inputs_as_werfel_seung_and_xie_say(
    noise: str, inputs: int, outputs: int, batch: int
) -> None:
    replicas = 4000
    x = randn(replicas, batch, inputs, seed=1)
    start = randn(inputs, outputs, seed=2)
    c = (inputs + 2) * width(noise, outputs) / batch + 1 - 1 / batch
    learned = one_step(
        lambda w: 0.5 * (x @ w).square().sum(-1), start, replicas=replicas, lr=1 / c, noise=noise
    )
    mean, error = learned.factor()
    expected = (1 - 1 / c) * float(start.square().sum())
    assert abs(mean - expected) < ERRORS * error
    assert error < 0.03 * expected


@NOISE
@pytest.mark.parametrize("optimal", [0.0, 0.7])
def test_trials_over_many_time_steps_learn_as_zuege_klos_and_memmesheimer_say(
    noise: str, optimal: float
) -> None:
    replicas, steps, inputs, outputs, power = 3000, 12, 4, 2, 1.5
    # Orthogonal inputs, and errors across all of them, which no weight can mend.
    basis = torch.linalg.qr(randn(steps, steps, seed=3))[0] * math.sqrt(steps)
    x = math.sqrt(power) * basis[:, :inputs]
    rest = math.sqrt(optimal) * basis[:, inputs : inputs + outputs]
    start = randn(inputs, outputs, seed=4)
    errors = x @ start + rest
    k = outputs * inputs
    lr = 0.7 / ((k + 2) * power)

    def loss(w: Tensor) -> Tensor:
        return 0.5 * (x @ w + rest).square().sum(-1).mean(-1)[:, None]

    learned = one_step(loss, start, replicas=replicas, lr=lr, noise=noise)
    a = 1 - 2 * lr * power + lr**2 * power**2 * (k + 2)
    floor = outputs * optimal / 2
    expected = a * power * start.square().sum() / 2 + lr**2 * power**2 * k * floor
    if noise == "rademacher":  # a fourth moment of 1, not 3, counts where there are few steps
        own = (errors.square().sum(1) * x.square().sum(1)).sum()
        expected = expected - lr**2 * power * own / steps**2
    mean, error = learned.factor()
    assert abs(power / 2 * mean - float(expected)) < ERRORS * power / 2 * error
    assert power / 2 * error < 0.03 * float(expected)


@NOISE
def test_the_estimate_of_a_readout_is_unbiased_and_as_noisy_as_theory_says(noise: str) -> None:
    replicas, batch, inputs, outputs = 4000, 5, 4, 3
    x, start = randn(batch, inputs, seed=5), randn(inputs, outputs, seed=6)
    target = randn(batch, outputs, seed=7)
    learned = one_step(
        lambda w: 0.5 * (x @ w - target).square().sum(-1),
        start,
        replicas=replicas,
        lr=1.0,
        noise=noise,
    )
    found = start - learned.weights
    errors = x @ start - target
    exact = x.T @ errors / batch
    spread = found.std(0) / math.sqrt(replicas)
    assert ((found.mean(0) - exact).abs() < ERRORS * spread).all()
    # About the exact mean, whose sampling error does not count then.
    square = (found - exact).square().sum((1, 2))
    sizes = x.square().sum(1) * errors.square().sum(1)
    expected = float(sizes.sum()) * (width(noise, outputs) - 1) / batch**2
    assert abs(float(square.mean()) - expected) < ERRORS * float(square.std()) / math.sqrt(replicas)


def hidden(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.tanh(x @ first) @ second


@NOISE
def test_the_estimates_of_all_layers_are_unbiased(noise: str) -> None:
    replicas, batch = 6000, 4
    x, target = randn(batch, 3, seed=8), randn(batch, 2, seed=9)
    starts = [randn(3, 4, seed=10) / 2, randn(4, 2, seed=11) / 2]
    weights = [nn.Parameter(s.expand(replicas, *s.shape).clone()) for s in starts]
    optimizer = NodePerturbation(
        weights, lr=1.0, sigma=SIGMA, noise=noise, seed=list(range(replicas))
    )
    target = target.expand(replicas, batch, 2)
    optimizer.step(lambda: squared_error(hidden(x, *weights), target))
    leaves = [s.clone().requires_grad_() for s in starts]
    exact = torch.autograd.grad((hidden(x, *leaves) - target[0]).square().mean(), leaves)
    for start, after, gradient in zip(starts, weights, exact, strict=True):
        found = start - after.detach()
        spread = found.std(0) / math.sqrt(replicas)
        assert ((found.mean(0) - gradient).abs() < ERRORS * spread).all()


@pytest.mark.parametrize("form", ["losses", "outcome", "squared_error"])
def test_all_forms_of_a_loss_are_one_loss(form: str) -> None:
    x, target = randn(6, 3, seed=8), randn(6, 2, seed=9)
    ends = []
    for name in ("losses", form):
        w = nn.Parameter(randn(3, 2, seed=10))

        def closure(name: str = name, w: Any = w) -> Any:
            y = x @ w
            if name == "losses":
                return (y - target).square().mean(-1)
            if name == "outcome":
                return outcome(y, lambda v: (v - target).square().mean(-1))
            return squared_error(y, target)

        optimizer = NodePerturbation([w], lr=0.05)
        loss = [optimizer.step(closure) for _ in range(10)]
        ends.append((loss, w.detach()))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_weight_decay_shrinks_weights_by_the_rate_times_it() -> None:
    x, target = randn(6, 3, seed=8), randn(6, 2, seed=9)
    ends = []
    start = randn(3, 2, seed=10)
    for decay in (0.0, 0.3):
        w = nn.Parameter(start.clone())
        optimizer = NodePerturbation([w], lr=0.05, weight_decay=decay)
        optimizer.step(lambda w=w: squared_error(x @ w, target))
        ends.append(w.detach())
    torch.testing.assert_close(ends[1], ends[0] - 0.05 * 0.3 * start)
