"""Properties of a step for parameters of any shape, dtype, layout and grouping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dopaminergic import Dopamine
from optimizers import Row, copies, randn, same

# The same examples each time, and few of them: a failure is then one that everybody sees.
bounded = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
LAYOUTS = ("plain", "transposed", "sliced", "strided")


@st.composite
def parameters(draw: Any) -> list[nn.Parameter]:
    """One to five, of which at least one is not empty and can be trained."""
    found = []
    for i in range(draw(st.integers(1, 4))):
        shape, dtype = (
            draw(SHAPES),
            draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        )
        layout, p = draw(st.sampled_from(LAYOUTS)), randn(*shape, seed=i, dtype=dtype)
        if layout == "transposed" and len(shape) > 1:
            p = randn(*shape[::-1], seed=i, dtype=dtype).permute(*range(len(shape))[::-1])
        elif layout == "sliced" and shape:
            p = randn(shape[0] + 2, *shape[1:], seed=i, dtype=dtype)[1:-1]
        elif layout == "strided" and shape:
            p = randn(*shape[:-1], 2 * shape[-1], seed=i, dtype=dtype)[..., ::2]
        found.append(nn.Parameter(p, requires_grad=draw(st.booleans())))
    return [*found, nn.Parameter(randn(draw(st.integers(1, 3)), seed=9))]


def loss_of(params: list[nn.Parameter]) -> Tensor:
    return (
        sum((p.double().square().sum() for p in params), torch.zeros((), dtype=torch.float64)) + 1.0
    )


@bounded
@given(params=parameters(), data=st.data())
def test_no_learning_rate_no_change(
    any_row: Row, params: list[nn.Parameter], data: st.DataObject
) -> None:
    old, directions = copies(params), data.draw(st.integers(1, 3))
    optimizer = any_row.make(params, lr=0.0, directions=directions, weight_decay=0.1)
    optimizer.step(lambda: loss_of(params))
    assert same(copies(params), old)
    assert optimizer.forward_passes > 0


@bounded
@given(params=parameters())
def test_frozen_and_empty_parameters_stay_and_others_move(
    row: Row, params: list[nn.Parameter]
) -> None:
    old = copies(params)
    row.make(params, lr=0.1, sigma=0.1).step(lambda: loss_of(params))
    assert all(torch.equal(p, o) for p, o in zip(params, old, strict=True) if not p.requires_grad)
    assert not torch.equal(params[-1], old[-1])


@bounded
@given(
    params=parameters(), bad=st.sampled_from([math.nan, math.inf, -math.inf]), at=st.integers(1, 2)
)
def test_a_loss_that_is_not_finite_changes_no_weight(
    row: Row, params: list[nn.Parameter], bad: float, at: int
) -> None:
    if row.name == "EvolutionStrategy" and bad == math.inf:
        bad = math.nan  # inf ranks last there
    old, calls = copies(params), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(params) * (bad if calls == at else 1.0)

    optimizer = row.make(params)
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(closure)
    assert same(copies(params), old)
    assert optimizer.skipped_steps == 1


def probed(params: list[nn.Parameter], groups: list[Any]) -> list[Tensor]:
    """The parameters as the closure saw them when they were perturbed."""
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append(copies(params))
        return torch.ones((), dtype=torch.float64)

    Dopamine(groups, sigma=0.125, two_sided=False).step(closure)
    return seen[1]


@bounded
@given(params=parameters(), data=st.data())
def test_noise_depends_on_the_index_alone_not_on_the_grouping_or_the_neighbours(
    params: list[nn.Parameter], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(params) - 1))
    one = probed(params, [{"params": params}])
    two = probed(params, [{"params": params[:cut]}, {"params": params[cut:]}])
    assert same(one, two)
    # Another neighbour of the same place, frozen or not, larger or smaller, changes nothing for the
    # last.
    others = [nn.Parameter(randn(data.draw(st.integers(1, 300)))) for _ in params[:-1]] + [
        params[-1]
    ]
    assert torch.equal(probed(others, [{"params": others}])[-1], one[-1])


@bounded
@given(params=parameters(), directions=st.integers(1, 3))
def test_a_saved_state_continues_bit_for_bit(
    any_row: Row, params: list[nn.Parameter], directions: int
) -> None:
    optimizer = any_row.make(params, directions=directions)
    optimizer.step(lambda: loss_of(params))
    twins = [nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in params]
    twin = any_row.make(twins, directions=directions, seed=7)
    twin.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        assert optimizer.step(lambda: loss_of(params)) == twin.step(lambda: loss_of(twins))
    assert same(copies(params), copies(twins))


@bounded
@given(shape=SHAPES.filter(lambda shape: 0 not in shape), seed=st.integers(0, 2**63 - 1))
def test_a_fleet_of_one_is_the_single_run(row: Row, shape: tuple[int, ...], seed: int) -> None:
    w, stacked = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape)[None].clone())
    alone, fleet = row.make([w], seed=seed), row.make([stacked], seed=[seed])
    for _ in range(3):
        alone.step(lambda: w.square().sum())
        fleet.step(lambda: stacked.square().reshape(1, -1).sum(1))
    torch.testing.assert_close(w, stacked[0], rtol=1e-12, atol=1e-14)


# ---- memory that parameters share ----------------------------------------------------------------


def test_a_tied_parameter_is_one_parameter() -> None:
    """As `model.parameters()` lists it; torch itself refuses the same tensor twice."""
    tied = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(tied, nn.Tanh(), tied)
    optimizer = Dopamine(model.parameters())
    old = copies([tied.weight])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert same(copies([tied.weight]), old)
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(ValueError, match="share memory"),
    ):
        Dopamine([tied.weight, tied.weight])


@bounded
@given(first=st.integers(0, 6), size=st.integers(1, 6))
def test_parameters_that_share_memory_are_refused_and_neighbours_are_not(
    first: int, size: int
) -> None:
    memory = randn(12)
    a, b = nn.Parameter(memory[:4]), nn.Parameter(memory[first : first + size])
    if first < 4:
        with pytest.raises(ValueError, match="share memory"):
            Dopamine([a, b])
    else:
        assert Dopamine([a, b]).param_groups[0]["params"][1] is b


def test_a_parameter_whose_elements_share_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="share memory"):
        Dopamine([nn.Parameter(torch.ones(1, 3).expand(4, 3))])
    assert Dopamine([nn.Parameter(torch.ones(4, 3).t())]).forward_passes == 0
