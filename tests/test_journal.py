"""Journals: every step of every optimizer is rebuilt, for any kind of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from dopaminergic import Dopamine, Journal, VectorDopamine, replay
from dopaminergic.journal import merge, read
from dopaminergic.noise import Combination
from journals import FEW, PROBLEMS, Mixed, assert_rebuilt, bits, recorded
from optimizers import Bowl, Regression, Row, randn


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_step_is_rebuilt(any_row: Row, kind: str, noise: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(
        problem.model.parameters(), directions=3, noise=noise, seed=9, weight_decay=0.01
    )
    steps = 3 if kind.startswith("in place") else FEW
    ends = recorded(problem, optimizer, path, steps, every=2)
    assert_rebuilt(PROBLEMS[kind], path, ends)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_a_step_in_place_is_rebuilt_in_one_pass(
    noise: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training writes in place twice a step, perturbed and updated; the sums of a replay draw a
    direction once.
    """
    bowl, fresh = Bowl(), Bowl()
    with Journal(Dopamine([bowl.w], noise=noise), path) as journal:
        for _ in range(3):
            journal.optimizer.step(bowl.loss)
    once, passes = Combination.__call__, []

    def counted(self: Combination, *arguments: Any, **options: Any) -> None:
        passes.append(self)
        once(self, *arguments, **options)

    monkeypatch.setattr(Combination, "__call__", counted)
    assert replay([fresh.w], path) == 3
    assert torch.equal(fresh.w, bowl.w)
    # The first brings the weights onto sigma's grid.
    assert len(passes) == 3 + (noise == "rademacher")


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_rejected_trials_in_place_are_rebuilt(noise: str, path: Path) -> None:
    """A trial step that was taken back leaves weights that differ from those before it in their
    last bit.
    """
    problem, passes = Mixed(), 0

    def loss() -> float:
        nonlocal passes
        passes += 1
        # Of K + 2 and a check.
        return float(problem.loss()) + (5.0 if passes > 1 and passes % 6 == 1 else 0.0)

    optimizer = VectorDopamine(problem.model.parameters(), directions=4, noise=noise, memory=1)
    ends = [bits(problem)]
    with Journal(optimizer, path):
        for _ in range(3):
            optimizer.step(loss)
            ends.append(bits(problem))
    assert float(optimizer._progress.rule.expected) == 0.0  # it was rejected
    for step, end in enumerate(ends):
        fresh = Mixed()
        replay(fresh.model, path, upto=step)
        assert bits(fresh) == end, step


def test_fleets_are_rebuilt(any_row: Row, path: Path) -> None:
    def make() -> Any:
        class Fleet:
            model = nn.ParameterList([randn(3, 4, 2, seed=1), randn(3, 5, seed=2)])

            def loss(self) -> Tensor:
                return sum((p.flatten(1).square().sum(1) for p in self.model), torch.zeros(3))

        return Fleet()

    problem = make()
    rates = torch.tensor([0.01, 0.02, 0.0], dtype=torch.float64)
    optimizer = any_row.make(
        problem.model.parameters(), directions=2, seed=[4, 5, 6], lr=rates, weight_decay=0.1
    )
    ends = recorded(problem, optimizer, path)
    assert_rebuilt(make, path, ends)


def test_a_fleet_with_a_bad_replica_is_rebuilt(path: Path) -> None:
    weights = nn.Parameter(randn(2, 4, seed=1))
    optimizer = Dopamine([weights], seed=[1, 2])
    bad = torch.zeros(2)
    with Journal(optimizer, path):
        optimizer.step(lambda: weights.square().sum(1) + bad)
        bad[1] = torch.nan
        with pytest.warns(RuntimeWarning, match="not finite"):
            optimizer.step(lambda: weights.square().sum(1) + bad)
        optimizer.step(lambda: weights.square().sum(1) + bad.nan_to_num())
    fresh = nn.Parameter(randn(2, 4, seed=1))
    replay([fresh], path)
    assert torch.equal(fresh, weights)


@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_groups_schedules_frozen_parameters_and_hooks(any_row: Row, kind: str, path: Path) -> None:
    """Sigma is recorded where it changes, and so is who is frozen."""
    problem = PROBLEMS[kind]()
    first, *rest = problem.model.parameters()
    optimizer = any_row.make(
        [{"params": [first], "lr": 0.02, "weight_decay": 0.1}, {"params": rest, "sigma": 0.01}],
        directions=2,
    )
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.7)

    def before(step: int) -> None:
        schedule.step()
        optimizer.param_groups[1]["sigma"] *= 0.9 if step in (2, 3) else 1.0
        rest[-1].requires_grad_(step not in (3, 4))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        ends = recorded(problem, optimizer, path, 6, before, every=3)
    contents = read(path)
    assert contents.kinds["sigma"] > 0
    assert len(contents.headers) == 3  # at first, frozen, thawed
    assert_rebuilt(PROBLEMS[kind], path, ends)


def test_a_group_that_is_added_later(any_row: Row, path: Path) -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = any_row.make([first], directions=2)

    def before(step: int) -> None:
        if step == 3:
            optimizer.add_param_group({"params": rest, "sigma": 0.01})

    ends = recorded(problem, optimizer, path, before=before, every=2)
    assert_rebuilt(Regression, path, ends)


def test_a_group_that_is_added_before_the_end(path: Path) -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = Dopamine([first])
    with Journal(optimizer, path):
        optimizer.step(problem.loss)
        optimizer.add_param_group({"params": rest})
        optimizer.param_groups[0]["sigma"] = 0.01
    with Journal(optimizer, path.with_suffix(".2")):
        optimizer.step(problem.loss)
    merge(path, path.with_suffix(".2"), path.with_suffix(".both"))
    fresh = Regression()
    assert replay(fresh.model, path.with_suffix(".both")) == 2
    assert bits(fresh) == bits(problem)


@pytest.mark.filterwarnings("ignore:.*a second probe:RuntimeWarning")
@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_probe_and_step_apart(any_row: Row, kind: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(problem.model.parameters(), directions=2, noise="gaussian")
    ends = [bits(problem)]
    with Journal(optimizer, path):
        for step in range(4):
            optimizer.probe(problem.loss)
            if step == 2:
                optimizer.probe(problem.loss)  # the first one is forgotten, but has left its trace
            optimizer.step()
            ends.append(bits(problem))
    assert_rebuilt(PROBLEMS[kind], path, ends)


@pytest.mark.parametrize("kind", ["float64", "in place and 16-bit"])
def test_steps_that_fail_and_steps_that_are_skipped(any_row: Row, kind: str, path: Path) -> None:
    problem = PROBLEMS[kind]()
    optimizer = any_row.make(problem.model.parameters(), directions=2, noise="gaussian")
    ends = [bits(problem)]

    def failing_at(call: int, value: float | None) -> Callable[[], Any]:
        calls = iter(range(100))

        def closure() -> Any:
            if next(calls) < call:
                return problem.loss()
            if value is None:
                raise ConnectionError("the simulator is gone")
            return torch.tensor(value)

        return closure

    with Journal(optimizer, path) as journal, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            for call in range(3):
                with pytest.raises(ConnectionError):
                    optimizer.step(failing_at(call, None))
            optimizer.step(failing_at(0, torch.nan))
            ends.append(bits(problem))
            optimizer.step(problem.loss)
            ends.append(bits(problem))
        with pytest.raises(ConnectionError):
            optimizer.step(failing_at(2, None))
        assert journal.steps == 4
    # VectorDopamine may reject its only step.
    assert_rebuilt(PROBLEMS[kind], path, ends[:4], moved=1)
    fresh = PROBLEMS[kind]()
    replay(fresh.model, path)
    assert bits(fresh) == bits(problem)  # also the trace of the step that failed last


def test_skipped_steps_cost_a_few_bytes(path: Path) -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with Journal(optimizer, path):
        before = path.stat().st_size
        with pytest.warns(RuntimeWarning, match="not finite"):
            optimizer.step(lambda: torch.nan)
        for _ in range(9):
            optimizer.step(lambda: torch.nan)
        assert path.stat().st_size - before == 60
    assert read(path).skipped == 10


def test_a_step_costs_at_most_forty_bytes_whatever_the_size_of_the_model(
    any_row: Row, path: Path
) -> None:
    sizes = []
    for n in (10, 20_000):
        weights = nn.Parameter(randn(n))
        optimizer = any_row.make([weights], directions=1, weight_decay=0.01)
        file = path.with_suffix(f".{n}")
        with Journal(optimizer, file) as journal:
            for _ in range(300):
                optimizer.step(lambda w=weights: w.square().mean())
        contents = read(file)
        assert journal.steps == contents.steps == 300
        sizes.append((contents.size - contents.kinds["header"]) / 300)
    assert max(sizes) <= 40
    assert abs(sizes[0] - sizes[1]) < 1  # digits of the rule's state
