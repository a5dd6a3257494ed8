"""Time of a fleet's step for each replica over that of a jitted `lax.scan` in JAX.

It prints one JSON object.

    python benchmarks/fleet.py [--rounds 7] [--replicas 1,16,128,1024] [--tasks xor,rnn] [--out
    FILE]

Rule `Dopamine`, Rademacher noise, float32, learning rate 3.5. Tasks: XOR 2-8-1 (four patterns), and
a tanh RNN 3-32-3 on Lorenz, for each replica and step a new batch of 8 sequences of 50 samples. All
start at the same weights; noise and batches come from each one's own counter-based generator. Ours
are a torch fleet, one call of `step` after the other with a closure in plain torch, and
`Functional` of `dopaminergic.jax`, all steps of a round in one call and as many replicas at once as
fit the caches. JAX gets all steps in one call too, and whichever is the faster of all replicas at
once and one after the other; what it takes with groups such as ours is told as well. The process
binds itself to one core, and keeps what it frees, as runs of the lab do. Needs
`pip install 'dopaminergic[benchmarks]'`.
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

import jax
import jax.numpy as jnp
import torch
from printing import publish, say

from dopaminergic import Dopamine
from dopaminergic.jax import Functional
from dopaminergic.lab.allocator import keep_memory
from dopaminergic.lab.costs import quartiles
from dopaminergic.lab.tasks import Task, make_task
from dopaminergic.lab.tasks.forecasting import QuickForecasting

TASKS: dict[str, Callable[[], Task]] = {
    "xor": lambda: make_task("xor-2-8-1"),
    "rnn": lambda: make_task("lorenz", hidden=32),
}
GROUPS = {"xor": 256, "rnn": 16}  # replicas at once, of those that were tried
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
    series, n, length, washout = (
        jnp.asarray(task.series.numpy()),
        task.batch_size,
        task.length,
        task.washout,
    )

    def batch(key: Any) -> Any:
        starts = jax.random.randint(key, (n,), 0, task.train_rows - length - 2)
        rows = series[starts[None] + jnp.arange(length + 1)[:, None]]
        return rows[:-1], rows[1:]

    return lambda w, b: rnn_loss(w, b, washout), batch


def in_groups(
    one: Callable[..., Any], carry: Any, replicas: int, steps: int, group: int
) -> tuple[Callable[[], float], float]:
    """`steps` steps of a fleet as a function without arguments, and its compile time.

    The function returns the mean loss of the first step.

    Args:
        one: a step of one replica, `(carry, key, number) -> carry, loss`.
        carry: of all replicas.
        replicas: how many there are; each has a key of its own for its batches.
        steps: how many.
        group: how many replicas are vectorised; one group after the other takes all its steps.
    """

    def alone(each: Any) -> Any:
        carry, key, first = each
        return jax.lax.scan(
            lambda carry, number: one(carry, key, number), carry, first + jnp.arange(steps)
        )

    keys = jax.vmap(jax.random.key)(jnp.arange(replicas))

    def whole(carry: Any, first: Any) -> Any:
        firsts = jnp.full(replicas, first)
        carry, losses = jax.lax.map(alone, (carry, keys, firsts), batch_size=min(group, replicas))
        return carry, losses[:, 0].mean()

    first = 0
    began = time.perf_counter()
    run = jax.jit(whole).lower(carry, first).compile()
    compiling = time.perf_counter() - began

    def work() -> float:
        nonlocal carry, first
        carry, loss = run(carry, first)
        first += steps
        return float(loss)

    return work, compiling


def jax_fleet(
    task: Task, replicas: int, steps: int, group: int
) -> tuple[Callable[[], float], float]:
    """The rule written in JAX by hand, see `in_groups`."""
    loss, batch = problem(task)
    weights = {
        k: jnp.asarray(p.detach().numpy())
        for k, p in task.build(range(replicas)).named_parameters()
    }
    leaves, tree = jax.tree.flatten({k: p[0] for k, p in weights.items()})
    sizes = [leaf.size for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    d = ends[-1]

    def one(carry: Any, key: Any, step: Any) -> Any:
        weights, (regret, square, level, trials, first) = carry
        for_signs, for_batch = jax.random.split(jax.random.fold_in(key, step))
        z = jnp.split(signs(for_signs, d), ends[:-1])
        z = jax.tree.unflatten(
            tree, [part.reshape(leaf.shape) for part, leaf in zip(z, leaves, strict=True)]
        )
        samples = batch(for_batch)
        base = loss(weights, samples)
        plus = loss(jax.tree.map(lambda w, s: w + SIGMA * s, weights, z), samples)
        # dopamine() of dopaminergic.prediction_errors, line by line; in float32, JAX's default.
        first = jnp.where(trials == 0.0, jnp.abs(base), first)
        r, m = plus - base, regret / (trials + TINY)
        trials = BETA * trials + (1 - BETA)
        square = BETA * square + (1 - BETA) * r * r
        s = jnp.sqrt(square / trials) + RESOLUTION * first + TINY
        level = BETA * level + (1 - BETA) * base
        regret = BETA * regret + (1 - BETA) * r
        size = jnp.clip(LR * jnp.maximum(level / trials, 0.0) * SIGMA / (d * s), 0.0, CAP)
        move = jnp.where(jnp.isfinite(base + plus), size * (r - m) / s, 0.0)
        return (
            jax.tree.map(lambda w, s: w - move * s, weights, z),
            (regret, square, level, trials, first),
        ), base

    return in_groups(one, (weights, (jnp.zeros(replicas),) * 5), replicas, steps, group)


def functional_fleet(
    task: Task, replicas: int, steps: int, group: int
) -> tuple[Callable[[], float], float]:
    """`Functional`, see `in_groups`."""
    loss, batch = problem(task)
    functional = Functional(Dopamine, lr=LR, sigma=SIGMA, cap=CAP, beta=BETA)
    weights = {
        k: jnp.asarray(p.detach().numpy())
        for k, p in task.build(range(replicas)).named_parameters()
    }

    def one(carry: Any, key: Any, step: Any) -> Any:
        *carry, value = functional.step(loss, *carry, batch(jax.random.fold_in(key, step)))
        return tuple(carry), value

    states = jax.vmap(functional.init)(weights, jnp.arange(replicas))
    return in_groups(one, (weights, states), replicas, steps, group)


def torch_fleet(task: Task, replicas: int, steps: int) -> tuple[Callable[[], float], float]:
    """As `in_groups`; instead of compile time what the first step takes beyond a later one."""
    model, seeds, number = task.build(range(replicas)), torch.arange(replicas), 0
    optimizer = Dopamine(
        model.parameters(), lr=LR, sigma=SIGMA, cap=CAP, beta=BETA, seed=seeds.tolist()
    )

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
    optimizer = Dopamine(
        model.parameters(), lr=LR, sigma=SIGMA, cap=CAP, beta=BETA, seed=seeds.tolist()
    )
    model.load_state_dict(task.build(range(replicas)).state_dict())
    return work, times[0] - min(times[1:])


def measure(task: Task, replicas: int, group: int, rounds: int) -> dict[str, Any]:
    """Ratios of one task and size, and how long each takes to begin."""
    say(task.name, replicas)
    probe, beginning = torch_fleet(task, replicas, 5)
    probe()
    began = time.perf_counter()
    probe()
    steps = max(2, round(SECONDS / ((time.perf_counter() - began) / 5)))
    made = {
        "torch": (torch_fleet(task, replicas, steps)[0], beginning),
        "functional": functional_fleet(task, replicas, steps, group),
        "jax, all at once": jax_fleet(task, replicas, steps, replicas),
        "jax, one by one": jax_fleet(task, replicas, steps, 1),
        "jax, in groups": jax_fleet(task, replicas, steps, group),
    }
    losses = {name: work() for name, (work, _) in made.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (work, _) in made.items():
            began = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - began) / steps / replicas * 1e6)

    def ratio(one: str, other: str) -> dict[str, float]:
        return quartiles(a / b for a, b in zip(times[one], times[other], strict=True))

    ours, plain = (
        min(names, key=lambda name: median(times[name]))
        for names in (("torch", "functional"), ("jax, all at once", "jax, one by one"))
    )
    return {
        "ours_over_jax": ratio(ours, plain),
        "torch_over_jax": ratio("torch", plain),
        "functional_over_jax": ratio("functional", plain),
        "functional_over_jax_in_groups": ratio("functional", "jax, in groups"),
        "faster": {"ours": ours, "jax": plain},
        "group": min(group, replicas),
        "microseconds": {name: quartiles(each) for name, each in times.items()},
        "seconds_to_begin": {name: round(each, 3) for name, (_, each) in made.items()},
        "first_mean_loss": losses,
        "steps_a_round": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (7)")
    parser.add_argument(
        "--replicas", default="1,16,128,1024", help="sizes of the fleet, separated by commas"
    )
    parser.add_argument("--tasks", default="xor,rnn", help="separated by commas")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = {
        f"{name}, {replicas} replicas": measure(
            TASKS[name](), replicas, GROUPS[name], options.rounds
        )
        for name in options.tasks.split(",")
        for replicas in map(int, options.replicas.split(","))
    }
    what = "time of a step for each replica, ours / JAX; medians and quartiles"
    publish(what, results, options.out, facts={"jax": version("jax")})


if __name__ == "__main__":
    main()
