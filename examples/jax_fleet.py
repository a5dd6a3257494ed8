"""Many small runs in one compiled call of JAX: how often does a small network learn XOR?

python examples/jax_fleet.py                            # 1,024 seeds, two hidden units
python examples/jax_fleet.py --hidden 8 --runs 10000

Needs `pip install 'dopaminergic[jax]'`.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

from dopaminergic import Dopamine
from dopaminergic.jax import Functional

INPUTS = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
TARGETS = jnp.array([0.0, 1.0, 1.0, 0.0])
AT_ONCE = 256  # runs, whose weights fit the caches


def network(weights: list[jax.Array]) -> jax.Array:
    w1, b1, w2, b2 = weights
    return jax.nn.sigmoid(jnp.tanh(INPUTS @ w1 + b1) @ w2 + b2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1024, help="seeds (1024)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each run (2000)")
    parser.add_argument("--hidden", type=int, default=2, help="hidden units (2)")
    options = parser.parse_args()
    functional = Functional(Dopamine)

    def train(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(jax.random.key(seed))
        w1, w2 = (
            jax.random.normal(first, (2, options.hidden)),
            jax.random.normal(second, (options.hidden,)),
        )
        weights = [w1, jnp.zeros(options.hidden), w2, jnp.zeros(())]

        def step(carry: tuple, _: None) -> tuple:
            weights, state, loss = functional.step(
                lambda w: jnp.mean((network(w) - TARGETS) ** 2), *carry
            )
            return (weights, state), loss

        (weights, _), losses = jax.lax.scan(
            step, (weights, functional.init(weights, seed)), None, options.steps
        )
        return losses, jnp.all((network(weights) > 0.5) == (TARGETS > 0.5))

    began = time.perf_counter()
    losses, solved = jax.jit(lambda seeds: jax.lax.map(train, seeds, batch_size=AT_ONCE))(
        jnp.arange(options.runs)
    )
    passes = 2 * options.runs * options.steps
    print(f"median loss {jnp.median(losses[:, 0]):.2g} -> {jnp.median(losses[:, -1]):.2g}")
    print(
        f"{options.runs} runs, {passes:,} forward passes, {time.perf_counter() - began:.1f} s with "
        "compiling"
    )
    print(f"all four patterns right in {100 * solved.mean():.1f}%")


if __name__ == "__main__":
    main()
