"""Peak memory of training steps over that of inference.

Models have 10 and 60 million weights of 32 and 16 bits. It prints one JSON object.

    python benchmarks/memory.py [--out FILE]

Resident memory above what the process held before the model, each method in a process of its own
(Linux only). A layer is a million weights, a tenth or a sixtieth of the model: what 16-bit weights
are perturbed in.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from printing import publish, say

from dopaminergic.lab.costs import BACKWARD, FORWARD, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    results: dict[str, dict[str, float | None]] = {}
    for weights, dtype in itertools.product((10_000_000, 60_000_000), ("float32", "bfloat16")):
        row = results.setdefault(f"{weights // 10**6}M weights, {dtype}", {})
        for name in (*FORWARD, *BACKWARD):
            say(weights, dtype, name)
            row[name] = peak_memory(name, weights, dtype)
    publish("peak memory of steps / of inference", results, options.out)


if __name__ == "__main__":
    main()
