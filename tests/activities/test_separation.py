"""The lag of time is measured: which outcome comes with which step of units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from dopaminergic.lab.networks import Recurrent
from optimizers import randn

STEPS = 12
x = randn(6, STEPS, 3, seed=2)


@pytest.fixture(params=[NodeDopamine, NodePerturbation])
def rule(request: pytest.FixtureRequest) -> Any:
    """Both rules."""
    return request.param


class Net(nn.Module):
    """A recurrent module of torch, and a readout of some steps."""

    def __init__(self, net: Any, steps: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.net, self.steps = net, steps
        width = net.hidden_size * (2 if net.bidirectional else 1)
        self.readout = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.steps(self.net(x)[0]))


def found_by(optimizer: Any, predict: Callable[[], Tensor]) -> dict[str, Any]:
    """All that an optimizer keeps after a step towards 0."""

    def closure() -> Any:
        values = predict()
        return squared_error(values, torch.zeros_like(values))

    optimizer.step(closure)
    return optimizer.state_dict()["forward"]["memory"]


def lags_of(memory: dict[str, Any], part: str) -> set[int]:
    """The lags of families whose first weight's name has this part; -1 for none."""
    return {int(value[1]) for name, value in memory.items() if name.startswith(f"layout of {part}")}


def made(net: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return Net(net(3, 5, batch_first=True, **options)).double()


@pytest.mark.parametrize("washout", [0, 1, 3, 5])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_the_lag_is_the_number_of_first_steps_that_are_left_out(
    rule: Any, cell: str, washout: int
) -> None:
    model = Recurrent(3, 5, 2, cell=cell, dtype=torch.float64)
    model.as_written = True
    memory = found_by(rule(model), lambda: model(x)[0][:, washout:])
    assert lags_of(memory, "input_weight") == {washout}


def test_a_stacked_network_of_the_lab_has_the_lag_of_each_of_its_replicas(rule: Any) -> None:
    model = Recurrent(3, 5, 2, seeds=[1, 2], dtype=torch.float64)
    model.as_written = True
    optimizer = rule(model, seed=[1, 2])
    memory = found_by(optimizer, lambda: model(x.expand(2, *x.shape))[0][:, :, 3:])
    assert lags_of(memory, "input_weight") == {3}


@pytest.mark.parametrize("left_out", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_outcomes_without_the_last_steps_have_no_lag(rule: Any, kind: Any, left_out: int) -> None:
    model = made(kind)
    model.steps = lambda h: h[:, :-left_out]
    memory = found_by(rule(model), lambda: model(x))
    assert lags_of(memory, "net") == {0}


def test_outcomes_without_steps_at_both_ends_have_the_lag_of_the_first_ones(rule: Any) -> None:
    model = made(nn.GRU)
    memory = found_by(rule(model), lambda: model(x)[:, 2:-1])
    assert lags_of(memory, "net") == {2}


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_module_that_runs_both_ways_is_not_in_time_with_its_outcomes(
    rule: Any, kind: Any
) -> None:
    model = made(kind, bidirectional=True)
    memory = found_by(rule(model), lambda: model(x))
    backward = {name for name in memory if name.startswith("layout of net") and "reverse" in name}
    assert backward
    assert {int(memory[name][1]) for name in backward} == {-1}
    dense = {memory[n].shape for n in memory if n.startswith("feedback") and "reverse" in n}
    gates = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}[kind]
    # A GRU's recurrent product is a unit of its own.
    assert dense <= {(1, STEPS * 5 * gates, STEPS * 2), (1, STEPS * 5, STEPS * 2)}
    assert bool(dense) == (rule is NodeDopamine)


def test_outcomes_of_the_last_step_alone_have_no_time(rule: Any) -> None:
    model = made(nn.RNN)
    model.steps = lambda h: h[:, -1]
    memory = found_by(rule(model), lambda: model(x))
    assert lags_of(memory, "net") == {-1}


def test_attention_to_all_steps_is_not_in_time_with_its_outcomes(rule: Any) -> None:
    torch.manual_seed(1)
    net = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    memory = found_by(rule(net), lambda: net(randn(6, STEPS, 4, seed=3)))
    assert -1 in lags_of(memory, "self_attn")


def test_steps_before_an_outcome_may_be_delayed(rule: Any) -> None:
    model = made(nn.RNN)
    zeros = x.new_zeros(6, 1, 2)
    memory = found_by(rule(model), lambda: torch.cat([zeros, model(x)[:, :-1]], 1))
    assert lags_of(memory, "net") == {-1}  # no outcome comes with a step of units
