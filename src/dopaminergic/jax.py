"""The rules as pure functions that JAX can compile, for networks so small that Python is the cost.

    state = functional.init(params, seed)
    params, state, value = functional.step(loss, params, state, *batch)

The rules are the very ones of the torch optimizers, and so are the random numbers. A run has the
signs that a torch optimizer with its seed would draw. `jax.jit`, `jax.lax.scan` (many steps in one
call) and `jax.vmap` (many runs, each with its own seed) apply as to any function. This file is the
only one that imports JAX, and no other file imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(
        "dopaminergic.jax needs JAX 0.8 or later: pip install 'dopaminergic[jax]'"
    ) from error

from dopaminergic import checks
from dopaminergic.baselines import EvolutionStrategy
from dopaminergic.noise.reference import (
    GAUSSIAN,
    KEY_INCREMENTS,
    MASK,
    MULTIPLIERS,
    NORMALS_PER_BLOCK,
    RADEMACHER,
    ROUNDS,
    SIGNS_PER_BLOCK,
)
from dopaminergic.rule import Group, Losses, choose, decay_factors
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.scalars import finite, select

LEAVES = ("float32", "float64")
ELSEWHERE = ("params", "seed", "batched", "process_group")  # settings that mean nothing here

Tree = Any  # any nesting of dicts, lists and tuples whose leaves are arrays
Loss = Callable[..., Any]


class State(NamedTuple):
    """All that a run needs besides its weights.

    The entries are arrays without dimensions, or with one for each run under `jax.vmap`.

    Attributes:
        key: the seed, uint32 `(2,)`, its low half first.
        step: number of the next step, uint32.
        rule: the state of the rule.
        noise: the directions of the next step, for each leaf of n weights uint32 `(K, ceil(n /
            32))` for signs, float32 `(K, n)` for normals. They follow from `key` and `step`. They
            are made a step ahead and kept, since XLA would draw them again for each weight they
            move.
        skipped_steps: steps without an update because a loss was not finite.
        last_rpe: reward prediction error of the last step.
        last_learning_rate: learning rate of gradient descent that the last update amounts to.
    """

    key: jax.Array
    step: jax.Array
    rule: Any
    noise: list[jax.Array]
    skipped_steps: jax.Array
    last_rpe: jax.Array
    last_learning_rate: jax.Array


class Functional:
    """An optimizer as two pure functions, `init` and `step`.

    It is for networks of a few thousand weights, of which JAX may hold K + 1 copies. Large models
    take the torch optimizers, whose steps take no memory.

    Args:
        optimizer: `Dopamine`, `Dopamine2`, `WeightPerturbation`, `SPSA`, or a subclass of
            `ScalarRule` whose rule is made of `dopaminergic.scalars`.
        **settings: as the optimizer takes them: `lr`, `sigma`, `directions`, `noise`,
            `weight_decay`, ...

    Raises:
        TypeError: another optimizer, or a setting that it does not have or that has no meaning
            here.
        ValueError: a setting is out of range.
    """

    def __init__(self, optimizer: type[ScalarRule], **settings: Any) -> None:
        known = isinstance(optimizer, type) and issubclass(optimizer, ScalarRule)
        if not known or issubclass(optimizer, EvolutionStrategy):
            name = getattr(optimizer, "__name__", repr(optimizer))
            raise TypeError(
                f"Functional: expected Dopamine, Dopamine2, WeightPerturbation or SPSA, got {name}"
            )
        for name in ELSEWHERE:
            if name in settings:
                hint = (
                    "give it to init"
                    if name in ("params", "seed")
                    else "use jax.vmap, or JAX's own collectives"
                )
                raise TypeError(f"Functional: {name} is no setting of a pure function; {hint}")
        # It holds the settings, checked, and the rule; its weight is never looked at.
        self.optimizer: Any = optimizer([torch.zeros(1, requires_grad=True)], **settings)

    def init(self, params: Tree, seed: Any) -> State:
        """The state before the first step.

        Args:
            params: the weights, float32 or float64. Parameter number i of a torch optimizer is leaf
                i of them, in the order of `jax.tree.leaves`, which sorts the keys of dicts.
            seed: in [0, 2^63); or, traced by JAX, an integer array without dimensions.

        Raises:
            TypeError: a leaf of another type, or several seeds.
            ValueError: a seed out of range.
        """
        _check_leaves(params)
        if isinstance(seed, jax.Array):
            low = seed
            high = seed >> 32 if seed.dtype.itemsize == 8 else jnp.zeros_like(seed)
        else:
            number: Any = checks.seeds("Functional.init", seed)
            if isinstance(number, list):
                raise TypeError(
                    "Functional.init: one seed for one run; for many, "
                    "jax.vmap(functional.init)(params, seeds)"
                )
            low = jnp.uint32(number & MASK)
            high = jnp.uint32(number >> 32)
        key = jnp.stack([low.astype(jnp.uint32), high.astype(jnp.uint32)])
        rule = jax.tree.map(lambda x: jnp.asarray(x, float), self.optimizer.start())
        step = jnp.uint32(0)
        zero = jnp.zeros(())
        return State(
            key,
            step,
            rule,
            self._draw(jax.tree.leaves(params), key, step),
            jnp.int32(0),
            zero,
            zero,
        )

    def step(
        self, loss: Loss, params: Tree, state: State, *batch: Any, lr: Any = None
    ) -> tuple[Tree, State, jax.Array]:
        """Make one step, as `ForwardOptimizer.step` does.

        Args:
            loss: called as `loss(params, *batch)` for the weights and for each of K perturbed ones;
                its mean is the loss. Random numbers inside it come from a key in the batch, and are
                then the same each time.
            params: the weights.
            state: of `init` or the last step.
            *batch: handed on to `loss`.
            lr: another learning rate than the setting. It may be traced, for example for schedules,
                or one for each run.

        Returns:
            The new weights, the new state, and the loss at the old weights. A step is skipped if
            its losses or its update are not finite. It then changes only the state's `step` and
            `skipped_steps`.
        """
        _check_leaves(params)
        optimizer = self.optimizer
        setting = optimizer.param_groups[0]
        (leaves, tree) = jax.tree.flatten(params)
        size = sum(leaf.size for leaf in leaves)
        group = Group(
            setting["lr"] if lr is None else jnp.asarray(lr, float), setting["sigma"], size
        )

        def value(weights: list[jax.Array]) -> jax.Array:
            return jnp.mean(loss(jax.tree.unflatten(tree, weights), *batch)).astype(float)

        found = self._evaluate(value, leaves, state.noise, group.sigma)
        losses = Losses.at(optimizer.points(), found)
        rule, signals, (size_of_step,), rates, rpe = optimizer.rule(state.rule, losses, [group])
        scaled = size_of_step * (-1.0 / optimizer.settings["directions"])
        moves = [scaled * signal for signal in signals]
        usable = finite(sum(found)) & finite(sum(moves))
        moves = [select(usable, move, 0.0) for move in moves]
        if setting["weight_decay"]:
            (scale,) = decay_factors([setting["weight_decay"]], rates, usable)
            leaves = [leaf * jnp.asarray(scale, leaf.dtype) for leaf in leaves]
        leaves, _ = jax.lax.scan(
            lambda ws, each: (_moved(ws, *each), None), leaves, (state.noise, jnp.stack(moves))
        )
        step = state.step + jnp.uint32(1)
        after = State(
            state.key,
            step,
            choose(usable, rule, state.rule),
            self._draw(leaves, state.key, step),
            state.skipped_steps + jnp.where(usable, 0, 1),
            select(usable, jnp.asarray(rpe), state.last_rpe),
            select(usable, jnp.asarray(rates[0], float), state.last_learning_rate),
        )
        return jax.tree.unflatten(tree, leaves), after, losses.mean()

    def _evaluate(
        self,
        value: Callable[[list[jax.Array]], jax.Array],
        leaves: list[jax.Array],
        noise: list[jax.Array],
        sigma: Any,
    ) -> list[jax.Array]:
        """The losses at all points of a step, evaluated as one batch."""
        plan = self.optimizer.points()
        # At the weights themselves a direction counts 0 times.
        rows = jnp.array([point.direction or 0 for point in plan])
        multiples = jnp.array([float(point.side) for point in plan]) * sigma
        directions = [each[rows] for each in noise]
        moved = jax.vmap(lambda z, multiple: value(_moved(leaves, z, multiple)))
        return list(moved(directions, multiples))

    def _draw(self, leaves: list[jax.Array], key: jax.Array, step: jax.Array) -> list[jax.Array]:
        """The noise of all directions of a step."""
        draw = sign_words if self.optimizer.settings["noise"] == "rademacher" else normals
        numbers = jnp.arange(self.optimizer.settings["directions"], dtype=jnp.uint32)
        return [
            jax.vmap(lambda k, i=i, leaf=leaf: draw(leaf.size, key, step, k, parameter=i))(numbers)
            for i, leaf in enumerate(leaves)
        ]


def _moved(leaves: list[jax.Array], noise: list[jax.Array], multiple: Any) -> list[jax.Array]:
    """The weights, moved by a multiple of the direction that the noise gives."""
    directions = [
        signs(x, leaf.size) if x.dtype == jnp.uint32 else x
        for x, leaf in zip(noise, leaves, strict=True)
    ]
    return [
        leaf + jnp.asarray(multiple, leaf.dtype) * z.astype(leaf.dtype).reshape(leaf.shape)
        for leaf, z in zip(leaves, directions, strict=True)
    ]


def _check_leaves(params: Tree) -> None:
    kinds = [str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in jax.tree.leaves(params)]
    for kind in kinds or ["nothing"]:
        if kind not in LEAVES:
            raise TypeError(
                f"Functional: params must be arrays of {' or '.join(LEAVES)}, found {kind}; let "
                "the loss close over "
                "what is not trained, and train 16-bit weights with the torch optimizers"
            )


# ---- noise: as in noise/reference.py, in JAX -----------------------------------------------------


def _product(word: jax.Array, multiplier: int) -> tuple[jax.Array, jax.Array]:
    """High and low half of a 64-bit product."""
    with jax.enable_x64(True):  # for this product alone; the user's own choice stays
        product = word.astype(jnp.uint64) * jnp.uint64(multiplier)
        return (product >> jnp.uint64(32)).astype(jnp.uint32), product.astype(jnp.uint32)


def _words(
    count: int, per_block: int, key: jax.Array, step: Any, selector: Any, parameter: int
) -> list[jax.Array]:
    """The words of enough blocks for `count` numbers, four uint32 `(blocks,)`."""
    c0 = jnp.arange(-(-count // per_block), dtype=jnp.uint32)
    c1 = jnp.uint32(parameter)
    c2 = jnp.asarray(step).astype(jnp.uint32)
    c3 = jnp.asarray(selector).astype(jnp.uint32)
    k0 = key[0]
    k1 = key[1]
    for _ in range(ROUNDS):
        (high0, low0) = _product(c0, MULTIPLIERS[0])
        (high1, low1) = _product(c2, MULTIPLIERS[1])
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + jnp.uint32(KEY_INCREMENTS[0])
        k1 = k1 + jnp.uint32(KEY_INCREMENTS[1])
    return [c0, c1, c2, c3]


def sign_words(
    n: int, key: jax.Array, step: Any, direction: Any = 0, *, parameter: int = 0
) -> jax.Array:
    """The words that hold n signs; `signs` reads them.

    Args:
        n: how many elements, at least 1.
        key: the seed, uint32 `(2,)`, its low half first.
        step: in [0, 2^32).
        direction: in [0, 2^28).
        parameter: index of the parameter.

    Returns:
        uint32 `(ceil(n / 32),)`.
    """
    words = _words(
        n, SIGNS_PER_BLOCK, key, step, direction + jnp.uint32(RADEMACHER << 28), parameter
    )
    return jnp.stack(words, -1).reshape(-1)[: -(-n // 32)] if n > 32 else words[0]


def signs(words: jax.Array, n: int) -> jax.Array:
    """The numbers of `noise.reference.rademacher`: float32 `(n,)`, each +1 or -1."""
    bits = (words[:, None] >> jnp.arange(min(n, 32), dtype=jnp.uint32)) & jnp.uint32(1)
    return (2.0 * bits.astype(jnp.float32) - 1.0).reshape(-1)[:n]


def normals(
    n: int, key: jax.Array, step: Any, direction: Any = 0, *, parameter: int = 0
) -> jax.Array:
    """The numbers of `noise.reference.gaussian`, computed in float32: within 3e-6 of them.

    Args:
        n: see `sign_words`.
        key: see `sign_words`.
        step: see `sign_words`.
        direction: see `sign_words`.
        parameter: see `sign_words`.

    Returns:
        float32 `(n,)`.
    """
    words = jnp.stack(
        _words(n, NORMALS_PER_BLOCK, key, step, direction + jnp.uint32(GAUSSIAN << 28), parameter),
        -1,
    )
    of_radius = words[:, 0::2]
    of_angle = words[:, 1::2]
    uniform = ((of_radius >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-23
    radius = jnp.sqrt(-2.0 * jnp.log(uniform))
    angle = (of_angle >> jnp.uint32(8)).astype(jnp.float32) * (2.0**-24 * 2 * math.pi)
    pairs = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], -1)
    return pairs.reshape(-1)[:n]
