"""Scalar rules with several directions, evaluated as one batch: the same as in place, one
evaluation more at first.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dopaminergic import squared_error
from optimizers import Row

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def closure(model: nn.Module) -> Callable[[], Any]:
    return lambda: squared_error(model(X), X[:, :2].flip(0))


def run(
    row: Row, batched: bool, steps: int = 5, directions: int = 6, **settings: Any
) -> tuple[list[float], Any, Any]:
    model = network()
    optimizer = row.make(
        model.parameters(), lr=0.01, seed=4, directions=directions, batched=batched, **settings
    )
    losses = [optimizer.step(closure(model)) for _ in range(steps)]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer


def test_batches_give_what_evaluations_in_place_give(row: Row) -> None:
    (one, w, _), (other, v, _) = run(row, True), run(row, False)
    # Regrets are differences of order sigma, so their rounding is 1e-16 / sigma of a loss of order
    # 1.
    assert one == pytest.approx(other, rel=1e-10)
    torch.testing.assert_close(w, v, rtol=0, atol=1e-10)
    assert not torch.equal(v, torch.cat([p.detach().flatten() for p in network().parameters()]))


def test_the_comparison_of_the_first_step_is_counted(row: Row) -> None:
    in_place, as_batch = run(row, False)[2].forward_passes, run(row, True)[2].forward_passes
    # A rule that does not ask for the unperturbed loss needs it once, to compare regrets instead of
    # losses.
    assert as_batch - in_place == (1 if row.returns_base else 2)  # pyright: ignore[reportFunctionMemberAccess]


def test_the_closure_runs_once_for_many_directions(row: Row) -> None:
    model, calls = network(), [0]
    optimizer = row.make(model.parameters(), lr=0.01, directions=12, batched=True)

    def counted() -> Any:
        calls[0] += 1
        return closure(model)()

    optimizer.step(counted)
    calls[0] = 0
    optimizer.step(counted)
    assert calls[0] == 2  # the base and one batch, or one batch for each sign


def test_a_closure_that_leaves_torch_is_evaluated_in_place(
    row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    def leaving(model: nn.Module) -> Callable[[], float]:
        return lambda: float(closure(model)().mean())

    found = []
    for batched in (True, False):
        model = network()
        optimizer = row.make(model.parameters(), lr=0.01, directions=6, batched=batched)
        with caplog.at_level(logging.WARNING):
            found.append([optimizer.step(leaving(model)) for _ in range(4)])
    assert found[0] == found[1]
    assert [r.message.split(":")[0] for r in caplog.records if "batch" in r.message] == [row.name]


def test_a_fleet_in_batches_equals_its_single_runs(row: Row) -> None:
    stacked = [torch.stack([torch.full((2, 3), 0.1 * s, dtype=torch.float64) for s in (1, 2)])]
    alone = [nn.Parameter(p.clone()) for p in stacked[0]]
    weights = nn.Parameter(stacked[0].clone())
    fleet = row.make([weights], lr=0.01, seed=[7, 8], directions=5, batched=True)
    for _ in range(3):
        fleet.step(lambda: (weights @ X.T - 0.3).square().flatten(1))
    for r, (seed, w) in enumerate(zip((7, 8), alone, strict=True)):
        single = row.make([w], lr=0.01, seed=seed, directions=5, batched=True)
        for _ in range(3):
            single.step(lambda w=w: (w @ X.T - 0.3).square().flatten())
        torch.testing.assert_close(weights[r].detach(), w.detach(), rtol=0, atol=1e-10)


def test_a_loaded_run_does_not_compare_again(row: Row) -> None:
    model = network()
    straight = row.make(model.parameters(), lr=0.01, directions=6, batched=True)
    straight.step(closure(model))
    content = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": straight.state_dict()}, content)
    straight.step(closure(model))
    content.seek(0)
    saved = torch.load(content, weights_only=True)
    other = network()
    other.load_state_dict(saved["model"])
    resumed = row.make(other.parameters(), lr=0.5, directions=2)
    resumed.load_state_dict(saved["optimizer"])
    resumed.step(closure(other))
    assert resumed.forward_passes == straight.forward_passes
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )
