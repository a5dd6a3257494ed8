"""A spiking network with hard thresholds learns which of two channels spikes first."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from dopaminergic import Dopamine

TIME, LEAK, NEURONS = 16, 0.9, 16


def spiking(model: nn.ModuleDict, x: Tensor) -> Tensor:
    """Logits `(batch,)` from spike counts of leaky neurons that hear `x` and each other."""
    potential = spikes = count = torch.zeros(x.shape[1], NEURONS)
    for now in x:
        potential = LEAK * potential + model["inputs"](now) + model["recurrent"](spikes)
        spikes = (potential > 1).float()  # a step: its derivative is zero wherever there is one
        potential, count = potential - spikes, count + spikes
    return model["readout"](count / TIME)[:, 0]


def patterns(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spikes `(time, n, 2)` of two channels, and whether the first leads `(n,)`."""
    starts = torch.rand(n, 2, generator=generator) * TIME / 2
    active = torch.arange(TIME)[:, None, None] >= starts
    spikes = active & (torch.rand(TIME, n, 2, generator=generator) < 0.7)
    return spikes.float(), (starts[:, 0] < starts[:, 1]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of nine forward passes each (600)")
    parser.add_argument(
        "--readout-only", action="store_true", help="train nothing but the readout, to compare"
    )
    options = parser.parse_args()

    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"inputs": nn.Linear(2, NEURONS), "recurrent": nn.Linear(NEURONS, NEURONS, bias=False)}
    )
    model["readout"] = nn.Linear(NEURONS, 1)
    trained, generator = (
        model["readout"] if options.readout_only else model,
        torch.Generator().manual_seed(0),
    )
    optimizer = Dopamine(trained.parameters(), sigma=0.03, directions=8)
    for step in range(options.steps):
        x, y = patterns(128, generator)
        loss = optimizer.step(lambda x=x, y=y: cross_entropy(spiking(model, x), y))
        if step % max(1, options.steps // 6) == 0:
            print(f"step {step:4d}  loss {loss:.3f}")
    x, y = patterns(2000, generator)
    logits = spiking(model, x)
    cross_entropy(logits, y).backward()  # only to show that it does not get far
    print(f"gradient of the input weights by backpropagation: {model['inputs'].weight.grad}")
    print(f"right on {((logits > 0) == y.bool()).float().mean():.1%} of new patterns")


if __name__ == "__main__":
    main()
