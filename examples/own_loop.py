"""A loop of one's own: probe and step apart, a schedule, and a checkpoint that goes on exactly."""

from __future__ import annotations

import argparse
import io
import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from dopaminergic import Dopamine2

X = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def parts(steps: int) -> dict[str, Any]:
    """A model, its optimizer and its schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    optimizer = Dopamine2(model.parameters())
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": CosineAnnealingLR(optimizer, T_max=steps, eta_min=1.0),
    }


def train(model: nn.Module, optimizer: Dopamine2, schedule: CosineAnnealingLR, steps: int) -> float:
    loss = math.nan
    for _ in range(steps):
        # The two halves: a framework may compute the loss in one place and call step() in another.
        loss = optimizer.probe(lambda: mse_loss(model(X), Y))
        optimizer.step()
        schedule.step()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (1000)")
    steps = parser.parse_args().steps

    whole, first, second = parts(steps), parts(steps), parts(steps)
    start, end = train(**whole, steps=1), train(**whole, steps=steps - 1)
    train(**first, steps=steps // 2)
    file = io.BytesIO()  # or a path
    torch.save({name: part.state_dict() for name, part in first.items()}, file)
    file.seek(0)
    for name, state in torch.load(file, weights_only=True).items():
        second[name].load_state_dict(state)
    train(**second, steps=steps - steps // 2)
    pairs = zip(whole["model"].parameters(), second["model"].parameters(), strict=True)
    print(f"loss {start:.4f} -> {end:.4f}")
    print(
        "stopped and resumed half-way: weights bit for bit the same: "
        f"{all(torch.equal(p, q) for p, q in pairs)}"
    )


if __name__ == "__main__":
    main()
