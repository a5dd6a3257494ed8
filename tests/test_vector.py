"""VectorDopamine: what a step promises, whatever a closure does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import Outcome, VectorDopamine, cross_entropy, outcome, squared_error
from fits import DOUBLE, FORMS, Fit, run
from optimizers import LARGE, copies, drawn, perceptron, randn, same


class Large(nn.Module):
    """More than 1 MiB of float32, so that no copy of the weights is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(randn(LARGE, seed=5, dtype=torch.float32))
        self.x = randn(LARGE, seed=6, dtype=torch.float32)

    def __call__(self) -> Any:
        return squared_error((self.w * self.x).reshape(100, -1).mean(1), torch.zeros(100))


def calls_of_a_step(batched: bool, directions: int) -> int:
    return 3 if batched else directions + 2


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
@pytest.mark.parametrize("batched", [False, True])
def test_an_exception_at_any_call_leaves_weights_and_state(
    batched: bool, error: type[BaseException]
) -> None:
    for first in (False, True):
        for at in range(calls_of_a_step(batched, 5) + (2 if batched and first else 0)):
            problem = Fit(dtype=torch.float32)
            optimizer = VectorDopamine(problem.model.parameters(), directions=5)
            optimizer._batched.refused = not batched
            run(problem, optimizer, 0 if first else 2)
            old, before, calls = problem.weights(), str(optimizer._progress), 0

            def closure(problem: Fit = problem, at: int = at) -> Any:
                nonlocal calls
                calls += 1
                if calls > at:
                    raise error("from the closure")
                return problem()

            with pytest.raises(error, match="from the closure"):
                optimizer.step(closure)
            assert same(problem.weights(), old)
            assert str(optimizer._progress) == before
            assert optimizer._batched.refused is not batched
            run(problem, optimizer, 3)
            assert not same(problem.weights(), old)


def test_an_exception_leaves_large_weights_but_for_rounding() -> None:
    for at in range(5):
        problem, calls = Large(), 0
        old = problem.w.detach().clone()

        def closure(problem: Large = problem, at: int = at) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise ArithmeticError
            return problem()

        optimizer = VectorDopamine([problem.w], directions=3)
        optimizer._batched.refused = True
        with pytest.raises(ArithmeticError):
            optimizer.step(closure)
        # Each of four displacements, there and back, rounds numbers below 8 to 2^-22 at worst.
        assert float((problem.w.detach() - old).abs().max()) <= 4 * 2.0**-22


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS)
def test_outcomes_at_the_weights_that_are_not_finite_skip_the_step(form: str, bad: float) -> None:
    problem = Fit(form)
    optimizer = VectorDopamine(problem.model.parameters())
    run(problem, optimizer, 2)
    old, state, passes = problem.weights(), optimizer._progress.rule, optimizer.forward_passes
    values = problem.model(problem.x).detach()
    values[3] = bad
    with pytest.warns(RuntimeWarning, match=r"VectorDopamine.*not finite") as caught:
        optimizer.step(lambda: FORMS[form](values, problem.y))
    assert len(caught) == 1
    assert same(problem.weights(), old)
    assert optimizer._progress.rule is state
    assert optimizer.skipped_steps == 1
    assert optimizer.forward_passes == passes + 1


def spoilt(problem: Fit, evaluations: set[int], bad: float) -> Callable[[], Any]:
    """Spoil the last prediction, or loss, at some of the calls, numbered from 0 at the weights."""
    calls = -1

    def closure() -> Any:
        nonlocal calls
        calls += 1
        values = problem.model(problem.x)
        if calls in evaluations:
            values = torch.cat([values[:-1], torch.full_like(values[-1:], bad)])
        return FORMS[problem.form](values, problem.y)

    return closure


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["squared_error", "losses"])
def test_directions_whose_outcomes_are_not_finite_are_not_used(form: str, bad: float) -> None:
    """The step is made of the others, and lies in their span."""
    problem = Fit(form)
    optimizer = VectorDopamine(problem.model.parameters(), directions=9, damping=30.0)
    optimizer._batched.refused = True
    parameters, old = list(problem.model.parameters()), problem.weights()
    optimizer.step(spoilt(problem, {2, 5}, bad))
    change = torch.cat([(p.detach() - w).flatten() for p, w in zip(parameters, old, strict=True)])
    z = torch.stack(
        [
            torch.cat(
                [
                    drawn(optimizer, p, i, step=0, direction=k).flatten()
                    for i, p in enumerate(parameters)
                ]
            )
            for k in (0, 2, 3, 5, 6, 7, 8)
        ]
    )
    left = change - z.T @ torch.linalg.lstsq(z.T, change).solution
    assert float(change.norm()) > 1e-4
    assert float(left.norm()) < 1e-12
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_that_leads_to_a_loss_that_is_not_finite_is_rejected(bad: float) -> None:
    problem, calls = Fit("number"), 0
    optimizer = VectorDopamine(problem.model.parameters(), directions=5)
    optimizer._batched.refused = True
    old = problem.weights()

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return problem() if calls < 7 else torch.tensor(bad)

    optimizer.step(closure)
    assert same(problem.weights(), old)
    assert float(optimizer._progress.rule.damping) == 3.0
    assert optimizer.last_rpe == 0.0
    assert optimizer.step(problem) < math.inf


def test_all_directions_lost_is_no_step() -> None:
    problem = Fit()
    optimizer = VectorDopamine(problem.model.parameters(), directions=3)
    optimizer._batched.refused = True
    old = problem.weights()
    optimizer.step(spoilt(problem, {1, 2, 3}, math.nan))
    assert same(problem.weights(), old)
    run(problem, optimizer, 2)
    assert not same(problem.weights(), old)


def test_numbers_whose_squares_overflow_do_no_harm() -> None:
    w = nn.Parameter(randn(8))
    optimizer, old = VectorDopamine([w], directions=4), w.detach().clone()
    with pytest.warns(RuntimeWarning, match=r"VectorDopamine.*so large"):
        optimizer.step(lambda: outcome(1e300 * w, torch.abs))
    assert torch.equal(w.detach(), old)
    assert optimizer.skipped_steps == 1
    assert optimizer.forward_passes == 1 + 5 + 0
    optimizer.step(lambda: outcome(w, torch.square))
    assert not torch.equal(w.detach(), old)


@pytest.mark.parametrize("batched", [False, True])
def test_another_number_of_outcomes_within_a_step_is_an_error(batched: bool) -> None:
    problem, calls = Fit(), 0
    optimizer = VectorDopamine(problem.model.parameters(), directions=5)
    optimizer._batched.refused = not batched
    old = problem.weights()

    def closure() -> Any:
        nonlocal calls
        calls += 1
        n = 16 if calls == 1 else 12
        return squared_error(problem.model(problem.x[:n]), problem.y[:n])

    with pytest.raises(
        ValueError, match=r"VectorDopamine: the closure returned 16 outcomes at first and 12"
    ):
        optimizer.step(closure)
    assert same(problem.weights(), old)
    run(problem, optimizer, 1)


@pytest.mark.parametrize("bad", [None, "loss", (0.5,), [None], torch.zeros(2, 2)], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_what_is_no_loss_is_an_error_at_any_call(bad: Any, first: bool) -> None:
    problem, calls = Fit("number"), 0
    optimizer = VectorDopamine(problem.model.parameters())
    old = problem.weights()

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return bad if first or calls > 1 else problem()

    with pytest.raises((TypeError, ValueError), match="VectorDopamine"):
        optimizer.step(closure)
    assert same(problem.weights(), old)


def test_a_constant_model_stays_where_it_is() -> None:
    problem, x = Fit(), torch.zeros(4, 2, dtype=DOUBLE)
    old = problem.weights()
    for returned in (
        lambda: squared_error(x, x + 1),
        lambda: cross_entropy(x, torch.tensor([0, 1, 1, 0])),
        lambda: 1.0,
    ):
        optimizer = VectorDopamine(problem.model.parameters(), weight_decay=0.1)
        for _ in range(3):
            optimizer.step(returned)
        assert same(problem.weights(), old)
        assert optimizer.skipped_steps == 0
        assert optimizer.last_rpe == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_no_learning_rate_no_change(form: str) -> None:
    problem = Fit(form, dtype=torch.float32)
    old = problem.weights()
    run(problem, VectorDopamine(problem.model.parameters(), lr=0.0, weight_decay=0.3), 4)
    assert same(problem.weights(), old)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16], ids=str)
def test_the_step_taken_is_the_step_that_was_checked(dtype: torch.dtype) -> None:
    """Bit for bit, also where weights are rounded at random."""
    w, seen, taken = nn.Parameter(randn(12, 2).to(dtype)), [], 0
    x, y = randn(20, 12), randn(20, 2, seed=1)
    optimizer = VectorDopamine([w], directions=8)

    def closure() -> Any:
        seen.append(w.detach().clone())
        return squared_error(x @ w.double(), y)

    optimizer._batched.refused = True
    for _ in range(5):
        seen.clear()
        optimizer.step(closure)
        taken += torch.equal(w.detach(), seen[-1])
        assert torch.equal(w.detach(), seen[-1]) or torch.equal(w.detach(), seen[0])
    assert taken >= 2


def test_one_outcome_and_one_weight_are_enough() -> None:
    w = nn.Parameter(torch.tensor(3.0, dtype=DOUBLE))
    optimizer = VectorDopamine([w])
    for _ in range(30):
        optimizer.step(lambda: squared_error(2.0 * w[None], torch.tensor([1.0], dtype=DOUBLE)))
    assert float(w.detach()) == pytest.approx(0.5, abs=1e-6)


def test_directions_can_be_tried_one_by_one_to_the_same_end() -> None:
    def trained(batched: bool) -> tuple[list[Tensor], int, int]:
        model, x = perceptron(3, 5, 1, seed=2), randn(12, 3)
        calls = [0]

        def closure() -> Outcome:
            calls[0] += 1
            return squared_error(model(x), x[:, :1])

        optimizer = VectorDopamine(model.parameters(), batched=batched)
        for _ in range(5):
            optimizer.step(closure)
        return copies(model.parameters()), calls[0], optimizer.forward_passes

    alone, calls, passes = trained(False)
    together, fewer, _ = trained(True)

    assert calls == passes
    assert fewer < calls
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)
