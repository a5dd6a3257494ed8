"""A simulator in another process hangs and crashes, and the trainer is lost with it."""

from __future__ import annotations

import argparse
import json
import sys
from subprocess import PIPE, Popen
from threading import Timer
from typing import Any

import numpy as np

from dopaminergic import AskTell

# A tank whose level should follow a plan. It reads weights, a line each, and writes the cost.
SIMULATOR = """
import json, os, sys, time
for run, line in enumerate(sys.stdin):
    if run == 5: time.sleep(3600) if "hang" in sys.argv else "crash" in sys.argv and os._exit(1)
    gain, memory, bias = json.loads(line); level = past = cost = 0.0
    for t in range(100):
        miss = (1.0 if t < 50 else 2.0) - level; past += miss
        valve = min(max(gain * miss + memory * past + bias, 0.0), 1.0)
        level += 0.1 * (5 * valve - level); cost += miss * miss / 100
    print(json.dumps(cost), flush=True)
"""


def start(*trouble: str) -> Any:
    return Popen([sys.executable, "-c", SIMULATOR, *trouble], stdin=PIPE, stdout=PIPE, text=True)


def train(steps: int, *troubles: str) -> np.ndarray:
    asker, process, lost = AskTell(np.zeros(3), sigma=0.05), start(*troubles[:1]), 0
    while asker.optimizer.progress.step < steps:
        number, weights = asker.ask()
        clock = Timer(1.0, process.kill)  # the time-out
        clock.start()
        try:
            print(json.dumps(weights.tolist()), file=process.stdin, flush=True)
            asker.tell(number, float(process.stdout.readline()))
        except (ValueError, BrokenPipeError):  # it hung or died: start another, and ask again
            lost += 1
            process.communicate()
            process = start(*troubles[lost : lost + 1])
            state, asker = asker.state_dict(), AskTell(np.zeros(3), sigma=0.05)
            asker.load_state_dict(state)  # as if we had died, too; torch.save takes such a state
        clock.cancel()
    process.communicate()
    print(f"{lost} trials lost, best cost {asker.best.loss:.4f} in trial {asker.best.number}")
    return asker.weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of 2 simulations each (200)")
    steps = parser.parse_args().steps
    print("bit for bit the same:", np.array_equal(train(steps), train(steps, "hang", "crash")))
