"""VectorDopamine: its count of forward passes, groups and schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from dopaminergic import VectorDopamine, squared_error
from fits import Fit, run
from optimizers import same

# ---- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"directions": 3}, {"directions": 40}, {"memory": 100}], ids=str
)
@pytest.mark.parametrize("form", ["squared_error", "number"])
def test_passes_are_evaluations_and_never_more_than_announced(
    form: str, settings: dict[str, Any]
) -> None:
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


# ---- groups --------------------------------------------------------------------------------------


def test_parameters_may_come_from_generators() -> None:
    ends = []
    for form in (
        list,
        iter,
        lambda named: [{"params": iter(named)}],
        lambda named: [{"params": named}],
    ):
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


@pytest.mark.parametrize(
    "make", [lr_scheduler.StepLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR]
)
def test_schedulers_set_the_share_of_the_step(make: Any) -> None:
    settings = {"StepLR": {"step_size": 1, "gamma": 0.5}, "CosineAnnealingLR": {"T_max": 5}}
    settings["OneCycleLR"] = {"max_lr": 1.0, "total_steps": 6, "cycle_momentum": False}
    problem, other = Fit(), Fit()
    optimizer, by_hand = (
        VectorDopamine(problem.model.parameters()),
        VectorDopamine(other.model.parameters()),
    )
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
    assert optimizer.last_learning_rate == pytest.approx(
        rates[-1] * float(optimizer._progress.rule.gain)
    )
