"""VectorDopamine: whole steps against a slow reference, what a step promises, stopping and going on, and fleets."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dopaminergic import Dopamine, VectorDopamine, cross_entropy, outcome, squared_error
from dopaminergic.lab.tasks import make_task
from optimizers import LARGE, Regression, copies, drawn, perceptron, randn, same

DOUBLE = torch.float64
LABELS = torch.arange(16) % 3


class Fit(Regression):
    """The table's small network; what the closure returns is one of `FORMS`."""

    def __init__(self, form: str = "squared_error", seed: int = 0, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__(seed, dtype)
        self.form = form
        if form == "cross_entropy":
            self.model = perceptron(3, 5, 3, seed=seed, dtype=dtype)

    def __call__(self) -> Any:
        return FORMS[self.form](self.model(self.x), self.y)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "squared_error": squared_error,
    "cross_entropy": lambda p, y: cross_entropy(p, LABELS),
    "outcome": lambda p, y: outcome(p, lambda p: ((p - y) ** 4 + (p - y) ** 2).flatten()),
    "losses": lambda p, y: ((p - y) ** 2).flatten(),
    "number": lambda p, y: ((p - y) ** 2).mean(),
}


def run(problem: Fit, optimizer: VectorDopamine, steps: int) -> list[float]:
    return [optimizer.step(problem) for _ in range(steps)]


# ---- the slow reference ----------------------------------------------------------------------------------------------


def black_box_curvature(losses: Tensor) -> Tensor:
    excess = losses - min(0.0, float(losses.min()))
    mean = excess.mean()
    unit = excess + 0.1 * mean if float(mean) > 0 else losses.abs()
    return torch.diag(0.5 / len(losses) / (unit + torch.finfo(losses.dtype).tiny))


def loss_slope_curvature(form: str, o: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor, int]:
    """l, r, H and N at the outcome, all dense."""
    if form in ("losses", "number"):
        return float(o.mean()), torch.full_like(o, 1 / len(o)), black_box_curvature(o), len(o)
    shape = (16, 3) if form == "cross_entropy" else (16, 1)

    def mean(o: Tensor) -> Tensor:
        found = FORMS[form](o.reshape(shape), y)
        return found.losses.mean() if form != "outcome" else found.truth(o.reshape(shape)).mean()

    grad = torch.func.grad(mean)
    return float(mean(o)), grad(o), torch.func.jacrev(grad)(o), 16


def noise_of_the_batch(J: Tensor, r: Tensor, M: Tensor, samples: int) -> float:
    """tr(M^-1 C), C from the parts that samples have in the slopes."""
    if samples < 2:
        return 0.0
    parts = torch.stack([J[:, i] @ r[i] for i in torch.arange(len(r)).reshape(samples, -1)], 1)
    return float(torch.linalg.solve(M, samples * torch.cov(parts).reshape(len(J), len(J))).trace())


def clamped(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def eta_taken(gain: float, sound: float, lost: float) -> float:
    return lost * gain + (1 - lost) * min(gain, clamped(sound, 0.05, 1.0))


def by_hand(problem: Fit, optimizer: VectorDopamine, steps: int) -> Any:
    """Yields weights, damping, gain, forward passes and prediction error after each step; settings as documented."""
    groups = [{**group, "params": copies(group["params"])} for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    d, tau, kappa, beta = sum(sizes), *(optimizer.settings[key] for key in ("tau", "kappa", "beta"))
    D = torch.cat(
        [torch.full((n,), group["sigma"] / math.sqrt(d)) for n, group in zip(sizes, groups, strict=True)]
    ).double()
    w = torch.cat([p.flatten() for p in parameters])

    def outcomes(w: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(w, problem.model.parameters())
        with torch.no_grad():
            returned = problem()
        values = returned if isinstance(returned, Tensor) else returned.values
        return values.flatten()

    damping: float = optimizer.settings["damping"]
    gain: float = 0.5
    curvature: float = 0.0
    actuals: float = 0.0
    promises: float = 0.0
    comparisons: float = 0.0
    expected: float = 0.0
    gaps: float = 0.0
    slopes: float = 0.0
    signals: float = 0.0
    tried: float = 0.0
    last: float = math.nan
    passes: int = 0
    for step in range(steps):
        o = outcomes(w)
        loss, r, H, samples = loss_slope_curvature(problem.form, o, problem.y)
        K = min(optimizer.settings["directions"], d)
        if optimizer.settings["automatic"]:
            K = int(32 * 1.05**step)
            K = max(8, min(K, math.ceil(2 * d / 3), max(8, 2 * samples), 512))
        Z = torch.stack(
            [
                torch.cat([drawn(optimizer, p, i, step=step, direction=k).flatten() for i, p in enumerate(parameters)])
                for k in range(K)
            ]
        )
        Z = Z * D
        J = torch.stack([outcomes(w + z) - o for z in Z])
        if problem.form in ("losses", "number") and K >= 8:
            J = J - J.mean(0)
        G = Z @ Z.T
        G = torch.eye(K, dtype=DOUBLE) if d > 16 * K else G / G.diagonal().mean()
        if expected > 0:
            actual = last - loss
            actuals = beta * actuals + (1 - beta) * abs(actual)
            promises = beta * promises + (1 - beta) * expected
            comparisons = beta * comparisons + (1 - beta)
            gaps = beta * gaps + (1 - beta) * abs(loss - tried)
            error = (actual - tau * expected) / ((actuals + promises) / comparisons)
            gain = clamped(gain * math.exp(kappa * clamped(error, -3, 3)), 0.05, 1.0)
        g, A, JJ = J @ r, J @ H @ J.T, J @ J.T
        h = float(A.trace() / JJ.trace())
        curvature = clamped(curvature, h, math.inf)
        lost = curvature - h
        unit = curvature / 2 * float(JJ.trace()) / K
        ridge = clamped(damping, 0.015 * lost / curvature, math.inf) * unit
        M = A + 0.2 * lost * JJ + ridge * G
        c = torch.linalg.solve(M, g)
        slope, noise = float(g @ c), noise_of_the_batch(J, r, M, samples)
        heard = slope - clamped(noise, 0.0, 8 * gaps / comparisons if comparisons else 0.0)
        slopes, signals = beta * slopes + (1 - beta) * slope, beta * signals + (1 - beta) * heard
        taken = eta_taken(gain, signals / slopes, lost / curvature)
        rates = [group["lr"] * taken for group in groups]
        squares = [n * group["sigma"] ** 2 for n, group in zip(sizes, groups, strict=True)]
        share = sum(a * b for a, b in zip(rates, squares, strict=True)) / sum(squares)
        rate = torch.cat([torch.full((n,), x) for n, x in zip(sizes, rates, strict=True)]).double()
        move = -rate * (c @ Z)
        expected = float(share * g @ c - share**2 * c @ A @ c / 2)
        trial = loss_slope_curvature(problem.form, outcomes(w + move), problem.y)[0]
        ratio = (loss - trial) / expected
        damping = clamped(damping * (0.5 if ratio > 0.75 else 1.0 if ratio >= 0.5 else 3.0), 1e-8, 1e4)
        rpe, last, tried = loss - trial - expected, loss, trial
        if loss - trial > 0:
            decay = torch.cat([torch.full((n,), group["weight_decay"]) for n, group in zip(sizes, groups, strict=True)])
            longer = sum(c @ c * a**2 * b / d for a, b in zip(rates, squares, strict=True))
            saturated = math.sqrt(lost / curvature) if problem.form in ("cross_entropy", "outcome") else 0.0
            kept = math.sqrt(1 - (1 - K / d) ** 2 * saturated * longer / (w @ w + longer))
            w = kept * (1 - rate * decay.double()) * w + move
        else:
            expected = 0.0
        passes += K + 2 + (step == 0)
        yield w, damping, gain, passes, rpe


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "few directions": {"directions": 1},
    "knobs": {"directions": 9, "lr": 0.7, "sigma": 0.03, "damping": 0.01, "tau": 0.4, "kappa": 0.3, "beta": 0.5},
    "decay": {"directions": 12, "weight_decay": 0.2, "noise": "gaussian"},
    "more than weights": {"directions": 99},
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_the_slow_reference(form: str, settings: str, grouped: bool) -> None:
    problem, other = Fit(form), Fit(form)
    first, *rest = problem.model.parameters()
    params: Any = [{"params": [first], "lr": 0.3, "sigma": 0.02}, {"params": rest}] if grouped else [first, *rest]
    optimizer = VectorDopamine(params, seed=4, **SETTINGS[settings])
    moved = 0
    # Regrets of 0.01 lose two of sixteen digits, an ill-conditioned solution more; fast normals differ by ulps.
    near = 1e-6 if optimizer.settings["noise"] == "rademacher" else 1e-3
    for w, damping, gain, passes, rpe in by_hand(other, optimizer, 6):
        old = torch.cat([p.flatten() for p in problem.weights()])
        optimizer.step(problem)
        got = torch.cat([p.flatten() for p in problem.weights()])
        torch.testing.assert_close(got, w, rtol=near, atol=near)
        state = optimizer._progress.rule
        assert float(state.damping) == pytest.approx(damping, rel=1e-12)
        assert float(state.gain) == pytest.approx(gain, rel=near)
        assert optimizer.forward_passes == passes
        assert optimizer.last_rpe == pytest.approx(rpe, rel=1e-3, abs=near)
        moved += not torch.equal(got, old)
    assert moved >= 1


# ---- what a step promises --------------------------------------------------------------------------------------------


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
def test_an_exception_at_any_call_leaves_weights_and_state(batched: bool, error: type[BaseException]) -> None:
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
            torch.cat([drawn(optimizer, p, i, step=0, direction=k).flatten() for i, p in enumerate(parameters)])
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

    with pytest.raises(ValueError, match=r"VectorDopamine: the closure returned 16 outcomes at first and 12"):
        optimizer.step(closure)
    assert same(problem.weights(), old)
    run(problem, optimizer, 1)


@pytest.mark.parametrize("bad", [None, "loss", [0.5], torch.zeros(2, 2)], ids=str)
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


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"directions": 3}, {"directions": 40}, {"memory": 100}], ids=str)
@pytest.mark.parametrize("form", ["squared_error", "number"])
def test_passes_are_evaluations_and_never_more_than_announced(form: str, settings: dict[str, Any]) -> None:
    """In place each call is one; a batch of K is K, of which nothing else tells."""
    counts = []
    for batched in (False, True):
        problem, calls = Fit(form), 0
        optimizer = VectorDopamine(problem.model.parameters(), **settings)
        optimizer._batched.refused = not batched

        def closure(problem: Fit = problem) -> Any:
            nonlocal calls
            calls += 1
            return problem()

        counts.append([])
        for step in range(5):
            announced, before = optimizer.next_passes, optimizer.forward_passes
            if step == 1:
                with pytest.warns(RuntimeWarning):
                    optimizer.step(lambda: math.nan)
            else:
                optimizer.step(closure)
            counts[-1].append(optimizer.forward_passes - before)
            assert counts[-1][-1] <= announced
        if not batched:
            assert calls == optimizer.forward_passes - 1
    assert counts[1] == [counts[0][0] + (settings != {"memory": 100}), *counts[0][1:]]


def test_closures_that_cannot_be_batched_are_counted_too() -> None:
    problem, calls = Fit(), 0
    kept = next(iter(problem.model.parameters())).detach()
    optimizer = VectorDopamine(problem.model.parameters(), directions=6)

    def closure() -> Any:
        nonlocal calls
        calls += 1
        return squared_error(problem.x @ kept[:1].T, problem.y)

    announced = optimizer.next_passes
    optimizer.step(closure)
    assert optimizer._batched.refused
    assert optimizer.forward_passes == calls == announced == 9
    assert optimizer.next_passes == 8


def test_probe_and_step_are_a_step() -> None:
    ends = []
    for halves in (False, True):
        problem = Fit()
        optimizer = VectorDopamine(problem.model.parameters(), weight_decay=0.1)
        losses = []
        for _ in range(4):
            if halves:
                old = problem.weights()
                losses.append(optimizer.probe(problem))
                assert same(problem.weights(), old)
                assert optimizer.step() is None
            else:
                losses.append(optimizer.step(problem))
        ends.append((problem.weights(), losses, str(optimizer.state_dict())))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]
    with pytest.raises(RuntimeError, match=r"VectorDopamine.*probe"):
        optimizer.step()


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_parameters_may_come_from_generators() -> None:
    ends = []
    for form in (list, iter, lambda named: [{"params": iter(named)}], lambda named: [{"params": named}]):
        problem = Fit()
        optimizer = VectorDopamine(form(list(problem.model.named_parameters())))
        run(problem, optimizer, 2)
        ends.append(problem.weights())
    assert all(same(ends[0], end) for end in ends)


def test_a_group_added_later_is_as_one_given_at_once() -> None:
    ends = []
    for late in (False, True):
        problem = Fit()
        first, *rest = problem.model.parameters()
        groups = [{"params": [first]}, {"params": rest, "sigma": 0.02, "lr": 0.5}]
        optimizer = VectorDopamine(groups[:1] if late else groups)
        if late:
            optimizer.add_param_group(groups[1])
        run(problem, optimizer, 3)
        ends.append(problem.weights())
    assert same(*ends)
    problem = Fit()
    first, *rest = problem.model.parameters()
    optimizer = VectorDopamine([first])
    run(problem, optimizer, 2)
    old = problem.weights()
    optimizer.add_param_group({"params": rest})
    run(problem, optimizer, 4)
    assert not any(torch.equal(a, b) for a, b in zip(old, problem.weights(), strict=True))


def test_a_group_that_does_not_learn_stays_and_frozen_ones_too() -> None:
    problem = Fit()
    first, second, *rest = problem.model.parameters()
    optimizer = VectorDopamine([{"params": [first], "lr": 0.0}, {"params": [second, *rest]}])
    second.requires_grad_(False)
    old = problem.weights()
    run(problem, optimizer, 4)
    new = problem.weights()
    assert same(new[:2], old[:2])
    assert not any(torch.equal(a, b) for a, b in zip(new[2:], old[2:], strict=True))


@pytest.mark.parametrize("make", [lr_scheduler.StepLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR])
def test_schedulers_set_the_share_of_the_step(make: Any) -> None:
    settings = {"StepLR": {"step_size": 1, "gamma": 0.5}, "CosineAnnealingLR": {"T_max": 5}}
    settings["OneCycleLR"] = {"max_lr": 1.0, "total_steps": 6, "cycle_momentum": False}
    problem, other = Fit(), Fit()
    optimizer, by_hand = VectorDopamine(problem.model.parameters()), VectorDopamine(other.model.parameters())
    scheduler, rates = make(optimizer, **settings[make.__name__]), []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        by_hand.param_groups[0]["lr"] = rates[-1]
        run(problem, optimizer, 1)
        scheduler.step()
        run(other, by_hand, 1)
    assert len(set(rates)) == 5
    assert same(problem.weights(), other.weights())
    constant = Fit()
    run(constant, VectorDopamine(constant.model.parameters()), 5)
    assert not same(constant.weights(), problem.weights())
    assert optimizer.last_learning_rate == pytest.approx(rates[-1] * float(optimizer._progress.rule.gain))


# ---- stopping and going on -------------------------------------------------------------------------------------------


def through_a_file(state: Any, file: Path) -> Any:
    torch.save(state, file)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_loaded_state_goes_on_bit_for_bit(form: str, after: int, batched: bool, tmp_path: Path) -> None:
    """In the ramp of the directions, and where the closure cannot be batched."""
    problem = Fit(form)

    def closure(problem: Fit) -> Any:
        return problem() if batched or float(problem.model[0].weight.sum()) < 1e9 else None  # pyright: ignore

    optimizer = VectorDopamine(problem.model.parameters(), seed=7, weight_decay=0.01)
    for _ in range(after):
        optimizer.step(lambda: closure(problem))
    saved = through_a_file([problem.model.state_dict(), optimizer.state_dict()], tmp_path / "half.pt")
    other = Fit(form, seed=1)
    resumed = VectorDopamine(other.model.parameters(), directions=2, sigma=0.5, memory=300)
    run(other, resumed, 1)
    other.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(4):
        assert resumed.next_passes == optimizer.next_passes
        assert resumed.step(lambda: closure(other)) == optimizer.step(lambda: closure(problem))
    assert same(other.weights(), problem.weights())
    assert str(resumed.state_dict()) == str(optimizer.state_dict())
    assert resumed._batched.refused is not batched


FRESH_PROCESS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from dopaminergic import VectorDopamine
from test_vector import Fit, run
problem = Fit("cross_entropy", seed=1)
optimizer = VectorDopamine(problem.model.parameters())
model, state = torch.load(sys.argv[2], weights_only=True)
problem.model.load_state_dict(model)
optimizer.load_state_dict(state)
run(problem, optimizer, 4)
torch.save(problem.weights(), sys.argv[3])
"""


def test_a_fresh_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    problem = Fit("cross_entropy")
    optimizer = VectorDopamine(problem.model.parameters(), seed=3)
    run(problem, optimizer, 2)
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    torch.save([problem.model.state_dict(), optimizer.state_dict()], before)
    run(problem, optimizer, 4)
    arguments = [sys.executable, "-c", FRESH_PROCESS, str(Path(__file__).parent), str(before), str(after)]
    subprocess.run(arguments, check=True, timeout=120)
    assert same(torch.load(after, weights_only=True), problem.weights())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_their_own_way(duplicate: Any) -> None:
    problem = Fit()
    optimizer = VectorDopamine(problem.model.parameters())
    run(problem, optimizer, 2)
    other_problem, other = duplicate((problem, optimizer))
    old = other_problem.weights()
    losses = run(problem, optimizer, 3)
    assert same(other_problem.weights(), old)
    assert run(other_problem, other, 3) == losses
    assert same(other_problem.weights(), problem.weights())
    assert other.forward_passes == optimizer.forward_passes


def test_a_state_of_something_else_is_refused() -> None:
    problem = Fit()
    optimizer = VectorDopamine(problem.model.parameters())
    run(problem, optimizer, 2)
    before = str(optimizer.state_dict())
    for state in (
        Dopamine(problem.model.parameters()).state_dict(),
        VectorDopamine([nn.Parameter(problem.x)]).state_dict(),
        {},
    ):
        with pytest.raises(ValueError, match="VectorDopamine"):
            optimizer.load_state_dict(state)
        assert str(optimizer.state_dict()) == before
    run(problem, optimizer, 1)


# ---- the same run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_two_runs_are_the_same_bits_and_other_seeds_are_not(form: str) -> None:
    ends = []
    for torch_seed, seed in ((0, 3), (1, 3), (0, 4)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            before = torch.get_rng_state()
            problem = Fit(form)
            run(problem, VectorDopamine(problem.model.parameters(), seed=seed, noise="gaussian"), 4)
            assert torch.equal(torch.get_rng_state(), before)
        ends.append(problem.weights())
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_generators_are_left_as_after_one_call() -> None:
    problem = Fit()

    def closure() -> Any:
        return squared_error(problem.model(problem.x) + torch.rand(16, 1), problem.y)

    for refused in (False, True):
        optimizer = VectorDopamine(problem.model.parameters(), directions=5)
        optimizer._batched.refused = refused
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            closure()
            expected = torch.get_rng_state()
            torch.manual_seed(1)
            optimizer.step(closure)
            assert torch.equal(torch.get_rng_state(), expected)
            assert optimizer._batched.checked is not refused


@pytest.mark.parametrize("form", ["outcome", "losses", "number"])
def test_a_hundredfold_loss_changes_nothing_but_rounding(form: str) -> None:
    runs = []
    for scale in (1.0, 100.0):
        problem = Fit(form)
        optimizer = VectorDopamine(problem.model.parameters())

        def closure(problem: Fit = problem, scale: float = scale) -> Any:
            found = problem()
            return scale * found if form != "outcome" else outcome(found.values, lambda v: scale * found.truth(v))

        for _ in range(8):
            optimizer.step(closure)
        runs.append(problem.weights())
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-7)


def test_gradients_and_gradient_mode_do_not_matter() -> None:
    ends = []
    for mode in ("off", "backward", "left on"):
        problem = Fit()
        optimizer = VectorDopamine(problem.model.parameters(), directions=6)
        optimizer._batched.refused = True

        def closure(problem: Fit = problem, mode: str = mode) -> Any:
            if mode == "off":
                return problem()
            torch.set_grad_enabled(True)
            found = problem()
            if mode == "backward":
                found.mean().backward()
            return found

        for _ in range(3):
            optimizer.step(closure)
        ends.append(problem.weights())
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


# ---- fleets ----------------------------------------------------------------------------------------------------------

SEEDS = [5, 9, 1 << 40]


class Fleet:
    """Stacked 3-4-2 networks; None: one of them, without that dimension."""

    def __init__(self, form: str, replicas: list[int] | None) -> None:
        self.form, self.replicas = form, replicas
        starts = [[randn(*shape, seed=seed % 999) / 2 for shape in ((3, 4), (4, 2))] for seed in replicas or [0]]
        stacked = [torch.stack(parts) for parts in zip(*starts, strict=True)]
        self.parameters = [nn.Parameter(p if replicas else p[0]) for p in stacked]

    def start_as(self, seed: int) -> Fleet:
        for p, q in zip(self.parameters, Fleet(self.form, [seed]).parameters, strict=True):
            p.data.copy_(q.detach()[0])
        return self

    def __call__(self) -> Any:
        values = torch.tanh(randn(8, 3) @ self.parameters[0]) @ self.parameters[1]
        if self.form == "cross_entropy":
            return cross_entropy(values, (torch.arange(8) % 2).expand(values.shape[:-1]))
        target = randn(8, 2, seed=1).expand(values.shape)
        if self.form == "outcome":
            return outcome(values, lambda v: ((v - target) ** 4 + (v - target) ** 2).sum(-1))
        losses = ((values - target) ** 2).sum(-1)
        return squared_error(values, target) if self.form == "squared_error" else losses


@pytest.mark.parametrize("form", ["squared_error", "cross_entropy", "outcome", "losses"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_fleet_is_its_single_runs(form: str, batched: bool) -> None:
    fleet, rates = Fleet(form, SEEDS), torch.tensor([1.0, 0.5, 0.25], dtype=DOUBLE)
    optimizer = VectorDopamine(fleet.parameters, seed=SEEDS, lr=rates, weight_decay=0.05)
    optimizer._batched.refused = not batched
    losses = torch.stack([optimizer.step(fleet) for _ in range(5)])
    for r, seed in enumerate(SEEDS):
        alone = Fleet(form, None).start_as(seed)
        single = VectorDopamine(alone.parameters, seed=seed, lr=float(rates[r]), weight_decay=0.05)
        single._batched.refused = not batched
        found = [single.step(alone) for _ in range(5)]
        torch.testing.assert_close(losses[:, r].tolist(), found, rtol=1e-10, atol=1e-12)
        for p, q in zip(fleet.parameters, alone.parameters, strict=True):
            torch.testing.assert_close(p.detach()[r], q.detach(), rtol=1e-8, atol=1e-9)
        assert optimizer.forward_passes == single.forward_passes
        assert float(optimizer.last_rpe[r]) == pytest.approx(single.last_rpe, rel=1e-6, abs=1e-10)
        assert float(optimizer.last_learning_rate[r]) == pytest.approx(single.last_learning_rate, rel=1e-9)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", ["squared_error", "cross_entropy", "outcome", "losses"])
def test_a_diverged_replica_harms_nobody(form: str, large: bool) -> None:
    """Its weights are NaN, or its batch is for a step; the others go on as if all were well."""
    ends = []
    for spoilt in (False, True):
        fleet = Fleet(form, SEEDS)
        extra = [nn.Parameter(torch.zeros(3, 1 << 16, dtype=DOUBLE))] if large else []
        optimizer = VectorDopamine([*fleet.parameters, *extra], seed=SEEDS, directions=12)

        def closure(bad: bool, fleet: Fleet = fleet) -> Any:
            found = fleet()
            if not bad:
                return found
            factor = torch.tensor([1.0, math.nan, 1.0], dtype=DOUBLE)
            if isinstance(found, Tensor):
                return found * factor[:, None]
            values = found.values * factor[:, None, None]
            if form == "cross_entropy":
                return cross_entropy(values, found.truth)
            return squared_error(values, found.truth) if form == "squared_error" else outcome(values, found.truth)

        optimizer.step(lambda closure=closure: closure(False))
        old, state = copies(fleet.parameters), optimizer._progress.rule
        if spoilt:
            with pytest.warns(RuntimeWarning, match="VectorDopamine"):
                optimizer.step(lambda closure=closure: closure(True))
            if not large:
                assert all(torch.equal(p.detach()[1], w[1]) for p, w in zip(fleet.parameters, old, strict=True))
            assert all(p.detach().isfinite().all() for p in fleet.parameters)
            assert all(torch.equal(a[1], b[1]) for a, b in zip(optimizer._progress.rule, state, strict=True))
        else:
            optimizer.step(lambda closure=closure: closure(False))
        optimizer.step(lambda closure=closure: closure(False))
        ends.append([p.detach()[[0, 2]].clone() for p in fleet.parameters])
        assert optimizer.skipped_steps.tolist() == [0, int(spoilt), 0]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_a_fleet_resumes_bit_for_bit(tmp_path: Path) -> None:
    fleet, other = Fleet("cross_entropy", SEEDS), Fleet("cross_entropy", [1, 2, 3])
    optimizer, resumed = (VectorDopamine(x.parameters, seed=s) for x, s in ((fleet, SEEDS), (other, [1, 2, 3])))
    for _ in range(2):
        optimizer.step(fleet)
    weights, state = through_a_file([copies(fleet.parameters), optimizer.state_dict()], tmp_path / "fleet.pt")
    for p, w in zip(other.parameters, weights, strict=True):
        p.data.copy_(w)
    resumed.load_state_dict(state)
    for _ in range(3):
        assert torch.equal(optimizer.step(fleet), resumed.step(other))
    assert same(copies(other.parameters), copies(fleet.parameters))


# ---- learning --------------------------------------------------------------------------------------------------------


def test_linear_regression_is_solved_in_a_few_steps() -> None:
    x, true = randn(64, 10, seed=3), randn(10, seed=4)
    w = nn.Parameter(torch.zeros(10, dtype=DOUBLE))
    optimizer = VectorDopamine([w], directions=10)
    for _ in range(25):
        optimizer.step(lambda: squared_error(x @ w, x @ true))
    assert float((w.detach() - true).norm() / true.norm()) < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_continuous_xor_is_classified_in_bounded_passes(seed: int) -> None:
    x = 2 * torch.rand(128, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) - 1
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = perceptron(2, 16, 2, seed=seed)
    optimizer = VectorDopamine(model.parameters(), seed=seed)
    while optimizer.forward_passes + optimizer.next_passes <= 4000:
        optimizer.step(lambda: cross_entropy(model(x), labels))
    assert float((model(x).argmax(1) == labels).double().mean()) > 0.95


def test_local_minima_of_a_small_network_are_left() -> None:
    """A quarter of these networks would get stuck."""
    seeds, task = list(range(24)), make_task("xor-2-2-1")
    model, batch = task.build(seeds), task.batch(torch.tensor(seeds), 0)
    optimizer = VectorDopamine(model.parameters(), seed=seeds)
    least, unsolved_and_wide = torch.full((24,), torch.inf, dtype=DOUBLE), False
    while optimizer.forward_passes + optimizer.next_passes <= 5000 and bool((least >= 0.01).any()):
        least = torch.minimum(least, optimizer.step(lambda: task.outcome(model, batch)))
        unsolved_and_wide |= bool(((least >= 0.01) & (optimizer._progress.rule.reach > 1.0)).any())
    assert unsolved_and_wide
    assert bool((least < 0.01).all())


def test_where_no_step_helps_a_far_better_copy_is_taken() -> None:
    """Flat but for a hole that is too far for a perturbation of the usual length."""
    w = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    optimizer = VectorDopamine([w], directions=2)
    slope = lambda: torch.where(w.norm() < 1.0, 1.0, -0.1)  # noqa: E731
    loss = 1.0
    for _ in range(40):
        loss = optimizer.step(lambda: squared_error(1.0 + slope() * w.square().sum(), torch.zeros((), dtype=DOUBLE)))
    assert float(w.detach().norm()) > 1.0
    assert loss < 1.0


def test_large_models_come_back_from_a_bad_step() -> None:
    """A lone number tells so little that the proposal is hundreds of times as long as the weights, and bad."""
    torch.manual_seed(0)
    weights = nn.Parameter(0.05 * torch.randn(300_000))
    before, optimizer = weights.detach().clone(), VectorDopamine([weights], directions=8, damping=1e-6)
    # Perturbations move each weight by 2e-5, any step by more, and every step looks bad.
    optimizer.step(lambda: (weights - 1).square().mean() + 1e6 * ((weights - before).abs().amax() > 1e-3))
    torch.testing.assert_close(weights.detach(), before, rtol=0, atol=5e-7)


def test_large_models_take_short_steps() -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(0.05 * torch.randn(300_000))
    before, optimizer = weights.detach().clone(), VectorDopamine([weights], directions=8, damping=1e-6)
    optimizer.step(lambda: (weights - 1).square().mean() - ((weights - before).abs().amax() > 1e-3).float())
    assert 0.01 < float((weights.detach() - before).square().mean().sqrt()) <= 0.1


def test_what_is_not_scored_has_no_part_in_a_run() -> None:
    """Padded sequences: whatever the model says there, the weights are the same."""
    x, labels = randn(12, 3, seed=1), torch.arange(12) % 3
    labels[8:] = -100
    ends = []
    for padding in (0.0, 5.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3, dtype=torch.float64)
        inputs = torch.cat([x[:8], torch.full_like(x[8:], padding)])
        optimizer = VectorDopamine(model.parameters(), seed=2)
        losses = [optimizer.step(lambda: cross_entropy(model(inputs), labels)) for _ in range(15)]  # noqa: B023
        assert losses[-1] < 0.8 * losses[0]
        ends.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
