"""Compares the time of `from dopaminergic import Dopamine` with that of `import torch`, in turns.

    python scripts/import_time.py --rounds 15

Prints the median ratio of the processor time of fresh processes. Both find torch's files in the
cache of the disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

OURS = "from dopaminergic import Dopamine, VectorDopamine, NodeDopamine"


def seconds(statement: str, cache: str) -> float:
    """Processor time of a process that makes an import, compiled before as pip does it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": cache}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as cache:
        seconds(OURS, cache)
        pairs = [(seconds(OURS, cache), seconds("import torch", cache)) for _ in range(rounds)]
    ratios = sorted(ours / torch for ours, torch in pairs)
    print(
        f"import dopaminergic / import torch: {statistics.median(ratios):.3f}, of {rounds} rounds"
    )
    print(f"middle half {ratios[rounds // 4]:.3f} to {ratios[-1 - rounds // 4]:.3f}")


if __name__ == "__main__":
    main()
