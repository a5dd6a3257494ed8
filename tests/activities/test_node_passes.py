"""No step takes more forward passes than were announced, however many sites there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from optimizers import copies, randn, same, through_a_file


@pytest.fixture(params=[NodeDopamine, NodePerturbation])
def rule(request: pytest.FixtureRequest) -> Any:
    """Both rules."""
    return request.param


def deep(layers: int) -> nn.Sequential:
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(5, 5), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(5, 2)).double()


def step(optimizer: Any, model: nn.Module, x: Tensor) -> int:
    """Take a step; returns its passes, which must have been announced."""
    values = model(x)
    said, before = optimizer.next_passes, optimizer.forward_passes
    optimizer.step(lambda: squared_error(model(x), torch.zeros_like(values)))
    taken = optimizer.forward_passes - before
    assert 0 < taken <= said
    return taken


@pytest.mark.parametrize("layers", [1, 4, 8, 15, 16, 17, 40])
@pytest.mark.parametrize("shape", [(12, 5), (6, 7, 5), (10, 5), (5, 10, 5)])
def test_no_step_takes_more_passes_than_it_has_announced(
    rule: Any, layers: int, shape: tuple[int, ...]
) -> None:
    model = deep(layers)
    optimizer = rule(model)
    x = randn(*shape, seed=2)
    first = copies(model.parameters())
    for _ in range(10):
        step(optimizer, model, x)
    assert optimizer.next_passes == rule.most_passes
    assert "open" not in optimizer.state_dict()["forward"]["memory"]
    assert not any(map(torch.equal, first, copies(model.parameters())))


def test_steps_until_all_sites_are_known_leave_the_weights_alone(rule: Any) -> None:
    model = deep(40)
    optimizer = rule(model)
    x = randn(12, 5, seed=2)
    before = copies(model.parameters())
    taken = [step(optimizer, model, x) for _ in range(2)]
    assert taken == [17, 17]  # the record, and 16 of 40 checks
    assert same(before, copies(model.parameters()))
    step(optimizer, model, x)
    assert not any(map(torch.equal, before, copies(model.parameters())))


def test_new_lengths_of_sequences_are_looked_at_within_what_was_announced(rule: Any) -> None:
    model = deep(3)
    optimizer = rule(model)
    for length in (4, 4, 5, 5, 5, 6, 7, 8, 8, 4):
        step(optimizer, model, randn(6, length, 5, seed=2))
    assert optimizer.next_passes == rule.most_passes


def test_a_run_that_is_resumed_between_checks_announces_the_same(rule: Any) -> None:
    model, other = deep(40), deep(40)
    optimizer, again = rule(model), rule(other)
    x = randn(12, 5, seed=2)
    step(optimizer, model, x)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    for _ in range(4):
        assert optimizer.next_passes == again.next_passes
        assert step(optimizer, model, x) == step(again, other, x)
    assert same(copies(model.parameters()), copies(other.parameters()))


def test_the_layouts_of_a_fleet_of_two_outlast_a_replica_that_is_skipped(rule: Any) -> None:
    weights = [nn.Parameter(randn(2, *shape, seed=5)) for shape in ((5, 6), (6, 3))]
    weights[0].data[1] = torch.nan
    x = randn(4, 5, seed=3)
    target = x.new_zeros(2, 4, 3)
    optimizer = rule(weights, seed=[1, 2])
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(lambda: squared_error(torch.tanh(x @ weights[0]) @ weights[1], target))
    memory = optimizer.state_dict()["forward"]["memory"]
    found = [value.tolist() for name, value in memory.items() if name.startswith("layout")]
    assert found
    assert all(lag == -1 for _, lag in found)
