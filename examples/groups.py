"""Parameter groups: a frozen backbone, two groups with their own settings, and weight decay."""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dopaminergic import Dopamine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=1000, help="optimizer steps, two forward passes each (1000)"
    )
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(2, 64), nn.Tanh())
    hidden, head = nn.Linear(64, 8), nn.Linear(8, 2)
    model = nn.Sequential(backbone, hidden, nn.Tanh(), head)
    backbone.requires_grad_(False)  # frozen: neither perturbed nor changed, wherever it stands

    optimizer = Dopamine(
        [
            {"params": backbone.parameters()},
            {"params": hidden.parameters(), "lr": 2.0, "weight_decay": 0.01},
            {"params": head.parameters(), "sigma": 3e-3},
        ]
    )
    before = [p.clone() for p in model.parameters()]
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        x = torch.rand(128, 2, generator=generator) * 2 - 1
        y = (x.prod(1) > 0).long()
        losses.append(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y)))

    moved = [(p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True)]
    tenth = max(1, steps // 10)
    print(f"mean loss {sum(losses[:tenth]) / tenth:.3f} -> {sum(losses[-tenth:]) / tenth:.3f}")
    for (name, _), change in zip(model.named_parameters(), moved, strict=True):
        print(f"{name:10}  largest change {change:.4f}")
    print(f"learning rates: {[group['lr'] for group in optimizer.param_groups]}")


if __name__ == "__main__":
    main()
