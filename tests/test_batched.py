"""Many directions as one batch: the same steps as one direction after the other, whatever the
closure does.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic import VectorDopamine, cross_entropy, squared_error
from dopaminergic.batched import Copies
from dopaminergic.exchange import Exchange
from optimizers import copies, drawn, perceptron, randn, same

DOUBLE = torch.float64
Case = Callable[[], tuple[Any, Callable[[], Any]]]  # parameters (or groups), closure


def started(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(randn(*p.shape, seed=i) / max(1, p[0].numel() if p.ndim > 1 else 4) ** 0.5)
    return model.double()


def fitting(model: nn.Module, x: Tensor) -> tuple[Any, Callable[[], Any]]:
    target = randn(*model(x).shape, seed=70)
    return list(model.parameters()), lambda: squared_error(model(x), target)


def convolution() -> tuple[Any, Callable[[], Any]]:
    model = started(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)))
    x, labels = randn(6, 2, 5, 5), torch.arange(6) % 3
    return list(model.parameters()), lambda: cross_entropy(model(x), labels)


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def normalised() -> tuple[Any, Callable[[], Any]]:
    model = started(
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
    ).eval()
    model[1].running_mean.copy_(randn(5))  # pyright: ignore
    return fitting(model, randn(7, 3))


def groups() -> tuple[Any, Callable[[], Any]]:
    model = perceptron(3, 5, 1)
    first, second, *rest = model.parameters()
    _, closure = fitting(model, randn(9, 3))
    return [
        {"params": [first], "lr": 0.5},
        {"params": [second], "sigma": 0.03},
        {"params": rest},
    ], closure


def frozen() -> tuple[Any, Callable[[], Any]]:
    model = perceptron(3, 5, 4, 1)
    model[2].weight.requires_grad_(False)  # pyright: ignore
    return fitting(model, randn(9, 3))


def tied() -> tuple[Any, Callable[[], Any]]:
    model = perceptron(3, 3, 3)
    model[2].weight = model[0].weight  # pyright: ignore
    return fitting(model, randn(9, 3))


def scattered() -> tuple[Any, Callable[[], Any]]:
    """Parameters that are transposed, or slices of something larger."""
    a, b = nn.Parameter(randn(5, 3).t()), nn.Parameter(randn(5, 8)[:, 2:4])
    x, y = randn(9, 3), randn(9, 2, seed=1)
    return [a, b], lambda: squared_error(torch.tanh(x @ a) @ b, y)


def embedding() -> tuple[Any, Callable[[], Any]]:
    model = started(
        nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2))
    )
    x, y = torch.arange(8).reshape(4, 2) % 6, randn(4, 2)
    return list(model.parameters()), lambda: squared_error(model(x), y)


CASES: dict[str, Case] = {
    "perceptron": lambda: fitting(perceptron(3, 5, 1), randn(9, 3)),
    "convolution": convolution,
    "attention in eval": lambda: fitting(started(Attention()).eval(), randn(3, 4, 8)),
    "attention in training": lambda: fitting(started(Attention()), randn(3, 4, 8)),
    "batch norm in eval": normalised,
    "groups": groups,
    "frozen": frozen,
    "tied": tied,
    "not contiguous": scattered,
    "embedding": embedding,
}


def trained(
    make: Case, *, in_place: bool, steps: int = 3, **settings: Any
) -> tuple[list[Tensor], VectorDopamine]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        params, closure = make()
        optimizer = VectorDopamine(params, **{"directions": 40, **settings})
        optimizer._batched.refused = in_place
        for _ in range(steps):
            optimizer.step(closure)
    return copies(p for group in optimizer.param_groups for p in group["params"]), optimizer


@pytest.mark.parametrize("name", CASES)
def test_batches_are_the_steps_in_place(name: str) -> None:
    """40 directions: more than one batch of 32."""
    batched, optimizer = trained(CASES[name], in_place=False)
    assert optimizer._batched.checked
    assert not optimizer._batched.refused
    alone, other = trained(CASES[name], in_place=True)
    # Regrets of 0.01 lose two of sixteen digits, and what few samples leave undecided some more.
    torch.testing.assert_close(batched, alone, rtol=1e-7, atol=1e-8)
    assert optimizer.forward_passes == other.forward_passes + 1
    params, _ = CASES[name]()
    start = copies(p for q in params for p in (q["params"] if isinstance(q, dict) else [q]))
    assert not same(batched, start)


def test_one_batch_at_a_time_fits_the_memory() -> None:
    """With room for four copies of 26 float64 weights the same 40 directions take ten batches."""
    whole, _ = trained(CASES["perceptron"], in_place=False, directions=26)
    parts, optimizer = trained(
        CASES["perceptron"], in_place=False, directions=26, memory=4 * 26 * 8
    )
    copied = optimizer._batched._copies
    assert copied is not None
    assert len(copied.rows) == 4
    torch.testing.assert_close(whole, parts, rtol=1e-8, atol=1e-9)
    _, alone = trained(CASES["perceptron"], in_place=False, directions=26, memory=3 * 26 * 8)
    assert alone._batched._copies is None
    assert not alone._batched.refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    ends = []
    for in_place in (False, True):
        w = nn.Parameter(randn(6, 3).to(dtype))
        x, y = randn(20, 6).to(dtype), randn(20, 3, seed=1).to(dtype)
        optimizer = VectorDopamine([w], directions=12)
        optimizer._batched.refused = in_place
        losses = [optimizer.step(lambda w=w, x=x, y=y: squared_error(x @ w, y)) for _ in range(3)]
        assert optimizer._batched.refused is in_place
        ends.append((losses, w.detach()))
    # Outcomes near 3 in steps of 2^-22 (2^-6) are differenced over 0.01 (0.3).
    near = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(ends[0], ends[1], rtol=near, atol=near)


# ---- common random numbers -----------------------------------------------------------------------


def dropping(dropout: nn.Module, x: Tensor, inputs: int) -> Case:
    def make() -> tuple[Any, Callable[[], Any]]:
        model = started(nn.Sequential(nn.Linear(inputs, 6), dropout, nn.Linear(6, 2)))
        return fitting(model, x)

    return make


class Sideways(nn.Module):
    """Dropout of something that lies transposed in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.transpose(0, 1), 0.4).transpose(0, 1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) + torch.rand(6, dtype=DOUBLE)


RANDOM: dict[str, Case] = {
    "dropout": dropping(nn.Dropout(0.4), randn(9, 3), 3),
    "alpha dropout": dropping(nn.AlphaDropout(0.4), randn(9, 3), 3),
    "dropout of channels": dropping(nn.Dropout1d(0.4), randn(9, 4, 3), 3),
    "transposed": dropping(Sideways(), randn(9, 3), 3),
    "noise": dropping(Noisy(), randn(9, 3), 3),
    "attention": lambda: fitting(started(Attention(0.3)), randn(3, 4, 8)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_in_a_batch_are_those_in_place(name: str) -> None:
    batched, optimizer = trained(RANDOM[name], in_place=False)
    assert not optimizer._batched.refused
    alone, _ = trained(RANDOM[name], in_place=True)
    torch.testing.assert_close(batched, alone, rtol=1e-7, atol=1e-8)


# ---- closures that cannot be batched -------------------------------------------------------------


def impossible(kind: str) -> Case:
    def make() -> tuple[Any, Callable[[], Any]]:
        model, x, y = perceptron(3, 5, 1), randn(9, 3), randn(9, 1, seed=70)
        first: Any = model[0].weight
        aside = first.detach()  # the same memory, which only an evaluation in place writes to

        def closure() -> Any:
            values = model(x)
            if kind == "numpy":
                values = torch.from_numpy(np.asarray(values.detach()) * 1.0)
            if kind == "item":
                values = values * (1.0 if values.sum().item() > 1e9 else 2.0)
            if kind == "condition":
                values = values if values.sum() > 1e9 else 2.0 * values
            if kind == "keeps the weights":
                values = torch.tanh(x @ aside.T) @ model[2].weight.T  # pyright: ignore
            return squared_error(values, y)

        return list(model.parameters()), closure

    return make


def norm_in_training() -> tuple[Any, Callable[[], Any]]:
    return fitting(
        started(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))), randn(9, 3)
    )


IMPOSSIBLE = {
    kind: impossible(kind) for kind in ("numpy", "item", "condition", "keeps the weights")
} | {"batch norm in training": norm_in_training}


@pytest.mark.parametrize("sigma", [1e-2, 1e-5])
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_they_are_evaluated_in_place_and_it_is_said_once(
    kind: str, sigma: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dopaminergic"):
        found, optimizer = trained(IMPOSSIBLE[kind], in_place=False, sigma=sigma)
    assert len(caplog.records) == 1
    assert "VectorDopamine" in caplog.text
    assert "one by one" in caplog.text
    assert ("copies of the weights" in caplog.text) is (kind == "keeps the weights")
    assert optimizer._batched.refused
    expected, _ = trained(IMPOSSIBLE[kind], in_place=True, sigma=sigma)
    assert same(found, expected)


def test_what_a_closure_does_wrong_everywhere_is_no_reason_to_refuse() -> None:
    """An error that comes in place too is the closure's own; once it is mended, batches go on."""
    model, x, y = perceptron(3, 5, 1), randn(9, 3), randn(9, 1, seed=70)
    optimizer, broken, calls = VectorDopamine(model.parameters(), directions=6), True, 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        if broken and calls > 1:
            raise ArithmeticError("mine")
        return squared_error(model(x), y)

    with pytest.raises(ArithmeticError, match="mine"):
        optimizer.step(closure)
    broken, calls = False, 0
    optimizer.step(closure)
    assert not optimizer._batched.refused
    # The weights, a batch of one and the same alone, the other five, the step.
    assert calls == 5
    optimizer.step(closure)
    assert calls == 8
    assert optimizer.forward_passes == 9 + 8


# ---- parts ---------------------------------------------------------------------------------------


def test_parameters_are_exchanged_wherever_they_appear() -> None:
    w, other, new = nn.Parameter(randn(3)), nn.Parameter(randn(3, seed=1)), randn(3, seed=2)
    with Exchange([w], (new,)):
        assert torch.equal(w + other, new + other)
        assert torch.equal(torch.stack([w, w]), torch.stack([new, new]))
        assert torch.equal(torch.add(other, other=w), other + new)
        assert torch.equal(w.data, new)
        assert torch.equal(w[1:], new[1:])
        assert torch.equal(
            nn.functional.linear(randn(2, 3), torch.eye(3, dtype=DOUBLE), bias=w), randn(2, 3) + new
        )
    assert not torch.equal(w.detach(), new)


def test_copies_hold_the_perturbed_weights_of_the_definition() -> None:
    parameters = [
        nn.Parameter(randn(4, 3)),
        nn.Parameter(randn(7, seed=1)),
        nn.Parameter(randn(5, 2, seed=2).t()),
    ]
    optimizer = VectorDopamine([{"params": parameters[:1]}, {"params": parameters[1:]}], seed=8)
    optimizer._weights.begin(3)
    made = Copies(optimizer._weights, 2)
    for direction, scales in ((6, [0.5, 0.25]), (7, [2.0, 1.0])):
        made.write(1, direction, [*scales], 3)
        for p, stack in zip(made.parameters, made.stacks, strict=True):
            i = next(i for i, q in enumerate(parameters) if q is p)
            expected = p.detach() + scales[min(i, 1)] * drawn(
                optimizer, p, i, step=3, direction=direction
            )
            torch.testing.assert_close(stack[1], expected, rtol=0, atol=1e-15)


def test_what_is_known_of_a_closure_survives_copies() -> None:
    _, optimizer = trained(IMPOSSIBLE["item"], in_place=False, steps=1)
    other = pickle.loads(pickle.dumps(optimizer))
    assert other._batched.refused
    assert other._batched._copies is None
