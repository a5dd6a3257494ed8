"""Large matrices are written part by part, as if their estimates had been there as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from dopaminergic.activities import estimates as module
from dopaminergic.activities.estimates import estimates
from optimizers import randn
from watched import watch


class Bare(nn.Module):
    """A product from the other side than that of a linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * randn(inputs, outputs, seed=4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def _linear(inputs: int, outputs: int) -> nn.Module:
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(0.05 * randn(outputs, inputs, seed=4, dtype=torch.float64))
        layer.bias.zero_()
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "wide inputs": lambda: _linear(2700, 100),
    "wide outputs": lambda: _linear(100, 2700),
    "both wide": lambda: _linear(520, 530),
    "a bare product, wide inputs": lambda: Bare(2700, 100),
    "a bare product, wide outputs": lambda: Bare(100, 2700),
}


def _network(layer: str) -> nn.Module:
    large = LAYERS[layer]()
    weight = next(large.parameters())
    outputs = weight.shape[1] if isinstance(large, Bare) else weight.shape[0]
    readout = _linear(outputs, 2)
    return nn.Sequential(large, nn.Tanh(), readout)


def _inputs(network: nn.Module, samples: int = 5) -> tuple[Tensor, Tensor]:
    large = network[0]  # pyright: ignore[reportIndexIssue]
    width = large.weight.shape[0] if isinstance(large, Bare) else large.in_features
    return (
        randn(samples, width, seed=1, dtype=torch.float64),
        randn(samples, 2, seed=2, dtype=torch.float64),
    )


def _trained(layer: str, rule: type, steps: int, **settings: float) -> tuple[Tensor, list[float]]:
    network = _network(layer)
    x, y = _inputs(network)
    optimizer = rule(network, **settings)
    losses = [optimizer.step(lambda: squared_error(network(x), y)) for _ in range(steps)]
    return nn.utils.parameters_to_vector(network.parameters()).detach(), losses


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_node_perturbation_writes_the_same_in_parts(
    layer: str, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts, _ = _trained(layer, NodePerturbation, 2, weight_decay=decay)
    monkeypatch.setattr(module, "LARGE", 10**9)
    whole, _ = _trained(layer, NodePerturbation, 2, weight_decay=decay)
    torch.testing.assert_close(in_parts, whole, rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("layer", LAYERS)
def test_node_dopamine_writes_the_same_in_parts(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts, losses = _trained(layer, NodeDopamine, 4, weight_decay=0.0)
    monkeypatch.setattr(module, "LARGE", 10**9)
    whole, expected = _trained(layer, NodeDopamine, 4, weight_decay=0.0)
    torch.testing.assert_close(in_parts, whole, rtol=0.0, atol=1e-9)
    assert losses == pytest.approx(expected, rel=1e-9)


def test_decay_enters_the_sizes_as_if_it_were_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts, _ = _trained("both wide", NodeDopamine, 4)
    monkeypatch.setattr(module, "LARGE", 10**9)
    whole, _ = _trained("both wide", NodeDopamine, 4)
    start = nn.utils.parameters_to_vector(_network("both wide").parameters()).detach()
    error = (in_parts - whole).norm() / (whole - start).norm()
    assert 0.0 < error < 0.02


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
def test_nothing_is_kept_that_is_as_large_as_the_matrix(rule: type) -> None:
    network = _network("both wide")
    x, y = _inputs(network)
    optimizer = rule(network)
    for _ in range(2):
        optimizer.step(lambda: squared_error(network(x), y))
    kept = optimizer.state_dict()["forward"]["memory"].values()
    assert all(value.numel() < 10_000 for value in kept)


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
def test_inputs_may_be_written_between_a_probe_and_its_step(rule: type) -> None:
    def train(overwrite: bool) -> Tensor:
        network = _network("wide inputs")
        x, y = _inputs(network)
        given = x.clone()
        optimizer = rule(network)
        for _ in range(2):
            given.copy_(x)
            optimizer.probe(lambda: squared_error(network(given), y))
            if overwrite:
                given.fill_(7.0)
            optimizer.step()
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    assert torch.equal(train(False), train(True))


def test_many_samples_are_worth_a_whole_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network("both wide")
    x, y = _inputs(network, samples=300)
    optimizer = NodePerturbation(network)
    seen: list[object] = []
    plain = optimizer._estimates

    def listening(trial: object, credits: object) -> object:
        for one in plain(trial, credits):  # pyright: ignore[reportArgumentType]
            seen.append(one.gradient)
            yield one

    monkeypatch.setattr(optimizer, "_estimates", listening)
    optimizer.step(lambda: squared_error(network(x), y))
    assert len(seen) == 4
    assert all(isinstance(one, Tensor) for one in seen)


@pytest.mark.parametrize("rule", [NodePerturbation, NodeDopamine])
def test_a_step_beyond_the_dtype_is_skipped(rule: type) -> None:
    network = _network("both wide").float()
    x, y = (one.float() for one in _inputs(network))
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = rule(network, lr=1e45)
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(lambda: squared_error(network(x), y))
    assert optimizer.skipped_steps == 1
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize("turned", [False, True])
def test_a_square_matrix_has_the_sides_of_its_own_rows_and_columns(turned: bool) -> None:
    weight = nn.Parameter(randn(3, 3, seed=1))
    x = randn(5, 3, seed=2)
    seen = watch(lambda: x @ (weight.mT if turned else weight), [weight])
    credit = randn(5, 3, seed=3)
    found = estimates(seen.tape.nodes, {seen.node: credit}, [weight], [], {0}, None)
    (one,) = found
    left, right = (credit, x) if turned else (x, credit)
    assert one.sides is not None
    torch.testing.assert_close(one.sides.left[0], left.mT @ left)
    torch.testing.assert_close(one.sides.right[0], right.mT @ right)


def test_directions_without_an_estimate_get_no_step() -> None:
    network = _linear(20, 100).float()
    x, y = (randn(2, width, seed=1, dtype=torch.float32) for width in (20, 100))
    weight = next(network.parameters())
    start = weight.detach().clone()
    optimizer = NodeDopamine(network, weight_decay=0.0)
    for _ in range(3):
        optimizer.step(lambda: squared_error(network(x), y))
    moved = weight.detach() - start
    along = x.mT @ torch.linalg.pinv(x.mT)  # projects onto the two inputs
    assert moved.norm() > 0.05
    assert (moved - moved @ along).norm() < 0.02 * moved.norm()
