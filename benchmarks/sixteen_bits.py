"""Test error of training in 16 bits over that of float32, equal passes and seeds.

It prints one JSON object.

    python benchmarks/sixteen_bits.py [--seeds 10] [--passes 20000] [--tasks digits]
                                      [--dtype bfloat16] [--out FILE]

Digits (test cross-entropy, perceptron 64-64-10, 128 images) and Lorenz (test NRMSE of the next
sample, `nn.RNN` 3-16-3, 8 sequences of 50). Weights, activations and outcomes have 16 bits; losses
are averaged in float32. Errors are medians over seeds; `ratio` has a 95 % interval by bootstrap
over seeds, which both share. `rounded` is the error of networks that were trained in float32, once
they compute in 16 bits: what the numbers alone cost, without any training in them. `least` is that
of the right answers as such numbers, below which no network that gives such numbers comes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import Forecaster
from printing import publish, say
from torch import Tensor, nn

from dopaminergic import Dopamine, VectorDopamine, cross_entropy, squared_error
from dopaminergic.lab.statistics import interval
from dopaminergic.lab.tasks import make_task

OPTIMIZERS = {"dopamine": Dopamine, "vector": VectorDopamine}
BOOTSTRAP = 10_000  # samples


class Digits:
    """Images of digits, 1,297 for training."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.x, self.y = (
            torch.tensor(images / 16, dtype=torch.float32)[order],
            torch.tensor(labels)[order],
        )

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(1297, (128,), generator=generator)
        return self.x[rows], self.y[rows]

    def outcome(self, prediction: Tensor, target: Tensor) -> Any:
        return cross_entropy(prediction, target)

    def error(self, predict: Callable[[Tensor], Tensor]) -> float:
        return float(nn.functional.cross_entropy(predict(self.x[1297:]).float(), self.y[1297:]))

    def least(self, _: torch.dtype) -> float:
        return 0.0  # logits may be as large as they like


class Lorenz:
    """The next of 50 samples."""

    def __init__(self) -> None:
        task: Any = make_task("lorenz")
        self.series, self.train = task.series.float(), int(0.7 * len(task.series))

    def model(self) -> nn.Module:
        model = Forecaster()
        model.cell, model.readout = nn.RNN(3, 16, batch_first=True), nn.Linear(16, 3)
        return model

    def cut(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.series[starts[:, None] + torch.arange(51)]
        return rows[:, :-1], rows[:, 6:]

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.cut(torch.randint(self.train - 52, (8,), generator=generator))

    def outcome(self, prediction: Tensor, target: Tensor) -> Any:
        return squared_error(prediction[:, 5:].float(), target)

    def tested(self) -> tuple[Tensor, Tensor]:
        return self.cut(torch.linspace(self.train, len(self.series) - 52, 48).long())

    def error(self, predict: Callable[[Tensor], Tensor]) -> float:
        x, y = self.tested()
        return float((predict(x)[:, 5:].float() - y).square().mean().sqrt())

    def least(self, dtype: torch.dtype) -> float:
        y = self.tested()[1]
        return float((y.to(dtype).float() - y).square().mean().sqrt())


TASKS = {"digits": Digits, "lorenz": Lorenz}


def train(task: Any, optimizer: str, seed: int, passes: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    model = task.model().to(dtype)
    opt, generator = (
        OPTIMIZERS[optimizer](model.parameters(), seed=seed),
        torch.Generator().manual_seed(seed),
    )
    while opt.forward_passes + opt.next_passes <= passes:
        x, y = task.batch(generator)
        x = x.to(dtype)
        opt.step(lambda x=x, y=y: task.outcome(model(x), y))
    return model


def errors(task: Any, models: list[nn.Module], dtype: torch.dtype) -> np.ndarray:
    def error(model: nn.Module) -> float:
        model = copy.deepcopy(model).to(dtype)
        return task.error(lambda x: model(x.to(dtype)))

    with torch.no_grad():
        return np.array([error(model) for model in models])


def compared(
    task: Any, optimizer: str, seeds: int, passes: int, dtype: torch.dtype
) -> dict[str, Any]:
    full, half = (
        [train(task, optimizer, seed, passes, kind) for seed in range(seeds)]
        for kind in (torch.float32, dtype)
    )
    exact, found = errors(task, full, torch.float32), errors(task, half, dtype)
    samples = np.random.default_rng(0).integers(seeds, size=(BOOTSTRAP, seeds))
    return {
        "float32": float(np.median(exact)),
        str(dtype).removeprefix("torch."): float(np.median(found)),
        "ratio": float(np.median(found) / np.median(exact)),
        "interval": interval(np.median(found[samples], 1) / np.median(exact[samples], 1)),
        "rounded": float(np.median(errors(task, full, dtype))),
        "least": task.least(dtype),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="runs of each (10)")
    parser.add_argument(
        "--passes", type=int, default=20_000, help="forward passes of a run (20000)"
    )
    parser.add_argument(
        "--tasks", default="", help="only tasks whose name starts so, separated by commas"
    )
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], default="bfloat16", help="(bfloat16)"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in filter(lambda name: name.startswith(tuple(options.tasks.split(","))), TASKS):
        for optimizer in OPTIMIZERS:
            found = compared(
                TASKS[name](),
                optimizer,
                options.seeds,
                options.passes,
                getattr(torch, options.dtype),
            )
            say(name, optimizer, found)
            results[f"{name}, {optimizer}"] = found
    what = (__doc__ or "").split("\n")[0]
    publish(what, results, options.out, seeds=options.seeds, passes=options.passes)


if __name__ == "__main__":
    main()
