"""Recurrent layers written out: torch's own fused operations, number for number."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import VectorDopamine, squared_error
from dopaminergic.recurrent import RECURRENT
from optimizers import copies, randn

OPERATIONS = {
    "rnn_tanh": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
} | {"lstm": (nn.LSTM, {})}
SHAPES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True},
]


def layer(operation: str, shape: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    make, own = OPERATIONS[operation]
    made = make(3, 4, dtype=dtype, **own, **shape)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(randn(*p.shape, seed=i) / 2)
    return made


def states(operation: str, shape: dict[str, Any], batch: int) -> tuple[Tensor, ...]:
    rows = shape.get("num_layers", 1) * (2 if shape.get("bidirectional") else 1)
    return tuple(randn(rows, batch, 4, seed=40 + i) for i in range(2 if operation == "lstm" else 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_outputs_and_last_states_are_torchs(operation: str, shape: dict[str, Any]) -> None:
    made, x = (
        layer(operation, shape),
        randn(*((5, 7, 3) if shape.get("batch_first") else (7, 5, 3)), seed=9),
    )
    hx = states(operation, shape, 5)
    expected, last = made(x, hx if operation == "lstm" else hx[0])
    found, *own_last = RECURRENT[operation](
        x,
        hx if operation == "lstm" else hx[0],
        made._flat_weights,
        made.bias,
        made.num_layers,
        0.0,
        False,
        made.bidirectional,
        made.batch_first,
    )
    # Seven steps of sums of eight products of numbers near 1, in another order.
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for own, torchs in zip(own_last, last if operation == "lstm" else (last,), strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sequences_of_one_step_and_batches_of_one(operation: str) -> None:
    made, x, hx = layer(operation, {}), randn(1, 1, 3), states(operation, {}, 1)
    state = hx if operation == "lstm" else hx[0]
    found = RECURRENT[operation](x, state, made._flat_weights, True, 1, 0.0, False, False, False)[0]
    torch.testing.assert_close(found, made(x, state)[0], rtol=1e-13, atol=1e-13)


def test_dropout_between_layers_draws_what_torch_draws() -> None:
    made, x = layer("gru", {"num_layers": 3, "bidirectional": True}), randn(7, 5, 3)
    made.dropout, (h,) = 0.5, states("gru", {"num_layers": 3, "bidirectional": True}, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = made(x, h)[0]
        torch.manual_seed(4)
        found = RECURRENT["gru"](x, h, made._flat_weights, True, 3, 0.5, True, True, False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


class Cells(nn.Module):
    """A cell that is applied step by step; batches first or a single sequence."""

    def __init__(self, operation: str, bias: bool) -> None:
        super().__init__()
        make, own = (
            {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[operation[:4].rstrip("_")],
            {},
        )
        if operation.startswith("rnn"):
            own = {"nonlinearity": operation.removeprefix("rnn_")}
        self.inner: Any = make(3, 4, bias=bias, dtype=torch.float64, **own)
        with torch.no_grad():
            for i, p in enumerate(self.inner.parameters()):
                p.copy_(randn(*p.shape, seed=i) / 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for now in x:
            state = self.inner(now, state)
        return torch.cat(state) if isinstance(state, tuple) else state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 3)])
def test_cells_are_torchs_and_batched(operation: str, bias: bool, shape: tuple[int, ...]) -> None:
    made, x, ends = Cells(operation, bias), randn(*shape), []
    hx = states(operation, {}, 5)
    state = tuple(h[0] for h in hx) if operation == "lstm" else hx[0][0]
    parameters = [p.detach() for p in made.inner.parameters()] + [None, None] * (not bias)
    found = RECURRENT[f"{operation}_cell"](randn(5, 3, seed=2), state, *parameters)
    torch.testing.assert_close(
        found, made.inner(randn(5, 3, seed=2), state), rtol=1e-13, atol=1e-13
    )
    for in_place in (False, True):
        weights, optimizer = trained(Cells(operation, bias), x, in_place=in_place)
        assert optimizer._batched.refused is in_place
        ends.append(weights)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_packed_sequences_say_what_to_do() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(randn(4, 2, 3), torch.tensor([4, 2]))
    made = layer("gru", {})
    with pytest.raises(NotImplementedError, match="pad them"):
        RECURRENT["gru"](
            packed.data, packed.batch_sizes, randn(1, 2, 4), made._flat_weights, True, 1
        )


class Recurrent(nn.Module):
    def __init__(
        self, operation: str, shape: dict[str, Any], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.inner = layer(operation, shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def trained(
    model: nn.Module, x: Tensor, *, in_place: bool, steps: int = 3
) -> tuple[list[Tensor], VectorDopamine]:
    target = torch.zeros_like(model(x).detach())
    optimizer = VectorDopamine(model.parameters(), directions=6)
    optimizer._batched.refused = in_place
    for _ in range(steps):
        optimizer.step(lambda: squared_error(model(x), target))
    return copies(model.parameters()), optimizer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_training_in_batches_is_training_in_place(operation: str, shape: dict[str, Any]) -> None:
    ends, x = [], randn(4, 5, 3)
    for in_place in (False, True):
        weights, optimizer = trained(Recurrent(operation, shape), x, in_place=in_place)
        assert optimizer._batched.refused is in_place
        ends.append(weights)
    # Regrets of 0.01 lose two digits more than the outcomes, and the solution a few times that.
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(ends[0], copies(layer(operation, shape).parameters()), strict=True)
    )


@pytest.mark.parametrize("case", ["packed", "projection"])
def test_what_is_not_written_out_is_evaluated_in_place(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, ends = randn(6, 2, 3), []
    for in_place in (False, True):
        made = layer("lstm", {"proj_size": 2} if case == "projection" else {})

        def closure(made: Any = made) -> Any:
            if case == "packed":
                packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 3]))
                values = made(packed)[0].data
            else:
                values = made(x)[0]
            return squared_error(values, torch.ones_like(values))

        optimizer = VectorDopamine(made.parameters(), directions=6)
        optimizer._batched.refused = in_place
        with caplog.at_level(logging.WARNING, "dopaminergic"):
            for _ in range(3):
                optimizer.step(closure)
        assert optimizer._batched.refused
        ends.append(copies(made.parameters()))
    assert len(caplog.records) == 1
    assert ("pad them" in caplog.text) is (case == "packed")
    torch.testing.assert_close(*ends, rtol=0, atol=0)
