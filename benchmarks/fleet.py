"""Time of a fleet's step for each replica over that of a jitted `lax.scan` in JAX; prints one JSON object.

    python benchmarks/fleet.py [--rounds 7] [--replicas 1,16,128,1024] [--tasks xor,rnn] [--out FILE]

Rule `Dopamine`, Rademacher noise, float32, learning rate 3.5. Tasks: XOR 2-8-1 (four patterns), and a tanh RNN 3-32-3
on Lorenz, for each replica and step a new batch of 8 sequences of 50 samples. Both start at the same weights; noise and
batches come from each one's own counter-based generator. Ours is one call of `step` after the other with a closure in
plain torch; JAX gets all steps of a round in one call, and whichever is the faster of `vmap` and `lax.map` over
replicas. The process binds itself to one core, and keeps what it frees, as runs of the lab do. Needs `pip install
'dopaminergic[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import torch
from printing import publish, say

from dopaminergic import Dopamine
from dopaminergic.lab.costs import quartiles
from dopaminergic.lab.fleet import keep_memory
from dopaminergic.lab.tasks import Task, make_task
from dopaminergic.lab.tasks.forecasting import QuickForecasting

TASKS: dict[str, Callable[[], Task]] = {
    "xor": lambda: make_task("xor-2-8-1"),
    "rnn": lambda: make_task("lorenz", hidden=32),
}
LR, SIGMA, CAP, BETA, RESOLUTION, TINY = 3.5, 3e-4, 0.1, 0.99, 1e-8, 1e-30
SECONDS = 0.3  # of a round, about


def signs(key: Any, n: int) -> Any:
    """Shape `(n,)`, each +1 or -1: one random bit a weight, as ours."""
    words = jax.random.bits(key, (-(-n // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return (2.0 * bits.astype(jnp.float32) - 1.0).reshape(-1)[:n]


def xor_loss(w: dict[str, Any], batch: Any) -> Any:
    hidden = jnp.tanh(batch[0] @ w["weight_0"] + w["bias_0"])
    return jnp.mean((jax.nn.sigmoid(hidden @ w["weight_1"] + w["bias_1"]) - batch[1]) ** 2)


def rnn_loss(w: dict[str, Any], batch: Any, washout: int) -> Any:
    drive = batch[0] @ w["input_weight"] + w["bias"]  # (50, 8, 32), time first

    def cell(h: Any, a: Any) -> Any:
        h = jnp.tanh(a + h @ w["recurrent_weight"])
        return h, h

    _, states = jax.lax.scan(cell, jnp.zeros(drive.shape[1:]), drive)
    return jnp.mean((states @ w["output_weight"] + w["output_bias"] - batch[1])[washout:] ** 2)


def problem(task: Task) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]:
    """The loss of one replica, and the batch of a key."""
    if not isinstance(task, QuickForecasting):
        inputs, targets = (jnp.asarray(part.numpy()) for part in task.batch(0, 0))
        return xor_loss, lambda key: (inputs, targets)
    series, n, length, washout = jnp.asarray(task.series.numpy()), task.batch_size, task.length, task.washout

    def batch(key: Any) -> Any:
        starts = jax.random.randint(key, (n,), 0, task.train_rows - length - 2)
        rows = series[starts[None] + jnp.arange(length + 1)[:, None]]
        return rows[:-1], rows[1:]

    return lambda w, b: rnn_loss(w, b, washout), batch


def jax_fleet(task: Task, replicas: int, steps: int, layout: str) -> tuple[Callable[[], float], float]:
    """`steps` steps of a fleet as a function of nothing, which returns the mean loss of the first; and compile time."""
    loss, batch = problem(task)
    weights = {k: jnp.asarray(p.detach().numpy()) for k, p in task.build(range(replicas)).named_parameters()}
    leaves, tree = jax.tree.flatten({k: p[0] for k, p in weights.items()})
    sizes = [leaf.size for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    d = ends[-1]

    def one(weights: Any, state: Any, key: Any, step: Any) -> Any:
        regret, square, level, trials, first = state
        for_signs, for_batch = jax.random.split(jax.random.fold_in(key, step))
        z = jnp.split(signs(for_signs, d), ends[:-1])
        z = jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in zip(z, leaves, strict=True)])
        samples = batch(for_batch)
        base = loss(weights, samples)
        plus = loss(jax.tree.map(lambda w, s: w + SIGMA * s, weights, z), samples)
        # dopamine() of dopaminergic.dopamine, line by line; in float32, JAX's default.
        first = jnp.where(trials == 0.0, jnp.abs(base), first)
        r, m = plus - base, regret / (trials + TINY)
        trials = BETA * trials + (1 - BETA)
        square = BETA * square + (1 - BETA) * r * r
        s = jnp.sqrt(square / trials) + RESOLUTION * first + TINY
        level = BETA * level + (1 - BETA) * base
        regret = BETA * regret + (1 - BETA) * r
        size = jnp.clip(LR * jnp.maximum(level / trials, 0.0) * SIGMA / (d * s), 0.0, CAP)
        move = jnp.where(jnp.isfinite(base + plus), size * (r - m) / s, 0.0)
        return jax.tree.map(lambda w, s: w - move * s, weights, z), (regret, square, level, trials, first), base

    def step(carry: Any, number: Any) -> Any:
        if layout == "vmap":
            together: Any = jax.vmap(one, (0, 0, 0, None))
            *carry, base = together(*carry, keys, number)
        else:
            *carry, base = jax.lax.map(lambda each: one(each[0], each[1], each[2], number), (*carry, keys))
        return tuple(carry), base.mean()

    keys = jax.vmap(jax.random.key)(jnp.arange(replicas))
    carry: Any = (weights, (jnp.zeros(replicas),) * 5)
    first = jnp.int32(0)
    began = time.perf_counter()
    run = jax.jit(lambda carry, first: jax.lax.scan(step, carry, first + jnp.arange(steps))).lower(carry, first)
    run = run.compile()
    compiling = time.perf_counter() - began

    def work() -> float:
        nonlocal carry, first
        carry, losses = run(carry, first)
        first += steps
        return float(losses[0])

    return work, compiling


def our_fleet(task: Task, replicas: int, steps: int) -> tuple[Callable[[], float], float]:
    """As `jax_fleet`; instead of compile time what the first step takes beyond a later one."""
    model, seeds, number = task.build(range(replicas)), torch.arange(replicas), 0
    optimizer = Dopamine(model.parameters(), lr=LR, sigma=SIGMA, cap=CAP, beta=BETA, seed=seeds.tolist())

    def step() -> torch.Tensor:
        nonlocal number
        batch = task.batch(seeds, number)
        number += 1
        return optimizer.step(lambda: task.outcome(model, batch))

    def work(count: int = steps) -> float:
        losses = [step() for _ in range(count)]
        return float(losses[0].mean())

    times = []
    for _ in range(3):
        began = time.perf_counter()
        work(1)
        times.append(time.perf_counter() - began)
    number = 0
    optimizer = Dopamine(model.parameters(), lr=LR, sigma=SIGMA, cap=CAP, beta=BETA, seed=seeds.tolist())
    model.load_state_dict(task.build(range(replicas)).state_dict())
    return work, times[0] - min(times[1:])


def measure(task: Task, replicas: int, rounds: int) -> dict[str, Any]:
    """Ratios of one task and size, and how long each takes to begin."""
    say(task.name, replicas)
    probe, beginning = our_fleet(task, replicas, 5)
    probe()
    began = time.perf_counter()
    probe()
    steps = max(2, round(SECONDS / ((time.perf_counter() - began) / 5)))
    works: dict[str, Callable[[], float]] = {}
    starts, losses, times = {"ours": beginning}, {}, {}
    works["ours"], _ = our_fleet(task, replicas, steps)
    for layout in ("vmap", "map"):
        works[layout], starts[layout] = jax_fleet(task, replicas, steps, layout)
    for name, work in works.items():
        losses[name], times[name] = work(), []
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - began) / steps / replicas * 1e6)
    fastest = min(("vmap", "map"), key=lambda name: median(times[name]))
    return {
        "ours_over_jax": quartiles(o / j for o, j in zip(times["ours"], times[fastest], strict=True)),
        "faster_layout_of_jax": fastest,
        "microseconds": {name: quartiles(each) for name, each in times.items()},
        "seconds_to_begin": {name: round(each, 3) for name, each in starts.items()},
        "first_mean_loss": losses,
        "steps_a_round": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (7)")
    parser.add_argument("--replicas", default="1,16,128,1024", help="sizes of the fleet, separated by commas")
    parser.add_argument("--tasks", default="xor,rnn", help="separated by commas")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = {
        f"{name}, {replicas} replicas": measure(TASKS[name](), replicas, options.rounds)
        for name in options.tasks.split(",")
        for replicas in map(int, options.replicas.split(","))
    }
    what = "time of a step for each replica, ours / JAX; medians and quartiles"
    publish(what, results, options.out, facts={"jax": version("jax")})


if __name__ == "__main__":
    main()
