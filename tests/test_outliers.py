"""One loss that is far from all others must not undo what was learnt."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from dopaminergic import Dopamine, Dopamine2, EvolutionStrategy
from optimizers import randn


def steps_to_solve(
    rule: Any,
    factor: float,
    at: int,
    evaluation: int | None = None,
    seed: int = 0,
    most: int = 400,
) -> float:
    """Steps until ten weights have lost all but 1e-4 of their squares.

    The losses of one step are multiplied.
    """
    w = nn.Parameter(randn(10, seed=seed))
    optimizer = rule([w], seed=seed)
    start = float(w.detach().square().sum())
    for step in range(most):
        number = 0

        def loss(step: int = step) -> float:
            nonlocal number
            number += 1
            hit = step == at and evaluation in (None, number)
            return float(w.square().mean()) * (factor if hit else 1.0)

        optimizer.step(loss)
        if step > at and float(w.detach().square().sum()) < 1e-4 * start:
            return step
    return math.inf


@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
@pytest.mark.parametrize("at", [0, 30])
@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6, 1e12, 1e200, 1e300])
def test_an_outlier_costs_a_fifth_of_the_steps_at_most(rule: Any, at: int, factor: float) -> None:
    assert steps_to_solve(rule, factor, at) <= 1.2 * steps_to_solve(rule, 1.0, at)


@pytest.mark.filterwarnings("ignore:Dopamine. a loss of .* is below loss_floor:RuntimeWarning")
@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
@pytest.mark.parametrize("evaluation", [1, 2])
@pytest.mark.parametrize("factor", [1e2, 1e6, 1e200, -1e6])
def test_an_outlier_of_one_evaluation_costs_no_more(
    rule: Any, evaluation: int, factor: float
) -> None:
    assert steps_to_solve(rule, factor, 30, evaluation) <= 1.2 * steps_to_solve(rule, 1.0, 30)


@pytest.mark.filterwarnings("ignore:Dopamine.*not finite:RuntimeWarning")
@pytest.mark.parametrize("rule", [Dopamine, Dopamine2])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("evaluation", [None, 1])
def test_an_early_outlier_costs_no_more_than_a_step_left_out(
    rule: Any, at: int, evaluation: int | None
) -> None:
    """A change of an early step changes the luck of a seed, so the median of seeds counts."""
    costs = []
    for seed in range(5):
        hit = steps_to_solve(rule, 1e2, at, evaluation, seed, most=2000)
        left_out = steps_to_solve(rule, math.nan, at, None, seed, most=2000)
        costs.append(hit / left_out)
    assert median(costs) <= 1.2


def test_a_loss_of_inf_ranks_last() -> None:
    w, twin = nn.Parameter(randn(4)), nn.Parameter(randn(4))
    first, second = EvolutionStrategy([w]), EvolutionStrategy([twin])
    told = first.step(lambda: math.inf if w.sum() > 1.0 else w.square().sum())
    second.step(lambda: 1e9 if twin.sum() > 1.0 else twin.square().sum())
    assert math.isfinite(told)
    assert math.isfinite(first.last_rpe)
    assert first.skipped_steps == 0
    assert torch.equal(w, twin)


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_losses_without_an_order_skip_the_step(loss: float) -> None:
    optimizer = EvolutionStrategy([nn.Parameter(randn(4))])
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step(lambda: loss)
    assert optimizer.skipped_steps == 1
