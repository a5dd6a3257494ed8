"""Two ranks on one machine against one: bytes, directions a second, share of communication.

It prints one JSON object.

    python benchmarks/distributed.py [--rounds 9] [--models rnn,mlp] [--directions 31,127] [--free]
    [--out FILE]

Ratios only: one rank and two take turns, round by round, while the others wait at a barrier.
`bytes` counts what is handed to collectives, for models of 10^3 weights and more. `speedup` is
directions a second of two ranks over one, `apart` that of two processes that train for themselves
at the same time over one alone: what the machine has to give. `communication` is the time in
collectives, waiting for the other rank included, over that of the step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import MODELS, build
from printing import publish, say

from dopaminergic import Dopamine, Ranks, VectorDopamine


class Timed(Ranks):
    """Ranks that know how long they have waited."""

    waited = 0.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        gather = self._channel._gather

        def timed(sent: Any, due: int) -> Any:
            start = time.perf_counter()
            found = gather(sent, due)
            self.waited += time.perf_counter() - start
            return found

        self._channel._gather = timed


def bytes_of_a_step(largest: int) -> dict[str, dict[str, float]]:
    """Bytes of one rank in a step, by the number of weights, of K = 8 directions."""
    found: dict[str, dict[str, float]] = {}
    for make in (Dopamine, VectorDopamine):
        for shards, name in ((1, "directions"), (2, "data")):
            row = found.setdefault(f"{make.__name__}, {name}", {})
            for power in range(3, largest + 1):
                w, ranks = (
                    torch.nn.Parameter(torch.ones(10**power)),
                    Ranks(data_parallel=shards, check_every=10**6),
                )
                optimizer = make([w], directions=8, process_group=ranks)
                optimizer.step(lambda w=w: w[:100].square().mean())
                before = ranks.bytes_sent
                optimizer.step(lambda w=w: w[:100].square().mean())
                row[f"1e{power}"] = ranks.bytes_sent - before
    return found


def speed(name: str, rounds: int, rank: int, directions: int) -> dict[str, float]:
    """Medians over rounds of ratios within a round."""
    runs = []
    for ranks in (None, Timed(data_parallel=1, check_every=10**6), None):
        torch.manual_seed(0)
        model, loss = build(name)
        group = ranks or "alone"
        runs.append(
            (Dopamine(model.parameters(), directions=directions, process_group=group), loss, ranks)
        )
    for optimizer, loss, _ in runs:
        optimizer.step(loss)  # numba compiles
    start = time.perf_counter()
    runs[0][0].step(runs[0][1])
    turns = torch.tensor(max(1, int(0.3 / (time.perf_counter() - start))))
    dist.broadcast(turns, 0)
    speedups, shares, apart = [], [], []
    for _ in range(rounds):
        times = []
        for number, (optimizer, loss, ranks) in enumerate(runs):
            dist.barrier()
            waited, start = ranks.waited if ranks else 0.0, time.perf_counter()
            for _ in range(int(turns) if number > 0 or rank == 0 else 0):
                optimizer.step(loss)
            times.append(time.perf_counter() - start)
            if ranks:
                shares.append((ranks.waited - waited) / times[-1])
        speedups.append(times[0] / times[1])
        apart.append(2 * times[0] / times[2])
    found = {"speedup": speedups, "apart": apart, "communication": shares}
    return {name: statistics.median(values) for name, values in found.items()}


def work(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if not options.free and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    chosen = [name for name in MODELS if name.startswith(tuple(options.models.split(",")))]
    results: dict[str, Any] = {"bytes": bytes_of_a_step(options.largest)}
    for name, directions in itertools.product(chosen, map(int, options.directions.split(","))):
        if rank == 0:
            say(name, directions)
        results[f"{name}, {directions} directions"] = speed(name, options.rounds, rank, directions)
    if rank == 0:
        publish("two ranks over one", results, options.out, ranks_keep_to_cores=not options.free)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (9)")
    parser.add_argument(
        "--models", default="rnn,mlp,transformer", help="models whose name starts so"
    )
    parser.add_argument(
        "--directions",
        default="31,127",
        help="of a step; with the weights themselves an even number",
    )
    parser.add_argument(
        "--free", action="store_true", help="do not keep each rank to a core of its own"
    )
    parser.add_argument(
        "--largest", type=int, default=7, help="bytes for up to 10^largest weights (7)"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder, parser.parse_args()), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main()
