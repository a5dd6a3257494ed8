"""Peak memory of training steps over that of inference, 10 and 60 million weights; prints one JSON object.

    python benchmarks/memory.py [--out FILE]

Resident memory above what the process held before the model, each method in a process of its own (Linux only).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from printing import publish

from dopaminergic.lab.costs import BACKWARD, FORWARD, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    results = {
        f"{weights // 10**6}M weights": {name: peak_memory(name, weights) for name in (*FORWARD, *BACKWARD)}
        for weights in (10_000_000, 60_000_000)
    }
    publish("peak memory of steps / of inference", results, options.out)


if __name__ == "__main__":
    main()
