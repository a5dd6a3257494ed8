"""VectorDopamine: what it learns, and what it does where no step helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dopaminergic import VectorDopamine, cross_entropy, squared_error
from dopaminergic.lab.tasks import make_task
from fits import DOUBLE
from optimizers import perceptron, randn


def test_linear_regression_is_solved_in_a_few_steps() -> None:
    x, true = randn(64, 10, seed=3), randn(10, seed=4)
    w = nn.Parameter(torch.zeros(10, dtype=DOUBLE))
    optimizer = VectorDopamine([w], directions=10)
    for _ in range(25):
        optimizer.step(lambda: squared_error(x @ w, x @ true))
    assert float((w.detach() - true).norm() / true.norm()) < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_continuous_xor_is_classified_in_bounded_passes(seed: int) -> None:
    x = 2 * torch.rand(128, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) - 1
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = perceptron(2, 16, 2, seed=seed)
    optimizer = VectorDopamine(model.parameters(), seed=seed)
    while optimizer.forward_passes + optimizer.next_passes <= 4000:
        optimizer.step(lambda: cross_entropy(model(x), labels))
    assert float((model(x).argmax(1) == labels).double().mean()) > 0.95


def test_local_minima_of_a_small_network_are_left() -> None:
    """A quarter of these networks would get stuck."""
    seeds, task = list(range(24)), make_task("xor-2-2-1")
    model, batch = task.build(seeds), task.batch(torch.tensor(seeds), 0)
    optimizer = VectorDopamine(model.parameters(), seed=seeds)
    least, unsolved_and_wide = torch.full((24,), torch.inf, dtype=DOUBLE), False
    while optimizer.forward_passes + optimizer.next_passes <= 5000 and bool((least >= 0.01).any()):
        least = torch.minimum(least, optimizer.step(lambda: task.outcome(model, batch)))
        unsolved_and_wide |= bool(((least >= 0.01) & (optimizer._progress.rule.reach > 1.0)).any())
    assert unsolved_and_wide
    assert bool((least < 0.01).all())


def test_where_no_step_helps_a_far_better_copy_is_taken() -> None:
    """Flat but for a hole that is too far for a perturbation of the usual length."""
    w = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    optimizer = VectorDopamine([w], directions=2)
    slope = lambda: torch.where(w.norm() < 1.0, 1.0, -0.1)  # noqa: E731
    loss = 1.0
    for _ in range(40):
        loss = optimizer.step(
            lambda: squared_error(1.0 + slope() * w.square().sum(), torch.zeros((), dtype=DOUBLE))
        )
    assert float(w.detach().norm()) > 1.0
    assert loss < 1.0


def test_large_models_come_back_from_a_bad_step() -> None:
    """A lone number tells little: the proposal is bad, and hundreds of times too long."""
    torch.manual_seed(0)
    weights = nn.Parameter(0.05 * torch.randn(300_000))
    before, optimizer = (
        weights.detach().clone(),
        VectorDopamine([weights], directions=8, damping=1e-6),
    )
    # Perturbations move each weight by 2e-5, any step by more, and every step looks bad.
    optimizer.step(
        lambda: (weights - 1).square().mean() + 1e6 * ((weights - before).abs().amax() > 1e-3)
    )
    torch.testing.assert_close(weights.detach(), before, rtol=0, atol=5e-7)


def test_large_models_take_short_steps() -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(0.05 * torch.randn(300_000))
    before, optimizer = (
        weights.detach().clone(),
        VectorDopamine([weights], directions=8, damping=1e-6),
    )
    optimizer.step(
        lambda: (weights - 1).square().mean() - ((weights - before).abs().amax() > 1e-3).float()
    )
    assert 0.01 < float((weights.detach() - before).square().mean().sqrt()) <= 0.1


def test_what_is_not_scored_has_no_part_in_a_run() -> None:
    """Padded sequences: whatever the model says there, the weights are the same."""
    x, labels = randn(12, 3, seed=1), torch.arange(12) % 3
    labels[8:] = -100
    ends = []
    for padding in (0.0, 5.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3, dtype=torch.float64)
        inputs = torch.cat([x[:8], torch.full_like(x[8:], padding)])
        optimizer = VectorDopamine(model.parameters(), seed=2)
        losses = [optimizer.step(lambda: cross_entropy(model(inputs), labels)) for _ in range(15)]  # noqa: B023
        assert losses[-1] < 0.8 * losses[0]
        ends.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
