"""VectorDopamine: batches of few samples, drawn afresh, and the same few again."""

from __future__ import annotations

import torch
from torch import nn

from dopaminergic import VectorDopamine, squared_error


def wave(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x.sum(1, keepdim=True) / 2)


def test_noisy_batches_of_eight_do_not_make_the_error_grow() -> None:
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = VectorDopamine(model.parameters())
    for _ in range(300):
        x = torch.randn(8, 5, generator=draws)
        y = wave(x) + 0.3 * torch.randn(8, 1, generator=draws)
        optimizer.step(lambda x=x, y=y: squared_error(model(x), y))
    x = torch.randn(1000, 5, generator=draws)
    with torch.no_grad():
        error = (model(x) - wave(x)).square().mean() / wave(x).var()
    assert error < 0.5
