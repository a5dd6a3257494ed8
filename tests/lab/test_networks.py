"""The networks against plain loops, against torch.nn with copied weights, and stacks against their
slices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic.lab.networks import ACTIVATIONS, Perceptron, Recurrent

DOUBLE = torch.float64
CELLS = ("tanh", "gru", "lstm")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_random_biases(model: Recurrent | Perceptron) -> None:
    """Biases start at 0, where a mistake in them would not show."""
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "bias" in name:
            parameter.data = randn(*parameter.shape, seed=i, dtype=parameter.dtype)


def loop(model: Recurrent, x: Tensor, h: Tensor) -> Tensor:
    """The tanh network as its equations are written."""
    states = []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ model.input_weight + h @ model.recurrent_weight + model.bias)
        states.append(h)
    return torch.stack(states, 1) @ model.output_weight + model.output_bias


def reference(model: Recurrent) -> Any:
    """The layer of torch.nn with the same weights."""
    kinds = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
    layer: Any = kinds[model.cell](model.inputs, model.hidden, batch_first=True, dtype=DOUBLE)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(model.input_weight.T)
        layer.weight_hh_l0.copy_(model.recurrent_weight.T)
        layer.bias_ih_l0.copy_(model.bias)
        layer.bias_hh_l0.zero_()
        if model.cell == "gru":
            layer.bias_hh_l0[-model.hidden :] = model.candidate_bias
    return layer


@pytest.mark.parametrize("with_state", [False, True])
def test_tanh_cell_is_the_loop_values_and_gradients(with_state: bool) -> None:
    model = Recurrent(3, 16, 2, dtype=DOUBLE)
    with_random_biases(model)
    x = randn(4, 30, 3)
    start = torch.tanh(randn(4, 16, seed=5)) if with_state else torch.zeros(4, 16, dtype=DOUBLE)
    out = model(x, (start,) if with_state else None)[0]
    expected = loop(model, x, start)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13)
    weights = randn(*out.shape, seed=7)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((out * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_those_of_torch_values_states_and_gradients(cell: str) -> None:
    model = Recurrent(2, 7, 3, cell=cell, dtype=DOUBLE)
    with_random_biases(model)
    layer, x = reference(model), randn(5, 20, 2)
    start = [0.5 * randn(5, 7, seed=s) for s in range(2 if cell == "lstm" else 1)]
    states, last = layer(x, tuple(s[None] for s in start) if cell == "lstm" else start[0][None])
    expected = states @ model.output_weight + model.output_bias
    out, final = model(x, tuple(start))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13)
    for ours, theirs in zip(final, last if cell == "lstm" else (last,), strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-11, atol=1e-13)
    ours = torch.autograd.grad(
        out.square().sum(), [model.input_weight, model.recurrent_weight, model.bias]
    )
    named = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0]
    theirs = torch.autograd.grad(expected.square().sum(), named)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.mT if b.ndim == 2 else b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_stays_near_float64(cell: str) -> None:
    model = Recurrent(3, 16, 3, cell=cell)
    exact = copy.deepcopy(model).double()
    x = randn(8, 50, 3)
    # 50 steps of rounding errors of 6e-8 each, in a network that does not amplify them.
    torch.testing.assert_close(model(x.float())[0].double(), exact(x)[0], rtol=0, atol=5e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_stack_slices_are_the_plain_networks(cell: str) -> None:
    seeds = [3, 1, 4]
    stack = Recurrent(3, 16, 2, cell=cell, seeds=seeds, dtype=DOUBLE)
    assert stack.replicas == 3
    x = randn(3, 8, 12, 3)
    out, final = stack(x)
    shared = stack(x[0])[0]
    for r, seed in enumerate(seeds):
        plain = Recurrent(3, 16, 2, cell=cell, seeds=seed, dtype=DOUBLE)
        for a, b in zip(stack.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a[r], b)
        one, state = plain(x[r])
        torch.testing.assert_close(out[r], one, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(shared[r], plain(x[0])[0], rtol=1e-12, atol=1e-14)
        for a, b in zip(final, state, strict=True):
            torch.testing.assert_close(a[r], b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_stack_of_one_is_bitwise_the_plain_network(cell: str) -> None:
    x = randn(8, 20, 3, dtype=torch.float32)
    one, plain = Recurrent(3, 16, 3, cell=cell, seeds=[5]), Recurrent(3, 16, 3, cell=cell, seeds=5)
    assert torch.equal(one(x)[0][0], plain(x)[0])
    assert torch.equal(one(x[None])[0][0], plain(x)[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seeds", [2, [2, 9]])
def test_continuing_from_a_state_is_one_long_sequence(cell: str, seeds: int | list[int]) -> None:
    model = Recurrent(2, 8, 2, cell=cell, seeds=seeds, dtype=DOUBLE)
    x = randn(4, 25, 2)
    whole, end = model(x)
    first, state = model(x[:, :10])
    second, last = model(x[:, 10:], state)
    torch.testing.assert_close(torch.cat([first, second], -2), whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(last, end, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_pieces_of_time_do_not_show(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recurrent(3, 8, 3, cell=cell, dtype=DOUBLE)
    with_random_biases(model)
    x = randn(4, 23, 3)
    whole = model(x)[0]
    monkeypatch.setattr(model, "_steps_at_once", lambda _: 5)
    torch.testing.assert_close(model(x)[0], whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("cell", CELLS)
def test_many_directions_through_vmap(cell: str) -> None:
    model = Recurrent(3, 8, 2, cell=cell, dtype=DOUBLE)
    x = randn(4, 9, 3)
    many = {name: torch.stack([p, 2 * p, -p]) for name, p in model.state_dict().items()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,))[0]

    out = torch.func.vmap(run)(many)
    for k in range(3):
        torch.testing.assert_close(
            out[k], run({n: p[k] for n, p in many.items()}), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(
    ("hidden", "activation"), [("tanh", torch.tanh), ("relu", torch.relu), ("sign", torch.sign)]
)
def test_perceptron_is_its_equations(hidden: str, activation: Callable[[Tensor], Tensor]) -> None:
    model = Perceptron((3, 5, 4, 2), hidden=hidden, dtype=DOUBLE)
    with_random_biases(model)
    h = x = randn(6, 3)
    for i in range(3):
        h = h @ model.get_parameter(f"weight_{i}") + model.get_parameter(f"bias_{i}")
        h = h if i == 2 else activation(h)
    torch.testing.assert_close(model(x), h, rtol=1e-12, atol=1e-14)


def test_perceptron_stack_slices_are_the_plain_networks() -> None:
    stack, x = Perceptron((3, 5, 2), seeds=[8, 6], dtype=DOUBLE), randn(2, 7, 3)
    for r, seed in enumerate([8, 6]):
        plain = Perceptron((3, 5, 2), seeds=seed, dtype=DOUBLE)
        assert torch.equal(stack.get_parameter("weight_0")[r], plain.get_parameter("weight_0"))
        torch.testing.assert_close(stack(x)[r], plain(x[r]), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(stack(x[0])[r], plain(x[0]), rtol=1e-12, atol=1e-14)


def test_initial_weights_have_the_stated_spread() -> None:
    model = Recurrent(4, 100, 4, seeds=list(range(20)))
    for name, deviation in {
        "input_weight": 1 / 2,
        "recurrent_weight": 0.08,
        "output_weight": 0.1,
    }.items():
        values = getattr(model, name).detach().flatten()
        # The sample deviation of n normals has standard error deviation / sqrt(2 n).
        assert abs(values.std() - deviation) < 5 * deviation / (2 * len(values)) ** 0.5
        assert abs(values.mean()) < 5 * deviation / len(values) ** 0.5
    assert not model.bias.any()
    deep = Perceptron((50, 200, 2), seeds=list(range(20)), deviations=(1.0, 0.3))
    wide = deep.get_parameter("weight_0")
    assert abs(wide.std().item() - 1.0) < 5 / (2 * wide.numel()) ** 0.5
    assert (
        abs(Perceptron((400, 300, 2)).get_parameter("weight_0").std().item() - 0.05)
        < 5 * 0.05 / (2 * 120_000) ** 0.5
    )


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Recurrent(2, 4, 1, seeds=[1, 2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Recurrent(1, 2, 1, cell="rnn"),
            "cell: expected one of tanh, gru, lstm, got 'rnn'",
        ),
        (lambda: Recurrent(1, 0, 1), "hidden: expected a whole number of at least 1, got 0"),
        (
            lambda: Perceptron((2, 3), hidden="gelu"),
            "hidden: expected one of tanh, relu, sigmoid, sign, got 'gelu'",
        ),
        (lambda: Perceptron((2,)), "sizes: expected at least"),
        (lambda: Perceptron((2, 3, 1), deviations=[1.0]), "deviations: expected 2 numbers"),
        (lambda: Perceptron((2, 1), seeds=[]), "seeds: an empty sequence"),
        (
            lambda: Perceptron((2, 1))(torch.zeros(4, 3)),
            "expected shape \\(B, 2\\), got \\(4, 3\\)",
        ),
        (lambda: Recurrent(2, 3, 1, seeds=[0, 1])(torch.zeros(3, 4, 5, 2)), "got \\(3, 4, 5, 2\\)"),
        (
            lambda: Recurrent(2, 3, 1, cell="lstm")(torch.zeros(4, 5, 2), (torch.zeros(4, 3),)),
            "2 part",
        ),
    ],
)
def test_errors_say_what_was_expected(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seeds", [2, [2, 9]])
@pytest.mark.parametrize("carried", [False, True])
def test_a_recurrent_network_as_written_is_the_same(
    cell: str, seeds: int | list[int], carried: bool
) -> None:
    model = Recurrent(2, 8, 3, cell=cell, seeds=seeds, dtype=DOUBLE)
    with_random_biases(model)
    x = randn(5, 17, 2)
    state = model(randn(5, 6, 2, seed=1))[1] if carried else None
    out, last = model(x, state)
    model.as_written = True
    ours, own = model(x, state)
    torch.testing.assert_close(ours, out, rtol=1e-11, atol=1e-13)
    assert len(own) == len(last)
    for a, b in zip(own, last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    first, middle = model(x[:, :9], state)
    second, end = model(x[:, 9:], middle)
    torch.testing.assert_close(torch.cat([first, second], -2), out, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(end, last, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("seeds", [2, [2, 9]])
def test_a_perceptron_as_written_is_the_same(hidden: str, seeds: int | list[int]) -> None:
    model = Perceptron((3, 5, 4, 2), hidden=hidden, seeds=seeds, dtype=DOUBLE)
    with_random_biases(model)
    x = randn(7, 3)
    out = model(x)
    model.as_written = True
    torch.testing.assert_close(model(x), out, rtol=1e-11, atol=1e-13)
