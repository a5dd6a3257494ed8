"""Time of adding noise to 30 million weights, in units of an in-place pass over them.

It prints one JSON object.

    python benchmarks/noise.py [--weights 30000000] [--rounds 15] [--out FILE]

The pass is `W.mul_(c)` on float32 weights with one thread, whatever the noise is added to. The
methods take turns; slow ones are measured on fewer weights and scaled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from printing import publish, say

from dopaminergic.noise import Combination, Term

SLOWER = 10  # how many times fewer weights the slow methods get
STEP = 2.0**-30


def combination(
    w: torch.Tensor, kind: str, *, threads: int = 1, update: bool = False, torch_path: bool = False
) -> Callable[[], None]:
    """W <- W + c z of the library; an update takes z back first and ends on a grid."""
    combine, steps = Combination([w], [0], np.array([1], np.uint64), kind), iter(range(1 << 31))
    if torch_path:
        combine.fast = None
    term: list[Term] = [(0, [STEP])]
    back: list[Term] = [(0, [-STEP])] if update else []

    def work() -> None:
        torch.set_num_threads(threads)
        combine(term, None, next(steps), undo=back, grids=[STEP] if update else None)
        torch.set_num_threads(1)

    return work


def in_place(w: torch.Tensor) -> Callable[[], None]:
    def work() -> None:
        w.mul_(1.0)

    return work


def add_randn(w: torch.Tensor) -> Callable[[], None]:
    def work() -> None:
        w.add_(torch.randn(w.shape), alpha=STEP)

    return work


def mezo(w: torch.Tensor) -> Callable[[], None]:
    """One of the moves of MeZO (Malladi et al. 2023, algorithm 1) in the form of its published code."""

    def work() -> None:
        torch.manual_seed(0)
        z = torch.normal(mean=0.0, std=1.0, size=w.size(), device=w.device, dtype=w.dtype)
        w.data = w.data + z * STEP

    return work


def methods(n: int) -> dict[str, tuple[Callable[[], None], int]]:
    """Each with the number of weights that it goes over."""
    few, side = max(1, n // SLOWER), int(n**0.5)
    convolution = torch.randn(max(1, n // 4608), 512, 3, 3).contiguous(
        memory_format=torch.channels_last
    )
    w, half, fewer = torch.randn(n), torch.randn(n).bfloat16(), torch.randn(few)
    return {
        "in-place pass": (in_place(w), n),
        "Rademacher": (combination(w, "rademacher"), n),
        "Rademacher, taken back and updated": (combination(w, "rademacher", update=True), n),
        "Rademacher, 2 threads": (combination(w, "rademacher", threads=2), n),
        "Rademacher, bfloat16": (combination(half, "rademacher"), n),
        "Rademacher, transposed": (
            combination(torch.randn(side, side).t(), "rademacher"),
            side * side,
        ),
        "Rademacher, channels last": (combination(convolution, "rademacher"), convolution.numel()),
        "Gaussian": (combination(w, "gaussian"), n),
        "Gaussian, 2 threads": (combination(w, "gaussian", threads=2), n),
        "Rademacher without numba": (combination(fewer, "rademacher", torch_path=True), few),
        "Gaussian without numba": (combination(fewer, "gaussian", torch_path=True), few),
        "bfloat16 without numba": (
            combination(fewer.bfloat16(), "rademacher", torch_path=True),
            few,
        ),
        "torch.randn and add_": (add_randn(fewer.clone()), few),
        "MeZO's expression": (mezo(fewer.clone()), few),
    }


def ratios(times: list[float], base: list[float]) -> dict[str, float]:
    """Median and middle half over rounds, and the ratio of the shortest times, which another program slows least."""
    found = sorted(t / b for t, b in zip(times, base, strict=True))
    low, high = found[len(found) // 4], found[-1 - len(found) // 4]
    return {"median": median(found), "low": low, "high": high, "shortest": min(times) / min(base)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--weights", type=int, default=30_000_000, help="number of weights (30 million)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (15)")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = methods(options.weights)
    times: dict[str, list[float]] = {name: [] for name in everything}
    for number in range(options.rounds + 1):  # the first compiles and is not counted
        say("round", number, "of", options.rounds)
        for name, (work, n) in everything.items():
            began = time.perf_counter()
            work()
            if number:
                times[name].append((time.perf_counter() - began) / n)
    results = {name: ratios(measured, times["in-place pass"]) for name, measured in times.items()}
    what = "time of adding noise / time of an in-place pass, per weight"
    publish(what, results, options.out, weights=options.weights)


if __name__ == "__main__":
    main()
