"""In JAX the rules do what the torch optimizers do: the same noise, the same losses and weights but
for rounding.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dopaminergic import (
    SPSA,
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    VectorDopamine,
    WeightPerturbation,
)
from dopaminergic.jax import Functional, State, normals, sign_words, signs
from dopaminergic.noise import reference
from dopaminergic.rule import Decision, Group, Losses
from dopaminergic.scalar_rule import ScalarRule

INPUTS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
TARGETS = np.array([[0], [1], [1], [0]], np.float32)
SEED = (1 << 62) + 12345
ROWS: list[tuple[type[ScalarRule], dict[str, Any]]] = [
    (Dopamine, {}),
    (Dopamine, {"directions": 4, "weight_decay": 0.01, "noise": "gaussian"}),
    (Dopamine, {"directions": 2, "two_sided": True}),
    (Dopamine2, {}),
    (Dopamine2, {"directions": 3, "weight_decay": 0.1}),
    (WeightPerturbation, {"lr": 0.01}),
    (WeightPerturbation, {"lr": 0.01, "weight_decay": 0.01, "sigma": 0.01}),
    (SPSA, {"lr": 0.01}),
    (SPSA, {"lr": 0.01, "directions": 3, "noise": "gaussian"}),
]


def network() -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # More than 128 weights in a layer, so that a direction takes several blocks of noise.
        return torch.nn.Sequential(torch.nn.Linear(2, 70), torch.nn.Tanh(), torch.nn.Linear(70, 1))


def weights_of(model: torch.nn.Module) -> list[jax.Array]:
    return [jnp.asarray(p.detach().numpy()) for p in model.parameters()]


def loss(w: Any, inputs: Any = INPUTS) -> jax.Array:
    return jnp.mean((jnp.tanh(inputs @ w[0].T + w[1]) @ w[2].T + w[3] - TARGETS) ** 2)


def run(
    functional: Functional, params: Any, state: State, steps: int
) -> tuple[Any, State, jax.Array]:
    """`steps` steps as one call."""

    def step(carry: Any, _: None) -> Any:
        *carry, value = functional.step(loss, *carry)
        return tuple(carry), value

    (params, state), values = jax.lax.scan(step, (params, state), None, steps)
    return params, state, values


@pytest.mark.parametrize("seed", [5, (1 << 63) - 1])
@pytest.mark.parametrize("n", [1, 32, 33, 128, 1000])
def test_noise_is_that_of_the_reference(n: int, seed: int) -> None:
    key = jnp.array([seed & reference.MASK, seed >> 32], jnp.uint32)
    for step, direction, parameter in ((0, 0, 0), (7, 3, 2), (2**32 - 1, 2**28 - 1, 9)):
        place = {"seed": seed, "step": step, "direction": direction, "parameter": parameter}
        counter = (np.uint32(step), np.uint32(direction))
        words = sign_words(n, key, *counter, parameter=parameter)
        assert (np.asarray(signs(words, n)) == reference.rademacher(n, **place).numpy()).all()
        drawn = np.asarray(normals(n, key, *counter, parameter=parameter))
        np.testing.assert_allclose(drawn, reference.gaussian(n, **place).numpy(), rtol=0, atol=3e-6)


@pytest.mark.parametrize(("kind", "settings"), ROWS)
def test_a_run_is_that_of_the_torch_optimizer_and_its_first_step_is_the_same_to_rounding(
    kind: type[ScalarRule], settings: dict[str, Any]
) -> None:
    """The first: the loss to a unit or two in the last place, weights to their share of that."""
    model, steps = network(), 60
    functional, start = Functional(kind, **settings), weights_of(model)
    before = float(loss(start))

    def step(carry: Any, _: None) -> Any:
        *carry, value = functional.step(loss, *carry)
        return tuple(carry), (value, carry[0])

    @jax.jit
    def trained(params: Any, state: State) -> Any:
        return jax.lax.scan(step, (params, state), None, steps)

    (params, state), (values, weights) = trained(start, functional.init(start, SEED))
    optimizer = kind(model.parameters(), seed=SEED, **settings)
    inputs, targets = torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)

    def step_of_torch() -> Any:
        return optimizer.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))

    expected = [step_of_torch()]
    assert float(values[0]) == pytest.approx(expected[0], rel=3e-7)
    moved = max(float(abs(w[0] - s).max()) for w, s in zip(weights, start, strict=True))
    for ours, theirs in zip(weights, model.parameters(), strict=True):
        of_torch = theirs.detach().numpy()
        np.testing.assert_allclose(ours[0], of_torch, rtol=0, atol=0.01 * moved + 1e-7)

    expected += [step_of_torch() for _ in range(steps - 1)]
    two_sided = settings.get("two_sided", kind is SPSA)
    assert values[0] == pytest.approx(before, rel=1e-6) or two_sided
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    assert float(values[-1]) < 0.9 * before
    for ours, theirs in zip(params, model.parameters(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-3)
    assert int(state.step) == steps
    assert int(state.skipped_steps) == 0
    assert float(state.last_learning_rate) == pytest.approx(optimizer.last_learning_rate, rel=1e-2)
    assert float(state.last_rpe) == pytest.approx(optimizer.last_rpe, rel=0.05, abs=1e-5)


def test_vmap_runs_many_seeds_at_once() -> None:
    functional, params = Functional(Dopamine), weights_of(network())
    seeds = jnp.arange(5)
    states = jax.vmap(functional.init, (None, 0))(params, seeds)
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (5, *x.shape)), params)
    many, _, values = jax.jit(jax.vmap(lambda p, s: run(functional, p, s, 20)))(stacked, states)
    assert len({float(v) for v in values[:, -1]}) == 5
    run_alone = jax.jit(lambda p, s: run(functional, p, s, 20))
    for i in range(5):
        one, _, alone = run_alone(params, functional.init(params, i))
        np.testing.assert_allclose(values[i], alone, rtol=1e-4)
        for a, b in zip(many, one, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-4)


def test_a_traced_seed_is_the_number_itself() -> None:
    functional, params = Functional(WeightPerturbation), weights_of(network())
    as_number, traced = functional.init(params, 77), jax.jit(functional.init)(params, 77)
    for a, b in zip(jax.tree.leaves(as_number), jax.tree.leaves(traced), strict=True):
        np.testing.assert_array_equal(a, b)
    with jax.enable_x64(True):
        wide = jax.jit(functional.init)(params, jnp.int64(SEED))
    np.testing.assert_array_equal(wide.key, functional.init(params, SEED).key)


def test_the_learning_rate_may_change_from_step_to_step() -> None:
    functional, params = Functional(WeightPerturbation, lr=0.5), weights_of(network())
    state = functional.init(params, 0)
    step = jax.jit(lambda rate: functional.step(loss, params, state, lr=rate)[0])
    usual, _, _ = jax.jit(lambda p: functional.step(loss, p, state))(params)
    still, same = step(0.0), step(0.5)
    for w, a, b, c in zip(params, still, same, usual, strict=True):
        np.testing.assert_array_equal(w, a)
        np.testing.assert_allclose(b, c, rtol=1e-3, atol=1e-5)
    assert any((a != c).any() for a, c in zip(params, usual, strict=True))


def test_a_batch_reaches_the_loss() -> None:
    functional, params = Functional(Dopamine), weights_of(network())
    _, _, value = functional.step(loss, params, functional.init(params, 0), 2 * INPUTS)
    assert float(value) == float(loss(params, 2 * INPUTS)) != float(loss(params))


@pytest.mark.parametrize("kind", [Dopamine, Dopamine2, WeightPerturbation, SPSA])
def test_a_loss_that_is_not_finite_changes_nothing(kind: type[ScalarRule]) -> None:
    functional, params = Functional(kind, weight_decay=0.1), weights_of(network())
    params, state, _ = run(functional, params, functional.init(params, 0), 3)
    step = jax.jit(lambda x: functional.step(lambda w: loss(w) * x, params, state))
    for bad in (math.nan, math.inf):
        after, skipped, _ = step(bad)
        for a, b in zip(params, after, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.rule), jax.tree.leaves(skipped.rule), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (int(skipped.skipped_steps), int(skipped.step)) == (1, 4)
        assert float(skipped.last_rpe) == float(state.last_rpe)


def test_a_constant_loss_moves_nothing() -> None:
    for kind in (Dopamine, Dopamine2):
        functional, params = Functional(kind), weights_of(network())
        for constant in (0.0, 1.0):
            after, state, _ = functional.step(
                lambda w, c=constant: jnp.float32(c), params, functional.init(params, 0)
            )
            assert int(state.skipped_steps) == 0
            for a, b in zip(params, after, strict=True):
                np.testing.assert_array_equal(a, b)


def test_dictionaries_keep_their_form() -> None:
    functional, params = Functional(Dopamine), {"b": jnp.ones(3), "a": {"c": jnp.ones((2, 2))}}
    after, _, _ = functional.step(
        lambda w: jnp.sum(w["b"] ** 2) + jnp.sum(w["a"]["c"] ** 2),
        params,
        functional.init(params, 0),
    )
    assert jax.tree.structure(after) == jax.tree.structure(params)
    # The first leaf is "a", so that its signs are those of parameter 0.
    key = jnp.array([0, 0], jnp.uint32)
    z = signs(sign_words(4, key, 0, jnp.uint32(0)), 4)
    moved = np.asarray(after["a"]["c"] - 1.0).reshape(-1)
    np.testing.assert_allclose(moved / abs(moved), np.asarray(z) * np.sign(moved[0] * z[0]))


def test_rules_of_users_work_too() -> None:
    class Halves(ScalarRule):
        def rule(self, state: Any, losses: Losses, groups: list[Group]) -> Decision:
            return Decision(
                None, [(p - losses.base) / 2 for p in losses.plus], [100.0], [0.1], losses.plus[0]
            )

    functional, params = Functional(Halves, lr=1.0, sigma=0.01), weights_of(network())
    plain = Functional(WeightPerturbation, lr=0.5, sigma=0.01)
    ours, _, _ = functional.step(loss, params, functional.init(params, 0))
    same, _, _ = plain.step(loss, params, plain.init(params, 0))
    for a, b in zip(ours, same, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Functional(VectorDopamine), TypeError, "got VectorDopamine"),  # pyright: ignore[reportArgumentType]
        (lambda: Functional(EvolutionStrategy), TypeError, "got EvolutionStrategy"),
        (lambda: Functional("dopamine"), TypeError, "expected Dopamine"),  # pyright: ignore[reportArgumentType]
        (lambda: Functional(Dopamine, seed=3), TypeError, "give it to init"),
        (lambda: Functional(Dopamine, batched=True), TypeError, "use jax.vmap"),
        (lambda: Functional(Dopamine, sigma=-1.0), ValueError, "sigma"),
        (lambda: Functional(Dopamine, tau=0.5), TypeError, "tau"),
        (lambda: Functional(Dopamine).init([jnp.ones(3)], -1), ValueError, "seed must be in"),
        (
            lambda: Functional(Dopamine).init([jnp.ones(3)], [1, 2]),
            TypeError,
            "one seed for one run",
        ),
        (
            lambda: Functional(Dopamine).init([jnp.ones(3, jnp.bfloat16)], 1),
            TypeError,
            "found bfloat16",
        ),
        (lambda: Functional(Dopamine).init({"steps": 3}, 1), TypeError, "found int"),
        (lambda: Functional(Dopamine).init({}, 1), TypeError, "found nothing"),
    ],
)
def test_errors_say_what_to_do(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
