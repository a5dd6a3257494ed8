"""Time of a training step in units of two forward passes, one thread, interleaved.

It prints one JSON object.

    python benchmarks/step_cost.py [--rounds 21] [--models xor,rnn] [--out FILE]

A forward pass is the loss called under `torch.no_grad()` and read as a number, as anyone does who
looks at it. Beside the methods stand two and three bare passes over the weights, `w.mul_(1)`, with
two forward passes: as many as a step takes to perturb and to come back, and SPSA and two-sided
rules to go to the other side as well. No arithmetic in place can be below them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from models import MODELS, build
from printing import publish, say

from dopaminergic.lab.costs import BACKWARD, FORWARD, stepper, time_ratios


def bare(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor], passes: int
) -> Callable[[], int]:
    """Two forward passes, each after a pass over the weights, and what is left of the `passes`."""

    def multiply() -> None:
        for p in model.parameters():
            p.mul_(1.0)

    @torch.no_grad()
    def step() -> int:
        for _ in range(2):
            multiply()
            float(loss())
        for _ in range(passes - 2):
            multiply()
        return 2

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each (21)")
    parser.add_argument(
        "--models", default="", help="only models whose name starts so, separated by commas"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name for name in MODELS if name.startswith(tuple(options.models.split(",")))]
    results = {}
    for name in chosen:
        say(name)
        steps = {}
        for optimizer in ("dopamine", "dopamine2", "wp", "spsa", *BACKWARD):
            model, loss = build(name)
            steps[optimizer] = stepper(optimizer, model, loss)
            if optimizer in FORWARD and optimizer == "wp":
                model, loss = build(name)
                steps["wp, Gaussian"] = stepper(optimizer, model, loss, noise="gaussian")
        for passes in (2, 3):
            steps[f"{passes} bare passes"] = bare(*build(name), passes)
        results[name] = time_ratios(steps, build(name)[1], options.rounds)
    publish("time of a step / time of two forward passes", results, options.out)


if __name__ == "__main__":
    main()
