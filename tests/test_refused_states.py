"""States from files that nobody vouches for: what the constructor refuses is refused, and then
nothing has changed.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parameter import Parameter

from dopaminergic import Dopamine, Dopamine2, VectorDopamine, WeightPerturbation, squared_error
from dopaminergic.plain import brief
from dopaminergic.weight_optimizer import WeightOptimizer
from optimizers import ROWS, VECTOR, Row, copies, randn, same, through_a_file

HOSTILE: list[Any] = [
    None,
    True,
    "bogus",
    "",
    [],
    {},
    [0],
    {"a": 1},
    0,
    -1,
    1,
    3.5,
    math.nan,
    math.inf,
    -math.inf,
    -1e-3,
    1e30,
    1e300,
    -1e300,
    1 << 32,
    (1 << 32) - 2,
    10**30,
    10**5000,
    [1, 2],
    [math.nan] * 6,
    torch.tensor(math.nan),
    torch.tensor([math.nan], dtype=torch.float64),
    torch.tensor([1e300], dtype=torch.float64),
    torch.tensor([-1.0], dtype=torch.float64),
    torch.tensor([1.0]),
    torch.zeros(2, 2, dtype=torch.float64),
    torch.zeros(3, dtype=torch.int64),
    torch.full((3,), -1, dtype=torch.int64),
    torch.full((3,), math.nan, dtype=torch.float64),
    torch.empty(1, dtype=torch.float64, device="meta"),
    np.array([1.0, 2.0]),
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be exchanged in a state."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, entry in inside:
        yield (*path, key)
        yield from paths(entry, (*path, key))


def exchanged(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(state)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def trained(row: Row, seed: Any) -> tuple[Parameter, WeightOptimizer, Any]:
    """A weight, an optimizer after three steps, and the closure."""
    shape = (3, 4) if isinstance(seed, list) else (8,)
    w = Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = row.make([("w", w)], seed=seed, weight_decay=0.1)

    def closure() -> Any:
        return squared_error(w, torch.zeros_like(w))

    for _ in range(3):
        optimizer.step(closure)
    return w, optimizer, closure


def check(optimizer: WeightOptimizer, w: Parameter, closure: Any, state: Any, what: Any) -> bool:
    """Load it. Refused: nothing has changed. Taken: the run goes on, near the weights. Returns
    whether it was taken.
    """
    before, old, listeners = str(optimizer.state_dict()), copies([w]), list(optimizer._listeners)
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        said = str(error)
        assert len(said) <= 300, (what, said)
        assert optimizer._rule_name in said, (what, said)
        assert said.isprintable(), (what, said)
        assert str(optimizer.state_dict()) == before, what
        assert same(copies([w]), old), what
        assert optimizer._listeners == listeners
        return False
    through_a_file(optimizer.state_dict())
    for _ in range(3):
        optimizer.step(closure)
    assert bool(w.isfinite().all()), what
    return True


# Those that the constructor takes too, or that change nothing but what is told.
FREE = {
    "lr",
    "sigma",
    "weight_decay",
    "loss_floor",
    "cap",
    "tau",
    "kappa",
    "damping",
    "memory",
    "directions",
}


@pytest.mark.filterwarnings("ignore:Dopamine. a loss of .* is below loss_floor:RuntimeWarning")
# With a sigma or a rate of 1e300.
@pytest.mark.filterwarnings("ignore:.*the step was skipped:RuntimeWarning")
# With a kappa of 1e300.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("seed", [5, [5, 6, 7]], ids=["one", "fleet"])
@pytest.mark.parametrize("row", [*ROWS, VECTOR], ids=lambda row: row.name)
def test_whatever_is_exchanged_weights_stay_sound(row: Row, seed: Any) -> None:
    """Each entry of a state in turn is exchanged for a quarter of the hostile values, the next one
    for the next.
    """
    w, optimizer, closure = trained(row, seed)
    good = optimizer.state_dict()
    start, tried, taken = w.detach().clone(), 0, 0
    for i, path in enumerate(paths(good)):
        for value in HOSTILE[i % 4 :: 4]:
            what = (path, brief(value))
            tried += 1
            if not check(optimizer, w, closure, exchanged(good, path, value), what):
                continue
            taken += 1
            if path[-1] not in FREE:
                assert float((w.detach() - start).abs().max()) < 10.0, what
            with torch.no_grad():
                w.copy_(start)
            optimizer.load_state_dict(good)
    assert tried > 200
    assert taken < tried / 4


@pytest.mark.parametrize("row", [*ROWS, VECTOR], ids=lambda row: row.name)
def test_what_is_missing_or_unknown_is_refused(row: Row) -> None:
    w, optimizer, closure = trained(row, 5)
    good = optimizer.state_dict()
    for path in paths(good):
        changed = copy.deepcopy(good)
        at = changed
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        # Which earlier versions did not save.
        older = path in (("forward", "batched"), ("forward", "on_use"))
        taken = check(optimizer, w, closure, changed, path)
        assert taken is (older or path[-1] == "param_names"), path
        optimizer.load_state_dict(good)
    for place in ((), ("settings",), ("progress",), ("batched",), ("on_use",)):
        assert not check(
            optimizer, w, closure, exchanged(good, ("forward", *place, "other"), 1), place
        )


@pytest.mark.parametrize(
    ("make", "path", "value", "words"),
    [
        (Dopamine, ("param_groups", 0, "lr"), -1.0, ["lr must be finite and >= 0", "-1.0"]),
        (Dopamine, ("param_groups", 0, "sigma"), 0.0, ["sigma must be finite and > 0", "0.0"]),
        (Dopamine, ("forward", "settings", "noise"), "bogus", ["noise must be one of", "'bogus'"]),
        (Dopamine, ("forward", "settings", "seed"), -1, ["seed must be in [0, 2^63)", "-1"]),
        (Dopamine, ("forward", "settings", "seed"), [1, 2], ["fleet of 2 seeds", "a single model"]),
        (Dopamine, ("forward", "settings", "cap"), 0.0, ["cap must be finite and > 0"]),
        (Dopamine, ("forward", "settings", "beta"), 1.0, ["beta must be finite", "< 1"]),
        (Dopamine, ("forward", "settings", "two_sided"), 1, ["two_sided must be True or False"]),
        (
            Dopamine,
            ("forward", "settings", "directions"),
            1 << 32,
            ["directions must be", str(1 << 32)],
        ),
        (Dopamine, ("forward", "rule", 0), 1e300, ["rule regret", "1e+300"]),
        (Dopamine, ("forward", "rule", 1), -1.0, ["rule root", "in [0, inf]", "-1.0"]),
        (Dopamine, ("forward", "progress", "step"), -1, ["step must be an int", "-1"]),
        (Dopamine, ("forward", "progress", "step"), (1 << 32) - 2, ["step must be an int"]),
        (Dopamine, ("forward", "progress"), {}, ["progress lacks 'step'"]),
        (Dopamine, ("forward", "batched", "refused"), 1, ["batched refused must be True or False"]),
        (Dopamine2, ("forward", "settings", "tau"), 1.0, ["tau must be finite"]),
        (Dopamine2, ("forward", "rule", 10), 1e30, ["rule gain", "0.001", "1000"]),
        (VectorDopamine, ("forward", "settings", "memory"), 0, ["memory must be"]),
        (
            VectorDopamine,
            ("forward", "settings", "automatic"),
            "yes",
            ["automatic must be True or False"],
        ),
        (
            VectorDopamine,
            ("forward", "rule", 0),
            torch.ones(1),
            ["rule damping", "float64 tensor of shape (1,)"],
        ),
        (WeightPerturbation, ("forward", "rule"), [1.0], ["rule must be None"]),
    ],
    ids=str,
)
def test_the_error_names_the_setting_and_the_value(
    make: Any, path: Any, value: Any, words: list[str]
) -> None:
    optimizer = make([nn.Parameter(randn(4))])
    with pytest.raises(ValueError, match=f"{make.__name__}.load_state_dict") as caught:
        optimizer.load_state_dict(exchanged(optimizer.state_dict(), path, value))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_fleet_takes_no_state_of_another_size(any_row: Row) -> None:
    w = nn.Parameter(randn(3, 4))
    one, fleet = any_row.make([w]), any_row.make([w], seed=[0, 1, 2])
    for optimizer, state in ((one, fleet.state_dict()), (fleet, one.state_dict())):
        before = str(optimizer.state_dict())
        with pytest.raises(ValueError, match=any_row.name):
            optimizer.load_state_dict(state)
        assert str(optimizer.state_dict()) == before
    changed = fleet.state_dict()
    changed["forward"]["settings"]["seed"] = [0, 1]
    with pytest.raises(ValueError, match="fleet of 2 seeds, this optimizer of a fleet of 3"):
        fleet.load_state_dict(changed)


# ---- the order of parameters ---------------------------------------------------------------------


def named(*names: str) -> list[tuple[str, Parameter]]:
    return [(name, Parameter(randn(4, 4))) for name in names]


def test_a_state_of_another_order_is_refused_by_name(any_row: Row) -> None:
    one, other = any_row.make(named("a", "b", "c")), any_row.make(named("a", "c", "b"))
    with pytest.raises(
        ValueError, match="another order: number 1 of a group is 'b' there and 'c' here"
    ):
        other.load_state_dict(one.state_dict())
    state = one.state_dict()
    del state["param_groups"][0]["param_names"]  # the way out that the error names
    other.load_state_dict(state)


def test_wrappers_of_a_model_and_unnamed_parameters_are_not_another_order(any_row: Row) -> None:
    plain = any_row.make(named("a.weight", "b.weight"))
    wrapped = any_row.make(named("module.a.weight", "_orig_mod.b.weight"))
    unnamed = any_row.make([p for _, p in named("x", "y")])
    for one, other in ((plain, wrapped), (wrapped, plain), (plain, unnamed), (unnamed, plain)):
        one.step(lambda: 1.0)
        other.load_state_dict(one.state_dict())
        assert str(other.state_dict()["forward"]) == str(one.state_dict()["forward"])


# ---- whatever happens, a run's own state can be loaded -------------------------------------------

LOSSES = (
    st.floats(-1e100, 1e100) | st.floats(-10, 10) | st.sampled_from([math.nan, math.inf, -math.inf])
)


@pytest.mark.parametrize("row", [*ROWS, VECTOR], ids=lambda row: row.name)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(losses=st.lists(LOSSES, min_size=4, max_size=40))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_state_that_a_run_came_to_can_be_loaded(row: Row, losses: list[float]) -> None:
    w = Parameter(randn(3))
    optimizer, rest = row.make([w]), iter(losses)
    while True:
        try:
            optimizer.step(lambda: next(rest))
        except StopIteration:
            break
    saved = through_a_file(optimizer.state_dict())
    other = row.make([Parameter(randn(3))])
    other.load_state_dict(saved)
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_a_hook_that_fails_leaves_the_optimizer_as_it_was(any_row: Row) -> None:
    w = nn.Parameter(randn(4))
    optimizer = any_row.make([w], lr=0.25)
    optimizer.step(lambda: (w**2).sum())
    state, groups, weights = str(optimizer.state_dict()), optimizer.param_groups, optimizer._weights

    def fail(_: Any) -> None:
        raise ConnectionError("of a hook")

    def spoil(_: Any, state: Any) -> Any:
        return {
            **state,
            "param_groups": [{**group, "lr": math.nan} for group in state["param_groups"]],
        }

    other = any_row.make([nn.Parameter(randn(4))], seed=3).state_dict()
    for register, hook, error in (
        (optimizer.register_load_state_dict_post_hook, fail, ConnectionError),
        (optimizer.register_load_state_dict_pre_hook, spoil, ValueError),
    ):
        handle = register(hook)  # pyright: ignore[reportArgumentType]
        with pytest.raises(error):
            optimizer.load_state_dict(other)
        handle.remove()
        assert str(optimizer.state_dict()) == state
        assert optimizer.param_groups is groups
        assert optimizer._weights is weights
    optimizer.step(lambda: (w**2).sum())


def test_a_state_loaded_onto_another_device_goes_on_on_the_cpu(any_row: Row) -> None:
    """Its tensors are the rule's, whose arithmetic is the CPU's wherever the weights are."""
    _, optimizer, closure = trained(any_row, [5, 6, 7])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    optimizer.step(closure)
    file.seek(0)
    # They have no numbers.
    if any_row.name not in ("WeightPerturbation", "SPSA", "EvolutionStrategy"):
        with pytest.raises(ValueError, match="float64 tensor"):
            optimizer.load_state_dict(torch.load(file, map_location="meta", weights_only=True))
    optimizer.step(closure)
