"""Gradient accumulation without gradients: a closure averages over micro-batches."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dopaminergic import Dopamine2

MICRO = 64  # samples that are evaluated at once


def train(
    model: nn.Module, closure_of: Callable[..., Callable[[], Tensor]], steps: int
) -> list[float]:
    """Losses of training on 512 samples a step; `closure_of` says how they are evaluated."""
    optimizer = Dopamine2(model.parameters(), seed=1)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        x = torch.rand(512, 2, generator=generator, dtype=torch.float64) * 2 - 1
        y = torch.sin(3 * x[:, :1]) * x[:, 1:]
        losses.append(optimizer.step(closure_of(model, x, y)))
    return losses


def at_once(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: mse_loss(model(x), y)


def in_micro_batches(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        parts = zip(x.split(MICRO), y.split(MICRO), strict=True)
        # Sum what is summed and divide once, so that a last micro-batch that is smaller gets its
        # due weight.
        return (
            torch.stack([mse_loss(model(a), b, reduction="sum") for a, b in parts]).sum()
            / y.numel()
        )

    return closure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (600)")
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    twin = copy.deepcopy(model)
    large, micro = train(model, at_once, steps), train(twin, in_micro_batches, steps)
    apart = max(
        (p - q).abs().max().item()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
    print(f"512 samples at once:      loss {large[0]:.4f} -> {large[-1]:.4f}")
    print(f"in micro-batches of {MICRO}:   loss {micro[0]:.4f} -> {micro[-1]:.4f}")
    print(f"largest difference of a weight: {apart:.1e}")


if __name__ == "__main__":
    main()
