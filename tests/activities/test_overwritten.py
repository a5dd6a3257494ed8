"""Closures that write over the inputs of their sites are trained as if they did not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from dopaminergic.activities.estimates import estimates
from dopaminergic.activities.tape import Tape
from optimizers import randn


class Copying(nn.Module):
    """Calls one layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * randn(6, 6, seed=1))

    def kept(self, h: Tensor) -> Tensor:
        return h.clone()

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = torch.tanh(self.kept(h) @ self.weight)
        return h


class Overwriting(Copying):
    """Puts the inputs of all calls into one buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.buffer = torch.empty_like(x)
        return super().forward(x)

    def kept(self, h: Tensor) -> Tensor:
        return self.buffer.copy_(h)


class Lasting(Overwriting):
    """Its buffer outlives the evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = randn(4, 6, seed=2)

    def forward(self, x: Tensor) -> Tensor:
        return Copying.forward(self, x)


def _turned(weight: Tensor, buffer: Tensor) -> Tensor:
    return (weight @ buffer.mT).mT


def _convolved(weight: Tensor, buffer: Tensor) -> Tensor:
    return nn.functional.conv1d(buffer[:, None], weight[:, None, :2]).flatten(1)


def _scaled(weight: Tensor, buffer: Tensor) -> Tensor:
    return buffer * weight[0]


@pytest.mark.parametrize("operation", [_turned, _convolved, _scaled, torch.matmul])
def test_every_site_sees_that_its_inputs_are_written_over(operation: Any) -> None:
    weight, buffer = nn.Parameter(randn(6, 6, seed=1)), randn(4, 6, seed=3)
    arguments = (buffer, weight) if operation is torch.matmul else (weight, buffer)
    for write in (False, True):
        tape = Tape([weight], 1e-3)
        with torch.no_grad(), tape:
            result = operation(*arguments)
            if write:
                buffer[:1] += 1.0
        tape.finish(result)
        assert tape.is_intact != write


def test_numbers_of_rows_that_are_written_over_are_seen() -> None:
    weight, numbers = nn.Parameter(randn(6, 6, seed=1)), torch.arange(4)
    for rows in (
        lambda: nn.functional.embedding(numbers, weight),
        lambda: weight[numbers],
        lambda: weight.gather(0, numbers[:, None]),
        lambda: weight.index_select(0, numbers),
    ):
        tape = Tape([weight], 1e-3)
        with torch.no_grad(), tape:
            result = rows()
            numbers.add_(0)
        tape.finish(result)
        assert not tape.is_intact


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
@pytest.mark.parametrize("make", [Overwriting, Lasting])
def test_inputs_that_are_written_over_are_copied_from_then_on(
    rule: type, make: type[Overwriting]
) -> None:
    x, y = randn(4, 6, seed=3), randn(4, 6, seed=4)
    networks = [make(), make(), Copying()]
    first, *others = [rule(network) for network in networks]
    first.step(lambda: squared_error(networks[0](x), y))
    assert torch.equal(networks[0].weight, networks[2].weight)  # it only learned
    for other in others:
        other.load_state_dict(first.state_dict())
    for network, optimizer in zip(networks, (first, *others), strict=True):

        def closure(network: Copying = network) -> object:
            return squared_error(network(x), y)

        for _ in range(8):
            optimizer.step(closure)
    assert not torch.equal(networks[0].weight, Copying().weight)
    assert torch.equal(networks[0].weight, networks[1].weight)
    assert torch.equal(networks[0].weight, networks[2].weight)


def test_nothing_is_copied_where_nothing_is_written_over() -> None:
    x, y = randn(4, 6, seed=3), randn(4, 6, seed=4)
    network = Copying()
    optimizer = NodeDopamine(network)
    for _ in range(2):
        optimizer.step(lambda: squared_error(network(x), y))
    assert "copies" not in optimizer.state_dict()["forward"]["memory"]


def test_estimates_of_inputs_that_were_copied_are_exact() -> None:
    weight, x, credit = nn.Parameter(randn(6, 6, seed=1)), randn(4, 6, seed=3), randn(4, 6, seed=5)
    tape = Tape([weight], 1e-3, copies=True)
    buffer, sums = torch.empty_like(x), torch.zeros_like(x)
    with torch.no_grad(), tape:
        for i in range(3):
            sums = sums + buffer.copy_((i + 1) * x) @ weight
    node = tape.finish(sums)
    assert node is not None
    assert tape.is_intact
    (found,) = estimates(tape.nodes, {node: credit}, [weight], [], {0}, None)
    assert isinstance(found.gradient, Tensor)
    torch.testing.assert_close(found.gradient, 6.0 * x.mT @ credit)
