"""A saved memory is used only if rules of nodes could have kept it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, cross_entropy, squared_error
from optimizers import randn, through_a_file

x = randn(12, 4, seed=1)
LABELS = torch.arange(12) % 2


def net(width: int) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).double()


@functools.cache
def trained(rule: Any, width: int) -> Any:
    """An optimizer after three steps."""
    model = net(width)
    optimizer = rule(model)
    for _ in range(3):
        optimizer.step(lambda: cross_entropy(model(x), LABELS))
    return optimizer


# Of second order, of first order, and with layouts alone.
KINDS = [(NodeDopamine, 6), (NodeDopamine, 300), (NodePerturbation, 6)]


class Missing(Exception):  # noqa: N818
    """A state has no such entry."""


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no memory": lambda forward: forward.pop("memory"),
    "memory that is a list": lambda forward: forward.update(memory=[]),
    "memory that is a tensor": lambda forward: forward.update(memory=torch.zeros(3)),
    "memory that is None": lambda forward: forward.update(memory=None),
    "a number in memory": lambda forward: forward["memory"].update(more=1.0),
    "a number for a name": lambda forward: forward["memory"].update({3: torch.zeros(2)}),
    "NaN in memory": lambda forward: forward["memory"].update(more=torch.tensor([torch.nan])),
    "infinity in memory": lambda forward: forward["memory"].update(more=torch.tensor(torch.inf)),
    "a sparse tensor": lambda forward: forward["memory"].update(more=torch.eye(2).to_sparse()),
    "a layout that does not exist": lambda forward: _change(
        forward, "layout", lambda value: torch.tensor([-3, 1])
    ),
    "a layout of another shape": lambda forward: _change(
        forward, "layout", lambda value: torch.zeros(3)
    ),
    "a layout of floats": lambda forward: _change(
        forward, "layout", lambda value: torch.tensor([0.5, 1.0])
    ),
    "feedback of another shape": lambda forward: _change(
        forward, "feedback", lambda value: value[:, :-1]
    ),
    "feedback of integers": lambda forward: _change(
        forward, "feedback", lambda value: value.long()
    ),
    "curvature of another size": lambda forward: _change(
        forward, "curvature", lambda value: value[:, 1:, 1:]
    ),
    "curvature that is not square": lambda forward: _change(
        forward, "curvature", lambda value: value[:, 1:]
    ),
    "a layout below none": lambda forward: _change(
        forward, "layout", lambda value: torch.tensor([0, -2])
    ),
    "feedback of complex numbers": lambda forward: _change(
        forward, "feedback", lambda value: value.to(torch.complex64)
    ),
    "feedback of another number of replicas": lambda forward: _change(
        forward, "feedback", lambda value: value.repeat(2, *[1] * (value.ndim - 1))
    ),
    "feedback without a shape": lambda forward: _rename(forward, "feedback", "feedback of 0"),
    "feedback of NaN": lambda forward: _change(
        forward, "feedback", lambda value: value * torch.nan
    ),
    "no tensor as feedback": lambda forward: _change(forward, "feedback", lambda value: [1.0]),
    "another name": lambda forward: _rename(forward, "", "of an older version"),
    "a name of another parameter": lambda forward: forward["memory"].update(
        {"square of 9": torch.zeros(1, 2)}
    ),
    "doubt of another shape": lambda forward: _change(forward, "doubt", lambda value: value[0]),
    "doubt below 0": lambda forward: _change(forward, "doubt", lambda value: -1.0 - value),
    "rows of another shape": lambda forward: _change(forward, "rows", lambda value: value[:, 1:]),
    "columns of another shape": lambda forward: _change(
        forward, "columns", lambda value: value[:, 1:]
    ),
    "rows below 0": lambda forward: _change(forward, "rows", lambda value: -1.0 - value),
    "squares of another shape": lambda forward: _change(
        forward, "square", lambda value: value[:, 1:]
    ),
    "squares below 0": lambda forward: _change(forward, "square", lambda value: -1.0 - value),
    "a side of another size": lambda forward: _change(
        forward, "left", lambda value: value[:, 1:, 1:]
    ),
    "a basis of another size": lambda forward: _change(
        forward, "basis", lambda value: value[:, 1:, 1:]
    ),
    "looks of floats": lambda forward: _change(forward, "looks", lambda value: value.double()),
    "looks below 0": lambda forward: _change(forward, "looks", lambda value: value - 9),
    "a pull below 0": lambda forward: _change(forward, "pull", lambda value: value - 1e9),
    "a level of another shape": lambda forward: _change(forward, "level", lambda value: value[0]),
    "a negative count of steps": lambda forward: forward["progress"].update(step=-1),
    "a negative damping": lambda forward: _damp(forward),
}


def _rename(forward: dict[str, Any], part: str, new: str) -> None:
    for name in forward["memory"]:
        if name.startswith(part):
            forward["memory"][new] = forward["memory"].pop(name)
            return
    raise Missing


def _change(forward: dict[str, Any], part: str, change: Callable[[Tensor], Any]) -> None:
    for name, value in forward["memory"].items():
        if name.startswith(part):
            forward["memory"][name] = change(value)
            return
    raise Missing


def _damp(forward: dict[str, Any]) -> None:
    if not forward["rule"]:
        raise Missing
    forward["rule"][0] = -torch.ones(1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_states_are_refused_without_a_change(damage: str) -> None:
    refused = 0
    for rule, width in KINDS:
        optimizer = trained(rule, width)
        state = copy.deepcopy(optimizer.state_dict())
        try:
            DAMAGES[damage](state["forward"])
        except Missing:
            continue
        before = str(optimizer.state_dict())
        with pytest.raises(ValueError, match="load_state_dict") as error:
            optimizer.load_state_dict(state)
        assert len(str(error.value)) <= 300
        assert before == str(optimizer.state_dict())
        refused += 1
    assert refused


# ---- states that are right -----------------------------------------------------------------------


class Odd(nn.Module):
    """Parameters of no, one, two and four dimensions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 16)
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.LayerNorm(width * 4)
        self.readout = nn.Linear(width * 4, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, numbers: Tensor) -> Tensor:
        images = torch.tanh(self.words(numbers)).view(-1, 1, 4, 4)
        return self.scale * self.readout(self.norm(self.conv(images).flatten(1)))


@pytest.mark.parametrize("width", [2, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_all_that_rules_keep_is_read_back(rule: Any, dtype: torch.dtype, width: int) -> None:
    model = Odd(width).to(dtype)
    numbers = torch.arange(12) % 5
    target = randn(12, 2, seed=3, dtype=torch.float32).to(dtype)
    optimizer = rule(model, lr=0.1)
    for frozen in (True, False, True):
        model.words.requires_grad_(frozen)
        optimizer.step(lambda: squared_error(model(numbers), target))
        state = through_a_file(optimizer.state_dict())
        again = rule(copy.deepcopy(model), lr=0.1)
        again.load_state_dict(state)
        assert str(again.state_dict()) == str(optimizer.state_dict())


@pytest.mark.parametrize("width", [6, 600])
@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_all_that_a_fleet_keeps_is_read_back(rule: Any, width: int) -> None:
    weights = [nn.Parameter(randn(3, *shape, seed=5)) for shape in ((4, width), (width, 2))]
    rates = torch.full((3,), 0.1, dtype=torch.float64)
    optimizer = rule(weights, seed=[1, 2, 3], lr=rates)
    target = x[:, :2].expand(3, 12, 2)
    for _ in range(2):
        optimizer.step(lambda: squared_error(torch.tanh(x @ weights[0]) @ weights[1], target))
    state = optimizer.state_dict()
    again = rule([nn.Parameter(w.detach().clone()) for w in weights], seed=[1, 2, 3], lr=rates)
    again.load_state_dict(state)
    assert str(again.state_dict()) == str(state)
