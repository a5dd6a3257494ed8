"""torch's fused recurrent layers, written out in operations that `torch.func.vmap` knows.

`nn.RNN`, `nn.GRU` and `nn.LSTM` call one fused operation for a whole sequence, and their cells call
one for a time step. It cannot be mapped over weights. These functions take the same arguments and
give the same results from matrix products, for batches of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Tensor], State]


def _elman(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(drive: Tensor, state: State, back: Tensor) -> State:
        return (activation(drive + back),)

    return cell


def _gru(drive: Tensor, state: State, back: Tensor) -> State:
    enter_reset, enter_update, enter_new = drive.chunk(3, -1)
    back_reset, back_update, back_new = back.chunk(3, -1)
    reset = torch.sigmoid(enter_reset + back_reset)
    update = torch.sigmoid(enter_update + back_update)
    new = torch.tanh(enter_new + reset * back_new)
    return (new + update * (state[0] - new),)


def _lstm(drive: Tensor, state: State, back: Tensor) -> State:
    enter, forget, cell, leave = (drive + back).chunk(4, -1)
    c = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(leave) * torch.tanh(c), c


def _layer(
    cell: Cell, x: Tensor, state: State, weights: list[Tensor], reverse: bool
) -> tuple[Tensor, State]:
    """One direction of one layer; returns the outputs and the last state.

    `x` has shape `(T, B, inputs)`, and the outputs have `(T, B, hidden)`.
    """
    biases = (weights[2], weights[3]) if len(weights) == 4 else (None, None)
    drive = functional.linear(x, weights[0], biases[0])
    outputs = []
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        state = cell(drive[t], state, functional.linear(state[0], weights[1], biases[1]))
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _sequence(
    cell: Cell,
    x: Tensor,
    states: State,
    weights: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> State:
    """All layers; returns the outputs and the last states `(layers * directions, B, hidden)`."""
    x = x.transpose(0, 1) if batch_first else x
    each = 4 if has_biases else 2
    ways = 2 if bidirectional else 1
    last = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            i = layer * ways + way
            out, state = _layer(
                cell, x, tuple(s[i] for s in states), weights[each * i : each * (i + 1)], way == 1
            )
            outputs.append(out)
            last.append(state)
        x = torch.cat(outputs, -1)
        if layer < layers - 1:
            x = functional.dropout(x, dropout, train)
    return (
        x.transpose(0, 1) if batch_first else x,
        *(torch.stack(parts) for parts in zip(*last, strict=True)),
    )


def _fused(cell: Cell) -> Callable[..., Any]:
    def run(x: Tensor, state: Any, *rest: Any) -> State:
        if not isinstance(rest[0], list):  # (data, batch_sizes, hx, weights, ...): packed sequences
            raise NotImplementedError(
                "packed sequences cannot be evaluated as a batch; pad them instead"
            )
        return _sequence(
            cell, x, tuple(state) if isinstance(state, list | tuple) else (state,), *rest
        )

    return run


def _single(cell: Cell) -> Callable[..., Any]:
    def run(x: Tensor, state: Any, enter: Tensor, back: Tensor, *biases: Tensor | None) -> Any:
        states = tuple(state) if isinstance(state, list | tuple) else (state,)
        into, again = biases or (None, None)
        found = cell(
            functional.linear(x, enter, into), states, functional.linear(states[0], back, again)
        )
        return found[0] if len(found) == 1 else found

    return run


_CELLS = {
    "rnn_tanh": _elman(torch.tanh),
    "rnn_relu": _elman(torch.relu),
    "gru": _gru,
    "lstm": _lstm,
}
# By the name of the fused operation, of a whole sequence or of one time step (`nn.LSTMCell` and the
# like).
RECURRENT: dict[str, Callable[..., Any]] = {name: _fused(cell) for name, cell in _CELLS.items()}
RECURRENT |= {f"{name}_cell": _single(cell) for name, cell in _CELLS.items()}
