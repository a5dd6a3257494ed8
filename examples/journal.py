"""Ship a trained model as its initial weights and a journal of a few kB."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from dopaminergic import Dopamine2, Journal, replay, revert

BASE_SEED = 0  # the base: a public checkpoint, or anything else that both sides have


def base() -> nn.Sequential:
    torch.manual_seed(BASE_SEED)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps (500)")
    steps = parser.parse_args().steps
    file = Path(tempfile.mkdtemp()) / "digits.journal"
    digits: Any = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

    model = base()
    loss, halfway = 0.0, []
    optimizer = Dopamine2(model.named_parameters(), lr=6.0)
    # With resume=True a killed run goes on where its file ends; there is nothing else to save.
    with Journal(optimizer, file, resume=True) as journal:
        while journal.steps < steps:
            loss = optimizer.step(lambda: cross_entropy(model(x), y))
            if journal.steps == steps // 2:
                halfway = [p.detach().clone() for p in model.parameters()]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(
        f"loss {loss:.3f} after {steps} steps; journal {file.stat().st_size:,} bytes, weights "
        f"{weights:,} bytes"
    )

    received = base()  # on another machine: the same base, and the file
    replay(received, file)
    equal = all(
        torch.equal(p, q) for p, q in zip(model.parameters(), received.parameters(), strict=True)
    )
    print(f"rebuilt without a forward pass, bit for bit the same: {equal}")
    revert(received, file, steps // 2, base=base())
    equal = all(torch.equal(p, q) for p, q in zip(halfway, received.parameters(), strict=True))
    print(f"and as it was after {steps // 2} steps: {equal}")


if __name__ == "__main__":
    main()
