"""The weight decay that VectorDopamine takes from the noise of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import VectorDopamine, cross_entropy, outcome, squared_error
from dopaminergic.evidence import Penalised, fitted
from dopaminergic.quadratic import quadratic
from dopaminergic.subspace import VectorState, again, propose, subspace
from optimizers import copies, randn

DOUBLE = torch.float64


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def span(squares: float = 4.0, by_chance: float | None = 0.5) -> Penalised:
    z = randn(1, 3, 7, seed=1)
    w = randn(1, 7, seed=2)
    inner = (z @ w[..., None])[..., 0]
    return Penalised(
        inner, z @ z.mT, numbers(squares), None if by_chance is None else numbers(by_chance)
    )


def test_the_gain_is_the_difference_of_the_squares() -> None:
    z, w, c = randn(1, 3, 7, seed=1), randn(1, 7, seed=2), randn(1, 3, seed=3)
    slope, curvature = span().gain(c, numbers(0.3))
    after = w - (c[:, None] @ z)[:, 0]
    fallen = 0.3 * (w.square().sum(1) - after.square().sum(1)) / 2
    torch.testing.assert_close(slope - curvature / 2, fallen)


def test_the_decay_is_what_chance_fits_times_the_share_of_noise() -> None:
    huge = 1e6 * torch.eye(3, dtype=DOUBLE)[None]
    assert float(span().strength(numbers(0.1), numbers(0.4), huge)) == 2 * 0.25 * 0.5 / 4
    unknown = span(by_chance=None)
    assert float(unknown.strength(numbers(0.1), numbers(0.4), huge)) == 2 * 0.25 * 0.1 / 4


@pytest.mark.parametrize(("noise", "slope"), [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.0), (math.nan, 1.0)])
def test_no_noise_asks_for_no_decay(noise: float, slope: float) -> None:
    found = span().strength(numbers(noise), numbers(slope), torch.eye(3, dtype=DOUBLE)[None])
    assert float(found) == 0.0


def test_weights_at_zero_have_at_most_the_mean_curvature() -> None:
    penalised = span(squares=0.0)
    products = torch.eye(3, dtype=DOUBLE)[None]
    lengths = penalised.gram[0].diagonal().sum()
    found = penalised.strength(numbers(0.1), numbers(0.4), products)
    torch.testing.assert_close(found, (3.0 / lengths)[None])


def test_what_chance_fits_is_known_of_squares_and_of_nats() -> None:
    o, y = randn(1, 12, 2, seed=1), randn(1, 12, 2, seed=2)
    squares = quadratic(squared_error(o, y), "Rule", 1)
    torch.testing.assert_close(fitted(squares, 4), 2 * 4 / 20 * squares.loss)
    labels = (torch.arange(12) % 2)[None]
    nats = fitted(quadratic(cross_entropy(o, labels), "Rule", 1), 4)
    assert nats is not None
    assert nats.tolist() == [4 / 12]
    sure = quadratic(cross_entropy(4.0 * nn.functional.one_hot(labels), labels), "Rule", 1)
    left = fitted(sure, 4)
    assert left is not None
    assert left.tolist() == sure.loss.tolist() == [pytest.approx(math.log1p(math.exp(-4.0)), 1e-5)]
    custom = outcome(o, lambda o: (o - y).square().sum(-1))
    assert fitted(quadratic(custom, "Rule", 1), 4) is None


@pytest.mark.parametrize(
    ("gap", "samples", "share"),
    [(0.0, 32, 1.0), (0.05, 32, 1.0 - 0.05 * 32**0.5), (0.2, 32, 0.0), (9.0, 32, 0.0)],
)
def test_fresh_batches_of_few_samples_have_no_decay(gap: float, samples: int, share: float) -> None:
    """As a batch that comes again has none of this gap between it and the next."""
    one = numbers(1.0)
    state = VectorState(*[0.0 * one] * len(VectorState._fields))
    state = state._replace(last_loss=one, gap=gap * one, comparisons=one)
    assert float(again(state, samples)) == pytest.approx(share)


@pytest.mark.parametrize(("samples", "decays"), [(8, False), (9, True)])
def test_samples_that_are_many_beside_the_directions_have_a_decay_all_the_same(
    samples: int, decays: bool
) -> None:
    """Since they may be drawn from a small table."""
    o, y = randn(1, samples, 1, seed=1), randn(1, samples, 1, seed=2)
    loss = quadratic(squared_error(o, y), "Rule", 1)
    space = subspace(randn(1, 3, samples, seed=3), loss, torch.eye(3, dtype=DOUBLE)[None])
    one = numbers(1.0)
    state = VectorState(*[one] * len(VectorState._fields))
    plain, found = propose(space, state), propose(space, state, span())
    assert torch.equal(plain.coefficients, found.coefficients) != decays
    same = propose(space, state._replace(gap=numbers(0.0)), span())
    assert not torch.equal(plain.coefficients, same.coefficients)


def trained(unit: float, samples: int = 32) -> list[Tensor]:
    x, y = randn(samples, 4, seed=5), randn(samples, 1, seed=6)
    w = nn.Parameter(0.1 * randn(4, 1, seed=7))
    optimizer = VectorDopamine([w], directions=4)
    for _ in range(5):
        optimizer.step(lambda: outcome(x @ w, lambda o: unit * (o - y).square().sum(-1)))
    return copies([w])


def test_the_unit_of_a_loss_changes_no_decay() -> None:
    torch.testing.assert_close(trained(1.0), trained(2.0**40), rtol=1e-9, atol=1e-9)


def test_pure_noise_leaves_smaller_weights_than_least_squares() -> None:
    x, y = randn(32, 4, seed=5), randn(32, 1, seed=6)
    w = nn.Parameter(0.1 * randn(4, 1, seed=7))
    optimizer = VectorDopamine([w], directions=4)
    for _ in range(40):
        optimizer.step(lambda: squared_error(x @ w, y))
    exact = torch.linalg.lstsq(x, y).solution
    assert float(w.detach().norm()) < 0.9 * float(exact.norm())


@pytest.mark.parametrize("samples", [64, 80])
def test_few_samples_without_noise_are_fitted_all_the_same(samples: int) -> None:
    x = randn(samples, 4, dtype=torch.float32)
    y = x.sum(1, keepdim=True).sin()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = VectorDopamine(model.parameters())
    loss = 1.0
    while optimizer.forward_passes < 2000:
        loss = optimizer.step(lambda: squared_error(model(x), y))
    assert loss < 1e-2
