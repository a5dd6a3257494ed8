"""Dopamine where Adam was: a training loop on handwritten digits, without a backward pass."""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from dopaminergic import Dopamine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=6000, help="optimizer steps, two forward passes each (6000)"
    )
    steps = parser.parse_args().steps

    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pixels), generator=generator)
    images, labels = (
        torch.tensor(pixels / 16, dtype=torch.float32)[order],
        torch.tensor(digits)[order],
    )
    train, test = slice(0, 1297), slice(1297, None)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    loss_function = nn.CrossEntropyLoss()
    optimizer = Dopamine(model.parameters())  # was: torch.optim.Adam(model.parameters())

    def test_loss() -> float:
        with torch.no_grad():
            return loss_function(model(images[test]), labels[test]).item()

    print(f"step     0  test loss {test_loss():.3f}")
    for step in range(1, steps + 1):
        chosen = torch.randint(1297, (128,), generator=generator)
        x, y = images[train][chosen], labels[train][chosen]
        # was: loss = loss_function(model(x), y); optimizer.zero_grad(); loss.backward();
        # optimizer.step()
        optimizer.step(lambda x=x, y=y: loss_function(model(x), y))
        if step % max(1, steps // 5) == 0:
            print(f"step {step:5d}  test loss {test_loss():.3f}")

    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(
        f"test accuracy {accuracy:.1%} after {optimizer.forward_passes:,} forward passes and no "
        "backward pass"
    )


if __name__ == "__main__":
    main()
