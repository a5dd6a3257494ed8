"""Weights perturbed in place by signs come back to the bit, and a step passes over them K + 1
times.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import dopaminergic.noise as noise
from dopaminergic import SPSA, ForwardOptimizer, VectorDopamine, WeightPerturbation, squared_error
from dopaminergic.noise import backends
from dopaminergic.weights import Weights
from dopaminergic.weights import layout as module
from optimizers import ROWS, Bowl, Row, copies, same

LIMIT = 2.0**17  # of |w| / sigma


@pytest.fixture(params=["numba", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large, and noise comes from the kernels or the reference."""
    monkeypatch.setattr(module, "SAVED_BYTES", 0)
    if request.param == "torch":
        monkeypatch.setattr(backends, "fast_kernels", lambda: None)


def weights_of(
    values: list[float], dtype: torch.dtype, sigma: float, *, decay: bool = False
) -> Weights:
    w = nn.Parameter(torch.tensor(values, dtype=dtype))
    return Weights([{"params": [w], "sigma": sigma}], np.array([3], np.uint64), "rademacher")


sizes = st.floats(1e-6, 10.0)
moves = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, -1])), min_size=1, max_size=8)


@st.composite
def problems(draw: Any) -> tuple[list[float], float]:
    """Weights of very different sizes, up to the limit, and a sigma."""
    sigma = draw(sizes)
    exponents = st.floats(-30.0, 16.9)
    values = draw(
        st.lists(
            st.tuples(exponents, st.sampled_from([1.0, -1.0, 0.0, -0.0])), min_size=1, max_size=200
        )
    )
    return [sign * sigma * 2.0**e for e, sign in values], sigma


@given(problem=problems(), moved=moves, dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.usefixtures("path")
def test_any_moves_are_undone_to_the_bit(
    problem: tuple[list[float], float], moved: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    weights = weights_of(*problem[:1], dtype, problem[1])
    weights.begin(0)
    (w,), (sigma,) = weights.groups[0]["params"], weights.sigmas
    old = w.detach().clone()
    for direction, sign in moved:
        weights.move([(direction, [sign * sigma])])
        # And the displacement is exact.
        assert torch.equal((w.detach() - old).abs(), torch.full_like(old, sigma))
    weights.restore(0)
    assert torch.equal(w.detach(), old)  # where -0 counts as 0


@given(
    problem=problems(),
    moved=moves,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shrink=st.booleans(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.usefixtures("path")
def test_an_update_does_not_depend_on_the_moves_before_it(
    problem: tuple[list[float], float],
    moved: list[tuple[int, int]],
    dtype: torch.dtype,
    shrink: bool,
) -> None:
    ends = []
    for probed in (True, False):
        weights = weights_of(*problem[:1], dtype, problem[1])
        weights.begin(0)
        for direction, sign in moved if probed else []:
            weights.move([(direction, [sign * weights.sigmas[0]])])
        terms: list[noise.Term] = [(k, [0.3 * problem[1] * (k + 1)]) for k in range(2)]
        weights.update(terms, [0.9] if shrink else None, lambda: None)
        w = weights.groups[0]["params"][0].detach()
        ends.append(w.clone())
        on_grid = torch.copysign((w.abs() + weights.sigmas[0]) - weights.sigmas[0], w)
        inside = w.abs() < LIMIT * weights.sigmas[0]
        assert torch.equal(on_grid[inside], w[inside])
    assert same(ends[:1], ends[1:])


@pytest.mark.parametrize("sigma", [1e-3, 3e-4, 0.01, 1 / 3, 7e-9, 123.0])
def test_the_sigma_that_is_used_is_the_nearest_of_six_bits(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVED_BYTES", 0)
    weights = weights_of([1.0], torch.float32, sigma)
    weights.begin(0)
    used = weights.sigmas[0]
    fraction = used / 2.0 ** np.floor(np.log2(used))
    assert fraction * 32 == round(fraction * 32)
    assert abs(used / sigma - 1) <= 1 / 64


def test_weights_that_somebody_writes_between_steps_come_onto_the_grid() -> None:
    bowl = Bowl()
    optimizer = WeightPerturbation([bowl.w], sigma=0.01)
    optimizer.step(bowl.loss)
    with torch.no_grad():
        bowl.w.mul_(0.123456)
    seen = []

    def closure() -> Any:
        seen.append(bowl.w.detach().clone())
        return bowl.loss()

    optimizer.probe(closure)
    assert torch.equal(bowl.w.detach(), seen[0])
    sigma = torch.tensor(optimizer._weights.sigmas[0])
    assert torch.equal(torch.copysign((seen[0].abs() + sigma) - sigma, seen[0]), seen[0])


def test_a_rule_sees_the_sigma_that_is_used() -> None:
    """A linear loss has the slope 1 whatever the sigma, if what is divided by is what the weights
    were moved by.
    """
    w = nn.Parameter(torch.zeros(300_000))
    optimizer, found = WeightPerturbation([w], sigma=0.0101, lr=1.0), []
    optimizer.register_step_post_hook(lambda *_: found.append(w.detach()[0].item()))
    optimizer.step(lambda: w[0].double())
    assert abs(found[0]) == pytest.approx(1.0, abs=1e-6)


# ---- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2, 16])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.passes(1) == 2], ids=lambda row: row.name
)
def test_noise_passes_over_the_weights_once_per_direction_and_once_more(
    row: Row, directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bowl = Bowl()
    optimizer = row.make([bowl.w], directions=directions)
    optimizer.step(bowl.loss)
    passes, calls = counted(monkeypatch), 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return bowl.loss()

    optimizer.step(closure)
    two_sided = row.make is SPSA or row.name == "EvolutionStrategy"
    assert len(passes) == (2 if two_sided else 1) * directions + 1
    assert calls == row.passes(directions)
    if two_sided:  # from one side to the other along one direction, not back and on
        assert passes[1 : 2 * directions : 2] == [1] * directions


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many terms each pass over the weights adds, one number for each from now on."""
    passes: list[int] = []
    call = noise.Combination.__call__

    def count(self: Any, *arguments: Any, **named: Any) -> None:
        passes.append(len(arguments[0]) + len(named.get("undo", ())))
        call(self, *arguments, **named)

    monkeypatch.setattr(noise.Combination, "__call__", count)
    return passes


def steps_of(
    make: Callable[..., ForwardOptimizer], count: int, **options: Any
) -> Callable[[], None]:
    bowl = Bowl()
    optimizer = make([bowl.w], **options)

    def work() -> None:
        for _ in range(count):
            optimizer.step(lambda: float(bowl.w[0]))

    return work


@pytest.mark.parametrize("directions", [1, 3])
def test_steps_leave_no_memory_behind(directions: int) -> None:
    work = steps_of(WeightPerturbation, 20, directions=directions)
    work()
    tracemalloc.start()
    try:
        # Numpy keeps small arrays for the next ones, some more in each round at first.
        for _ in range(4):
            work()
        before = tracemalloc.get_traced_memory()[0]
        work()
        assert tracemalloc.get_traced_memory()[0] - before < 2_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_no_tensor_of_the_size_of_the_weights_is_made(kind: str) -> None:
    work = steps_of(WeightPerturbation, 1, directions=3, noise=kind)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    assert profile is not None
    assert profile.function_events is not None
    assert max((e.cpu_memory_usage for e in profile.function_events), default=0) < 300_000


def test_a_trial_step_that_is_accepted_costs_no_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are already where it leads; what is left is the grid."""
    w = nn.Parameter(torch.linspace(-1, 1, 300_000))
    x = torch.linspace(0, 1, 12_000).reshape(4, 3_000)
    optimizer = VectorDopamine([w], directions=4, lr=0.5)
    passes = counted(monkeypatch)
    improved = []
    for _ in range(4):
        optimizer.step(lambda: squared_error(x @ w[:3_000], torch.zeros(4)))
        improved.append(passes[-1] == 0)
    assert any(improved)
    old = copies([w])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert same(copies([w]), old)
