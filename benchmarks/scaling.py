"""A calculation, not a measurement: the time of a step on many ranks, after docs/scaling.md.

    python benchmarks/scaling.py [--ranks 1000] [--weights 1e11] [--directions 1000] ...

Every number it starts from can be given; the defaults are those of a machine with 8 GPUs a model.
"""

from __future__ import annotations

import argparse


def step(
    *,
    ranks: int,
    weights: float,
    directions: int,
    per_model: int,
    tokens: float,
    flops: float,
    bandwidth: float,
    draws: float,
    hop: float,
) -> dict[str, float]:
    """Seconds of each part of a step, on the rank that has the most to do; see `main` for the arguments."""
    copies = max(1, ranks // per_model)
    evaluations = -(-(directions + 1) // copies)
    held = weights / per_model  # weights of one rank, 2 bytes each
    move = 4 * held / bandwidth + held / draws  # read, add a direction, write
    return {
        "forward passes": evaluations * 2 * weights * tokens / (flops * per_model),
        "perturbing, once for each evaluation": evaluations * move,
        "update, all K directions for every weight": 4 * held / bandwidth
        + directions * held / draws,
        # A ring, whose hops follow each other; all that a rank receives is a few numbers of each
        # other rank.
        "exchange of the losses": (ranks - 1) * hop + 8 * evaluations * ranks / 1e9,
        "hash, a hundredth of it": 20 * held / bandwidth / 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--weights", type=float, default=1e11)
    parser.add_argument("--directions", type=int, default=1000)
    parser.add_argument(
        "--per-model", type=int, default=8, help="ranks that hold one copy of the model (8)"
    )
    parser.add_argument("--tokens", type=float, default=4096, help="in a batch (4096)")
    parser.add_argument(
        "--flops",
        type=float,
        default=4e14,
        help="operations that one rank reaches, a second (4e14)",
    )
    parser.add_argument(
        "--bandwidth", type=float, default=3e12, help="of its memory, bytes a second (3e12)"
    )
    parser.add_argument(
        "--draws",
        type=float,
        default=5e12,
        help="signs drawn and added, a second (5e12, estimated)",
    )
    parser.add_argument(
        "--hop", type=float, default=2e-5, help="latency between two ranks, seconds (2e-5)"
    )
    options = vars(parser.parse_args())
    parts = step(**options)
    for name, seconds in parts.items():
        print(f"{seconds:12.6f} s  {seconds / sum(parts.values()):6.1%}  {name}")
    weights, directions = options["weights"], options["directions"]
    factor = (weights + directions - 1) / directions
    print(f"variance of the estimate over the squared gradient, (d + K - 1) / K: {factor:.3g}")
    print(f"so the squared cosine between an update and the gradient is {1 / factor:.1e}")


if __name__ == "__main__":
    main()
