"""Small problems that every optimizer must solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Dopamine, Dopamine2
from optimizers import Row, perceptron, randn


def test_a_quadratic_goes_down_a_hundredfold(row: Row) -> None:
    scales = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    w = nn.Parameter(randn(10, seed=1))
    optimizer = row.make([w], **row.learns)

    def loss() -> Tensor:
        return (scales * w * w).mean()

    before = float(loss().detach())
    while optimizer.forward_passes < 3000:
        optimizer.step(loss)
    assert float(loss().detach()) < before / 100


def xor(hidden: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Inputs +-1, tanh and sigmoid; N(0, 1) in, N(0, 1/h) out, biases 0, as in algorithms.md."""
    model = perceptron(2, hidden, 1)
    parameters = list(model.parameters())
    with torch.no_grad():
        parameters[0].copy_(randn(hidden, 2, seed=seed))
        parameters[2].copy_(randn(1, hidden, seed=seed + 50) / hidden**0.5)
        parameters[1].zero_()
        parameters[3].zero_()
    x = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    return model, x, torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)


def passes_to_solve_xor(row: Row, seed: int, budget: int, **settings: Any) -> int | None:
    model, x, y = xor(8, seed)
    optimizer = row.make(model.parameters(), seed=seed, **settings)

    def loss() -> Tensor:
        return ((torch.sigmoid(model(x)) - y) ** 2).mean()

    while optimizer.forward_passes < budget:
        if optimizer.step(loss) < 0.01:
            return optimizer.forward_passes
    return None


XOR = {
    "WeightPerturbation": {"lr": 1.0},
    "SPSA": {"lr": 1.0},
    "EvolutionStrategy": {"lr": 0.02, "sigma": 0.1},
}


def test_xor_is_solved(row: Row) -> None:
    """2-8-1, from five starts, within the 5,000 passes of algorithms.md."""
    solved = [passes_to_solve_xor(row, seed, 5000, **XOR.get(row.name, {})) for seed in range(5)]
    assert None not in solved, solved


@pytest.mark.parametrize("make", [Dopamine, Dopamine2])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_tuning_for_the_unit_of_the_loss(make: Any, scale: float) -> None:
    w = nn.Parameter(randn(10, seed=1))
    optimizer = make([w])
    before = float((w * w).mean().detach())
    while optimizer.forward_passes < 3000:
        optimizer.step(lambda: scale * (w * w).mean())
    assert float((w * w).mean().detach()) < before / 100


def test_minibatches_are_no_obstacle(row: Row) -> None:
    x, true = randn(256, 5, seed=3), randn(5, seed=4)
    y, w = x @ true, nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = row.make([w], **row.learns)
    step = 0
    while optimizer.forward_passes < 4000:
        batch = torch.arange(step, step + 16) % 256
        optimizer.step(lambda batch=batch: (x[batch] @ w - y[batch]) ** 2)
        step += 16
    assert float(((x @ w.detach() - y) ** 2).mean() / (y**2).mean()) < 0.02
